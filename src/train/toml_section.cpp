#include "train/toml_section.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"

namespace fathom {
namespace {

constexpr std::string_view kBareKey = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";

template <class T>
void check_range(const std::string& key, T value, T low, T high) {
    if (!(value >= low && value <= high)) fail_setting(key, fmt::format("{} is not between {} and {}", value, low, high));
}

}  // namespace

void fail_setting(const std::string& key, const std::string& what) {
    throw Error(ErrorKind::kInput, fmt::format("{}: {}", key, what));
}

TomlSection TomlSection::of(toml::table& root, const std::string& name) {
    root.insert(name, toml::table{});
    toml::table* table = root.get(name)->as_table();
    if (table == nullptr) fail_setting(name, "must be a table, as in [" + name + "]");
    return {name, *table};
}

void TomlSection::number(std::string_view key, double& value, double low, double high) {
    if (const toml::node* node = take(key)) {
        const auto found = node->value<double>();
        if (!found) fail_setting(full(key), "must be a number");
        check_range(full(key), *found, low, high);
        value = *found;
    }
    table_->insert_or_assign(key, value);
}

void TomlSection::integer(std::string_view key, int64_t& value, int64_t low, int64_t high) {
    if (const toml::node* node = take(key)) {
        const auto found = node->value_exact<int64_t>();
        if (!found) fail_setting(full(key), "must be an integer");
        check_range(full(key), *found, low, high);
        value = *found;
    }
    table_->insert_or_assign(key, value);
}

void TomlSection::boolean(std::string_view key, bool& value) {
    if (const toml::node* node = take(key)) {
        const auto found = node->value_exact<bool>();
        if (!found) fail_setting(full(key), "must be true or false");
        value = *found;
    }
    table_->insert_or_assign(key, value);
}

void TomlSection::numbers(std::string_view key, std::vector<double>& values, double low, double high) {
    if (const toml::node* node = take(key)) {
        const toml::array* found = node->as_array();
        if (found == nullptr) fail_setting(full(key), "must be a list of numbers");
        values.clear();
        for (const toml::node& item : *found) {
            const auto value = item.value<double>();
            if (!value) fail_setting(full(key), "must be a list of numbers");
            check_range(full(key), *value, low, high);
            values.push_back(*value);
        }
    }
    toml::array written;
    for (const double value : values) written.push_back(value);
    table_->insert_or_assign(key, std::move(written));
}

void TomlSection::text(std::string_view key, std::string& value) {
    if (const toml::node* node = take(key)) value = text_of(key, *node);
    table_->insert_or_assign(key, value);
}

std::string TomlSection::text(std::string_view key) {
    const toml::node* node = take(key);
    return node == nullptr ? std::string() : text_of(key, *node);
}

std::vector<std::string> TomlSection::list(std::string_view key, const toml::node& node) {
    const toml::array* items = node.as_array();
    if (items == nullptr) return {text_of(key, node)};
    std::vector<std::string> result;
    for (const toml::node& item : *items) result.push_back(text_of(key, item));
    return result;
}

void TomlSection::texts(std::string_view key, std::vector<std::string>& values) {
    if (const toml::node* node = take(key)) values = list(key, *node);
    toml::array written;
    for (const std::string& value : values) written.push_back(value);
    table_->insert_or_assign(key, std::move(written));
}

std::filesystem::path TomlSection::path(std::string_view key, const std::filesystem::path& base) {
    const std::string found = text(key);
    if (found.empty()) return {};
    const std::filesystem::path result = (base / found).lexically_normal();
    table_->insert_or_assign(key, result.string());
    return result;
}

std::vector<std::filesystem::path> TomlSection::paths(std::string_view key, const std::filesystem::path& base) {
    const toml::node* node = take(key);
    if (node == nullptr) return {};
    std::vector<std::filesystem::path> result;
    toml::array written;
    for (const std::string& item : list(key, *node)) {
        result.push_back((base / item).lexically_normal());
        written.push_back(result.back().string());
    }
    table_->insert_or_assign(key, std::move(written));
    return result;
}

toml::node* TomlSection::take(std::string_view key) {
    seen_.insert(std::string(key));
    return table_->get(key);
}

std::vector<std::string> TomlSection::rest() const {
    std::vector<std::string> keys;
    for (const auto& [key, value] : *table_) {
        if (!seen_.contains(std::string(key.str()))) keys.emplace_back(key.str());
    }
    return keys;
}

void TomlSection::finish() const {
    const auto unknown = rest();
    if (!unknown.empty())
        fail_setting(full(unknown.front()), fmt::format("is not a known key; the known ones are {}", fmt::join(seen_, ", ")));
}

void TomlSection::set(std::string_view key, const std::string& value) { table_->insert_or_assign(key, value); }

std::string TomlSection::text_of(std::string_view key, const toml::node& node) const {
    const auto found = node.value_exact<std::string>();
    if (!found || found->empty()) fail_setting(full(key), "must be a text in quotes");
    return *found;
}

namespace {

// Values on one line, numbers as short as they stay exact (toml++ writes 0.1 with 17 digits).
std::string to_toml(const toml::node& node) {
    const auto quoted = [](std::string_view text) { return nlohmann::json(text).dump(); };  // JSON's escapes are TOML's
    if (const auto* value = node.as_string()) return quoted(value->get());
    if (const auto* value = node.as_boolean()) return fmt::format("{}", value->get());
    if (const auto* value = node.as_integer()) return fmt::format("{}", value->get());
    if (const auto* value = node.as_floating_point()) {
        const std::string digits = fmt::format("{}", value->get());
        return digits.find_first_not_of("-0123456789") == std::string::npos ? digits + ".0" : digits;
    }
    std::string items;
    const auto append = [&](const std::string& item) { items += (items.empty() ? "" : ", ") + item; };
    if (const auto* list = node.as_array()) {
        for (const toml::node& item : *list) append(to_toml(item));
        return "[" + items + "]";
    }
    check(node.as_table() != nullptr, "dates are refused when read");
    for (const auto& [key, item] : *node.as_table()) append(quoted(key.str()) + " = " + to_toml(item));
    return "{" + items + "}";
}

}  // namespace

std::string to_toml_text(const toml::table& root) {
    std::string text;
    for (const auto& [name, section] : root) {
        text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", name.str());
        for (const auto& [key, value] : *section.as_table()) {
            const bool bare = key.str().find_first_not_of(kBareKey) == std::string_view::npos && !key.str().empty();
            text += fmt::format("{} = {}\n", bare ? std::string(key.str()) : nlohmann::json(key.str()).dump(), to_toml(value));
        }
    }
    return text;
}

void apply_override(toml::table& root, const std::string& text) {
    const size_t equals = text.find('=');
    std::vector<std::string> path;
    std::istringstream parts(text.substr(0, equals) + ".");  // getline would not see an empty last part
    for (std::string part; std::getline(parts, part, '.');) path.push_back(part);
    if (equals == std::string::npos || path.size() < 2 || std::ranges::find(path, "") != path.end()) {
        throw Error(ErrorKind::kUsage,
                    fmt::format("\"{}\": settings are given as section.key=value, e.g. training.steps=100", text));
    }
    toml::table parsed;
    try {
        parsed = toml::parse("value = " + text.substr(equals + 1));
    } catch (const toml::parse_error&) {
        parsed.insert("value", text.substr(equals + 1));
    }
    toml::table* table = &root;
    for (size_t i = 0; i + 1 < path.size(); ++i) {
        table->insert(path[i], toml::table{});
        table = table->get(path[i])->as_table();
        if (table == nullptr) throw Error(ErrorKind::kUsage, fmt::format("{}: {} is not a table", text, path[i]));
    }
    table->insert_or_assign(path.back(), std::move(*parsed.get("value")));
}

}  // namespace fathom
