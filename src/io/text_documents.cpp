#include "io/text_documents.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"

namespace fathom {
namespace {

struct Compression {
    std::string_view suffix, magic, command;
};

constexpr std::array<Compression, 4> kCompressions{{
    {".xz", std::string_view("\xFD\x37zXZ\0", 6), "xz -dk"},
    {".zst", "\x28\xB5\x2F\xFD", "zstd -d"},
    {".gz", "\x1F\x8B", "gzip -dk"},
    {".bz2", "BZh", "bzip2 -dk"},
}};

// By content as well as by name: a renamed archive is caught too.
void refuse_compressed(const std::filesystem::path& path, std::string_view content) {
    for (const auto& c : kCompressions)
        if (content.starts_with(c.magic) || path.extension() == c.suffix)
            throw Error{ErrorKind::kInput, fmt::format("{}: a compressed file cannot be mapped; unpack it first: {} {}",
                                                       path.string(), c.command, path.string())};
}

bool is_line_break(char c) { return c == '\n' || c == '\r'; }

std::string_view without_carriage_return(std::string_view line) {
    return line.ends_with('\r') ? line.substr(0, line.size() - 1) : line;
}

}  // namespace

std::optional<size_t> find_invalid_utf8(std::string_view text) {
    const auto* s = reinterpret_cast<const unsigned char*>(text.data());
    const size_t size = text.size();
    size_t i = 0;
    while (i < size) {
        uint64_t word = 0;
        if (i + 8 <= size) std::memcpy(&word, s + i, 8);
        if (i + 8 <= size && (word & 0x8080808080808080ull) == 0) {
            i += 8;
            continue;
        }
        const unsigned char lead = s[i];
        if (lead < 0x80) {
            ++i;
            continue;
        }
        const size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                              : lead >= 0xE0 && lead <= 0xEF ? 3
                              : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                             : 0;
        if (length == 0 || i + length > size) return i;
        // The second byte's range shuts out overlong forms, surrogates and what lies beyond U+10FFFF.
        const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        if (s[i + 1] < low || s[i + 1] > high) return i;
        for (size_t k = 2; k < length; ++k)
            if ((s[i + k] & 0xC0) != 0x80) return i;
        i += length;
    }
    return std::nullopt;
}

TextDocuments::TextDocuments(std::filesystem::path path, std::string field) : file_(path), field_(std::move(field)) {
    const auto bytes = file_.bytes();
    content_ = {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    refuse_compressed(path, content_);
    json_lines_ = path.extension() == ".jsonl" || path.extension() == ".ndjson";
    start_ = content_.starts_with("\xEF\xBB\xBF") ? 3 : 0;
    rewind();
}

void TextDocuments::rewind() {
    position_ = start_;
    line_ = 1;
    index_ = 0;
}

std::optional<DocumentRange> TextDocuments::next() { return json_lines_ ? next_json_line() : next_plain(); }

// The line at the cursor, without its line feed; the cursor moves behind it.
std::string_view TextDocuments::take_line() {
    const auto begin = static_cast<size_t>(position_);
    const size_t end = std::min(content_.find('\n', begin), content_.size());
    position_ = static_cast<int64_t>(std::min(end + 1, content_.size()));
    ++line_;
    return content_.substr(begin, end - begin);
}

std::optional<DocumentRange> TextDocuments::next_json_line() {
    while (position_ < bytes()) {
        const int64_t begin = position_, line = line_;
        const std::string_view text = take_line();
        if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
        return DocumentRange{index_++, begin, begin + static_cast<int64_t>(text.size()), line};
    }
    return std::nullopt;
}

std::optional<DocumentRange> TextDocuments::next_plain() {
    while (position_ < bytes()) {
        DocumentRange range{index_, position_, bytes(), line_};
        while (position_ < bytes()) {
            const int64_t begin = position_;
            if (without_carriage_return(take_line()) != kSeparator) continue;
            range.end = begin;
            break;
        }
        const auto at = [&](int64_t i) { return content_[static_cast<size_t>(i)]; };
        for (; range.begin < range.end && is_line_break(at(range.begin)); ++range.begin) range.line += at(range.begin) == '\n';
        while (range.end > range.begin && is_line_break(at(range.end - 1))) --range.end;
        if (range.begin == range.end) continue;
        ++index_;
        return range;
    }
    return std::nullopt;
}

std::string TextDocuments::text(const DocumentRange& range) const {
    check(0 <= range.begin && range.begin <= range.end && range.end <= bytes(), "a range of this file");
    if (json_lines_) return json_text(range);
    const auto text = content_.substr(static_cast<size_t>(range.begin), static_cast<size_t>(range.end - range.begin));
    if (const auto bad = find_invalid_utf8(text))
        fail(range.line + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(*bad), '\n'),
             fmt::format("byte 0x{:02x} at offset {} is not UTF-8; convert the file first, e.g. with iconv",
                         static_cast<unsigned char>(text[*bad]), static_cast<size_t>(range.begin) + *bad));
    return std::string(text);
}

std::string TextDocuments::json_text(const DocumentRange& range) const {
    const auto line = content_.substr(static_cast<size_t>(range.begin), static_cast<size_t>(range.end - range.begin));
    nlohmann::json object;
    try {
        object = nlohmann::json::parse(line);
    } catch (const nlohmann::json::exception& e) {
        fail(range.line, fmt::format("not a line of JSON ({}); every line must be one object", e.what()));
    }
    const auto* value = object.is_object() && object.contains(field_) ? &object[field_] : nullptr;
    if (value == nullptr || !value->is_string())
        fail(range.line, fmt::format("{} \"{}\"; name the field that holds the text with --field",
                                     value == nullptr ? "no field" : "no text in field", field_));
    return value->get<std::string>();
}

void TextDocuments::fail(int64_t line, const std::string& what) const {
    throw Error{ErrorKind::kInput, fmt::format("{}:{}: {}", path().string(), line, what)};
}

}  // namespace fathom
