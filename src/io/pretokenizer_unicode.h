// UTF-8 and the character classes that split patterns speak of.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

struct Character {
    char32_t code = 0;
    int length = 0;  // bytes; 0 = the text does not start with a valid character
};

// The first character of a non-empty text. Overlong forms, surrogates and code points above U+10FFFF are invalid.
[[nodiscard]] Character first_character(std::string_view text);

// How many bytes at the start of `text` are valid UTF-8.
[[nodiscard]] size_t valid_utf8_prefix(std::string_view text);

// Bytes of the longest beginning of a character that `text` starts with (1 to 3), or 1: what one U+FFFD stands for.
[[nodiscard]] size_t invalid_utf8_length(std::string_view text);

// Whether `text` (non-empty, invalid at its start) could become a valid character if more bytes followed.
[[nodiscard]] bool is_cut_character(std::string_view text);

void append_utf8(char32_t code, std::string& text);

// Bits of CharacterClasses::of.
inline constexpr uint8_t kLetter = 1, kMark = 2, kNumber = 4, kPunctuationOrSymbol = 8, kSpace = 16, kWord = 32;

// General categories of every code point, read out of PCRE2 so that the hand-written matchers and the regular expressions
// can never disagree about Unicode's version. 272 KiB; a few milliseconds to build.
class CharacterClasses {
public:
    CharacterClasses();

    [[nodiscard]] uint8_t of(char32_t code) const {
        if (code < kPlanes) return classes_[code];
        const char32_t tag = code - kTags;  // wraps for smaller codes
        return tag < kTagCount ? classes_[kPlanes + tag] : 0;
    }

private:
    // Planes 4 to 13 are unassigned, 15 and 16 private use: no class. Plane 14 has variation selectors.
    static constexpr char32_t kPlanes = 0x40000, kTags = 0xE0000, kTagCount = 0x1000;
    std::vector<uint8_t> classes_;
    void mark(std::string_view pattern, uint8_t bit);
};

}  // namespace fathom
