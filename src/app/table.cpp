#include "app/table.h"

#include <fmt/format.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"

namespace fathom {
namespace {

std::string grouped(int64_t number) {
    std::string digits = std::to_string(number);
    const int64_t first = number < 0 ? 1 : 0;
    for (auto at = static_cast<int64_t>(digits.size()) - 3; at > first; at -= 3) digits.insert(static_cast<size_t>(at), " ");
    return digits;
}

std::string padded(const std::string& text, size_t width, bool right) {
    const std::string blanks(width - std::min(width, display_width(text)), ' ');
    return right ? blanks + text : text + blanks;
}

}  // namespace

Cell::Cell(int64_t number) : value(number), text(grouped(number)) {}

void Table::add(std::vector<Cell> row) {
    check(row.size() == columns_.size(), "Table::add: a row needs one cell per column");
    rows_.push_back(std::move(row));
}

std::string Table::text(bool unicode) const {
    std::vector<size_t> width;
    for (size_t c = 0; c < columns_.size(); ++c) {
        width.push_back(display_width(columns_[c].title));
        for (const auto& row : rows_) width[c] = std::max(width[c], display_width(row[c].text));
    }
    const auto line = [&](const auto& text_of) {
        std::string result;
        for (size_t c = 0; c < columns_.size(); ++c)
            result += (c > 0 ? "  " : "") + padded(text_of(c), width[c], columns_[c].right);
        return result.erase(result.find_last_not_of(' ') + 1) + "\n";
    };
    std::string result = line([&](size_t c) { return columns_[c].title; });
    result += line([&](size_t c) {
        std::string rule;
        for (size_t i = 0; i < width[c]; ++i) rule += unicode ? "─" : "-";
        return rule;
    });
    for (const auto& row : rows_) result += line([&](size_t c) { return row[c].text; });
    return result;
}

std::string Table::json() const {
    auto rows = nlohmann::ordered_json::array();
    for (const auto& row : rows_) {
        nlohmann::ordered_json object;
        for (size_t c = 0; c < columns_.size(); ++c) {
            std::visit([&](const auto& value) { object[columns_[c].key] = value; }, row[c].value);
        }
        rows.push_back(std::move(object));
    }
    return rows.dump(2);
}

void Table::print(bool as_json) const {
    if (as_json)
        fmt::print("{}\n", json());
    else
        fmt::print("{}", text(stdout_draws_unicode()));
}

bool stdout_draws_unicode() {
    if (::isatty(STDOUT_FILENO) == 0) return false;
    for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
        const char* value = std::getenv(name);
        if (value == nullptr || *value == '\0') continue;
        const std::string_view locale(value);
        return locale.find("UTF-8") != locale.npos || locale.find("utf8") != locale.npos;
    }
    return false;
}

size_t display_width(const std::string& text) {
    return static_cast<size_t>(
        std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

}  // namespace fathom
