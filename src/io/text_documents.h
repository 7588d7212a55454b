// Documents of a text corpus, streamed over a memory map.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "base/file.h"

namespace fathom {

// Where one document lies in its file.
struct DocumentRange {
    int64_t index = 0;  // 0-based, in file order
    int64_t begin = 0;  // bytes [begin, end): the text itself (.txt) or the line that holds it (.jsonl)
    int64_t end = 0;
    int64_t line = 1;  // 1-based line of `begin`
};

// Two kinds of file, told apart by the name's end:
//   .jsonl, .ndjson   one JSON object a line, the text in the string field `field`; blank lines are skipped.
//   anything else     plain UTF-8; a line that is exactly <|endoftext|> ends a document and is never text. Line breaks at
//                     either end of a document belong to the separator; what is then empty is no document.
// The file is never held in memory: next() finds ranges, text() turns a range into text and may be called by many threads.
class TextDocuments {
public:
    static constexpr std::string_view kSeparator = "<|endoftext|>";

    // Throws Error{kIo} when unreadable, Error{kInput} when compressed (saying how to unpack).
    explicit TextDocuments(std::filesystem::path path, std::string field = "text");

    // The next document, or nothing at the end. A range is a plain value; any range of the file may be read at any time.
    [[nodiscard]] std::optional<DocumentRange> next();
    void rewind();

    // Throws Error{kInput} naming file and line: bad JSON, no such field, text that is not UTF-8.
    [[nodiscard]] std::string text(const DocumentRange& range) const;

    [[nodiscard]] int64_t bytes() const { return static_cast<int64_t>(content_.size()); }
    [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }

private:
    MappedFile file_;
    std::string field_;
    std::string_view content_;
    bool json_lines_;
    int64_t start_ = 0;  // first byte of text, behind a byte order mark
    int64_t position_ = 0, line_ = 1, index_ = 0;

    [[nodiscard]] std::string_view take_line();
    [[nodiscard]] std::optional<DocumentRange> next_json_line();
    [[nodiscard]] std::optional<DocumentRange> next_plain();
    [[nodiscard]] std::string json_text(const DocumentRange& range) const;
    [[noreturn]] void fail(int64_t line, const std::string& what) const;
};

// Offset of the first byte that is not well-formed UTF-8 (Unicode 15, table 3-7), or nothing.
[[nodiscard]] std::optional<size_t> find_invalid_utf8(std::string_view text);

}  // namespace fathom
