#include <fmt/format.h>

#include "base/error.h"
#include "serve/grammar_text.h"

namespace fathom {
namespace {

constexpr int kDeepest = 200;

// The character at the front of `text` and its length; a byte that begins none counts as itself.
std::pair<uint32_t, size_t> decode(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
    const uint32_t first = byte(0);
    const size_t length = first < 0x80 ? 1 : first >> 5 == 6 ? 2 : first >> 4 == 14 ? 3 : first >> 3 == 30 ? 4 : 1;
    if (length == 1 || length > text.size()) return {first, 1};
    uint32_t c = first & (0xFFU >> (length + 1));
    for (size_t i = 1; i < length; ++i) {
        if (byte(i) >> 6 != 2) return {first, 1};
        c = (c << 6) | (byte(i) & 0x3F);
    }
    return {c, length};
}

}  // namespace

std::string encode_utf8(uint32_t c) {
    std::string bytes;
    if (c < 0x80) return {static_cast<char>(c)};
    const int tails = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static constexpr unsigned char kLeads[] = {0, 0xC0, 0xE0, 0xF0};
    bytes += static_cast<char>(kLeads[tails] | (c >> (6 * tails)));
    for (int i = tails - 1; i >= 0; --i) bytes += static_cast<char>(0x80 | ((c >> (6 * i)) & 0x3F));
    return bytes;
}

void CharReader::fail(const std::string& what) const {
    throw Error(ErrorKind::kInput, fmt::format("{}, character {}: {}", what_, at_ + 1, what));
}

uint32_t CharReader::peek() const { return done() ? 0 : decode(text_.substr(at_)).first; }

uint32_t CharReader::next() {
    if (done()) fail("ends too early");
    const auto [c, length] = decode(text_.substr(at_));
    at_ += length;
    return c;
}

bool CharReader::take(char c) {
    if (done() || text_[at_] != c) return false;
    ++at_;
    return true;
}

bool CharReader::take(std::string_view word) {
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
}

void CharReader::expect(char c) {
    if (!take(c)) fail(fmt::format("expected '{}'", c));
}

int64_t CharReader::integer() {
    if (!at_digit()) fail("expected a number");
    int64_t value = 0;
    for (int digits = 0; at_digit(); ++digits) {
        if (digits == 6) fail("the number is too large");
        value = value * 10 + static_cast<int64_t>(next() - '0');
    }
    return value;
}

uint32_t CharReader::hex(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i) {
        const uint32_t c = next();
        const bool digit = c >= '0' && c <= '9', lower = c >= 'a' && c <= 'f', upper = c >= 'A' && c <= 'F';
        if (!digit && !lower && !upper) fail("expected a hexadecimal digit");
        value = value * 16 + (digit ? c - '0' : lower ? c - 'a' + 10 : c - 'A' + 10);
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) fail("not a Unicode character");
    return value;
}

ReadDepth::ReadDepth(CharReader& reader) : reader_(reader) {
    if (++reader_.depth_ > kDeepest) reader_.fail("nested too deep");
}

}  // namespace fathom
