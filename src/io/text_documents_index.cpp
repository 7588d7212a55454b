#include "io/text_documents_index.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <regex>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace fathom {
namespace {

struct Row {
    int64_t bytes = 0;
    std::string title;
    bool excluded = false;
};

// What matching needs to know of a document.
struct Sketch {
    int64_t index = 0;
    std::string first_line;
};

using RowsBySplit = std::map<std::string, std::vector<Row>>;
using SketchesBySize = std::map<int64_t, std::vector<Sketch>>;

std::vector<std::string> cells_of(std::string_view line) {
    if (line.ends_with('\r')) line.remove_suffix(1);
    std::vector<std::string> cells;
    for (size_t begin = 0; begin <= line.size();) {
        const size_t end = std::min(line.find('\t', begin), line.size());
        cells.emplace_back(line.substr(begin, end - begin));
        begin = end + 1;
    }
    return cells;
}

std::regex compile(const std::string& pattern) {
    try {
        return std::regex(pattern, std::regex::ECMAScript | std::regex::optimize);
    } catch (const std::regex_error& e) {
        throw Error{ErrorKind::kUsage,
                    fmt::format("licence pattern \"{}\" is not a regular expression: {}", pattern, e.what())};
    }
}

// Column numbers of the table's header.
class Columns {
public:
    Columns(const std::vector<std::string>& header, const std::filesystem::path& path)
        : licence_(find(header, "licence")),
          bytes_(find(header, "bytes")),
          title_(find(header, "title")),
          split_(find(header, "split")) {
        if (!licence_) licence_ = find(header, "license");
        for (const auto& [column, name] :
             {std::pair{licence_, "licence"}, std::pair{bytes_, "bytes"}, std::pair{title_, "title"}})
            if (!column)
                throw Error{
                    ErrorKind::kInput,
                    fmt::format(
                        "{}:1: no column \"{}\"; a licence index needs the tab-separated columns licence, bytes and title",
                        path.string(), name)};
        count_ = header.size();
    }

    // Puts the row into `rows`; false when it is malformed.
    [[nodiscard]] bool read(const std::vector<std::string>& cells, const std::regex& pattern, RowsBySplit& rows) const {
        if (cells.size() != count_) return false;
        const std::string& number = cells[*bytes_];
        Row row{0, cells[*title_], std::regex_search(cells[*licence_], pattern)};
        const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), row.bytes);
        if (error != std::errc{} || end != number.data() + number.size() || row.bytes < 0) return false;
        rows[split_ ? cells[*split_] : std::string()].push_back(std::move(row));
        return true;
    }

private:
    std::optional<size_t> licence_, bytes_, title_, split_;
    size_t count_ = 0;

    static std::optional<size_t> find(const std::vector<std::string>& header, std::string_view name) {
        const auto it = std::find(header.begin(), header.end(), name);
        return it == header.end() ? std::nullopt : std::optional(static_cast<size_t>(it - header.begin()));
    }
};

RowsBySplit read_rows(const std::filesystem::path& path, const std::regex& pattern) {
    const std::string table = read_text(path);
    RowsBySplit rows;
    std::optional<Columns> columns;
    int64_t line_number = 0;
    for (size_t begin = 0; begin < table.size();) {
        const size_t end = std::min(table.find('\n', begin), table.size());
        const auto cells = cells_of(std::string_view(table).substr(begin, end - begin));
        begin = end + 1;
        ++line_number;
        if (!columns)
            columns.emplace(cells, path);
        else if (!columns->read(cells, pattern, rows))
            throw Error{ErrorKind::kInput,
                        fmt::format("{}:{}: not a row of this table ({} cells; bytes must be a whole number)", path.string(),
                                    line_number, cells.size())};
    }
    if (rows.empty()) throw Error{ErrorKind::kInput, fmt::format("{}: an index without rows", path.string())};
    return rows;
}

SketchesBySize sketch(TextDocuments& documents) {
    SketchesBySize by_size;
    documents.rewind();
    while (const auto range = documents.next()) {
        const std::string text = documents.text(*range);
        by_size[static_cast<int64_t>(text.size())].push_back({range->index, text.substr(0, text.find_first_of("\r\n"))});
    }
    documents.rewind();
    return by_size;
}

int64_t count_of(const SketchesBySize& by_size) {
    int64_t count = 0;
    for (const auto& [size, sketches] : by_size) count += static_cast<int64_t>(sketches.size());
    return count;
}

bool describes(const std::vector<Row>& rows, const SketchesBySize& by_size) {
    std::map<int64_t, size_t> counts;
    for (const auto& row : rows) ++counts[row.bytes];
    return std::equal(counts.begin(), counts.end(), by_size.begin(), by_size.end(),
                      [](const auto& a, const auto& b) { return a.first == b.first && a.second == b.second.size(); });
}

// Decides for the documents of one size. False when the titles leave it open.
bool assign(std::vector<Row> rows, std::vector<Sketch> sketches, std::vector<bool>& excluded) {
    std::erase_if(sketches, [&](const Sketch& s) {
        const auto row = std::find_if(rows.begin(), rows.end(), [&](const Row& r) { return r.title == s.first_line; });
        const bool unique = row != rows.end() && std::none_of(rows.begin(), rows.end(), [&](const Row& r) {
                                return r.title == row->title && r.excluded != row->excluded;
                            });
        if (!unique) return false;
        excluded[static_cast<size_t>(s.index)] = row->excluded;
        rows.erase(row);
        return true;
    });
    for (const auto& s : sketches) excluded[static_cast<size_t>(s.index)] = rows.front().excluded;
    return std::all_of(rows.begin(), rows.end(), [&](const Row& r) { return r.excluded == rows.front().excluded; });
}

}  // namespace

std::vector<bool> documents_excluded_by_licence(TextDocuments& documents, const std::filesystem::path& index,
                                                const std::string& licence_pattern) {
    const RowsBySplit splits = read_rows(index, compile(licence_pattern));
    const SketchesBySize by_size = sketch(documents);
    const int64_t count = count_of(by_size);
    const auto split = std::find_if(splits.begin(), splits.end(), [&](const auto& s) { return describes(s.second, by_size); });
    if (split == splits.end()) {
        std::string counts;
        for (const auto& [name, rows] : splits)
            counts +=
                fmt::format("{}{} rows{}", counts.empty() ? "" : ", ", rows.size(), name.empty() ? "" : " of split " + name);
        throw Error{ErrorKind::kInput,
                    fmt::format("{}: does not describe {}: the file has {} documents, the index {}, and the sizes of no "
                                "split agree with the documents'; give the index that belongs to this file",
                                index.string(), documents.path().string(), count, counts)};
    }
    std::map<int64_t, std::vector<Row>> rows_by_size;
    for (const auto& row : split->second) rows_by_size[row.bytes].push_back(row);
    std::vector<bool> excluded(static_cast<size_t>(count));
    for (const auto& [size, sketches] : by_size)
        if (!assign(rows_by_size.at(size), sketches, excluded))
            throw Error{
                ErrorKind::kInput,
                fmt::format(
                    "{}: {} documents of {} have {} bytes and their titles do not tell which of them the pattern excludes; "
                    "give each of these rows the document's first line as its title",
                    index.string(), sketches.size(), documents.path().string(), size)};
    return excluded;
}

}  // namespace fathom
