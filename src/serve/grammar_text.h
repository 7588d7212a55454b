// Grammars as clients write them: regular expressions, GBNF, JSON Schema. All throw Error{kInput} saying what is wrong where.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "infer/grammar.h"
#include "serve/api_error.h"

namespace fathom {

// Reads a text of Unicode characters from left to right.
class CharReader {
public:
    // what: how errors call the text. Text that is not UTF-8 is read byte by byte.
    CharReader(std::string_view text, std::string what) : text_(text), what_(std::move(what)) {}

    [[nodiscard]] bool done() const { return at_ >= text_.size(); }
    [[nodiscard]] uint32_t peek() const;  // 0 at the end
    uint32_t next();                      // throws at the end
    [[nodiscard]] bool take(char c);
    [[nodiscard]] bool take(std::string_view word);
    void expect(char c);
    [[nodiscard]] int64_t integer();  // at most 6 digits
    [[nodiscard]] uint32_t hex(int digits);
    [[nodiscard]] bool at_digit() const { return peek() >= '0' && peek() <= '9'; }
    [[noreturn]] void fail(const std::string& what) const;
    [[nodiscard]] size_t position() const { return at_; }
    void rewind(size_t position) { at_ = position; }

private:
    std::string_view text_;
    std::string what_;
    size_t at_ = 0;
    int depth_ = 0;
    friend class ReadDepth;
};

// Guards against nesting that would overflow the stack.
class ReadDepth {
public:
    explicit ReadDepth(CharReader& reader);
    ~ReadDepth() { --reader_.depth_; }
    ReadDepth(const ReadDepth&) = delete;
    ReadDepth& operator=(const ReadDepth&) = delete;

private:
    CharReader& reader_;
};

// One code point as UTF-8.
[[nodiscard]] std::string encode_utf8(uint32_t code_point);

// A regular expression that the whole text must match: | ( ) (?: ) [ ] . * + ? {n,m} and \d \w \s \n \t \xHH \uHHHH. ^ and $
// are understood at the ends.
enum class RegexUse : uint8_t {
    kWhole,       // of the answer
    kJsonString,  // between the quotes of a JSON string, where " and \ and control characters are written with a backslash; as
                  // JSON Schema says, the pattern may match anywhere unless ^ and $ tie it
};
[[nodiscard]] GrammarExpr parse_regex(std::string_view regex, RegexUse use = RegexUse::kWhole);

// llama.cpp's GBNF; the rule "root" is the whole.
[[nodiscard]] Grammar parse_gbnf(std::string_view text);

// JSON that obeys the schema, its properties in the schema's order. Supported: type, properties, required,
// additionalProperties, items, prefixItems, minItems, maxItems, enum, const, anyOf, oneOf, allOf of one, $ref into the schema,
// pattern, minLength, maxLength, format, and bounds of integers. Keywords that would restrict more than this are errors;
// annotations are ignored.
[[nodiscard]] Grammar parse_json_schema(const Json& schema);
// Any JSON object.
[[nodiscard]] Grammar any_json_object();

}  // namespace fathom
