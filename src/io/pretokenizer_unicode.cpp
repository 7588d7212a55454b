#include "io/pretokenizer_unicode.h"

#include <cstring>

#include "io/pretokenizer_regex.h"

namespace fathom {
namespace {

// How a character with this first byte goes on: its length and the range of its second byte (Unicode table 3-7).
struct Lead {
    int length = 0;
    uint8_t second_low = 0x80, second_high = 0xBF;
};

Lead lead_of(uint8_t byte) {
    if (byte < 0x80) return {1};
    if (byte < 0xC2) return {};
    if (byte < 0xE0) return {2};
    if (byte == 0xE0) return {3, 0xA0, 0xBF};
    if (byte == 0xED) return {3, 0x80, 0x9F};
    if (byte < 0xF0) return {3};
    if (byte == 0xF0) return {4, 0x90, 0xBF};
    if (byte < 0xF4) return {4};
    if (byte == 0xF4) return {4, 0x80, 0x8F};
    return {};
}

// How many of the first bytes fit the beginning of a character.
int fitting_bytes(std::string_view text, const Lead& lead) {
    int fit = 1;
    while (fit < lead.length && fit < static_cast<int>(text.size())) {
        const auto byte = static_cast<uint8_t>(text[fit]);
        const uint8_t low = fit == 1 ? lead.second_low : 0x80, high = fit == 1 ? lead.second_high : 0xBF;
        if (byte < low || byte > high) break;
        ++fit;
    }
    return fit;
}

}  // namespace

Character first_character(std::string_view text) {
    const auto first = static_cast<uint8_t>(text[0]);
    if (first < 0x80) return {first, 1};
    const Lead lead = lead_of(first);
    if (lead.length == 0 || fitting_bytes(text, lead) < lead.length) return {};
    char32_t code = first & (0x7F >> lead.length);
    for (int i = 1; i < lead.length; ++i) code = code << 6 | (static_cast<uint8_t>(text[i]) & 0x3F);
    return {code, lead.length};
}

size_t valid_utf8_prefix(std::string_view text) {
    size_t at = 0;
    while (at < text.size()) {
        uint64_t eight;
        if (at + sizeof eight <= text.size()) {
            std::memcpy(&eight, text.data() + at, sizeof eight);
            if ((eight & 0x8080808080808080u) == 0) {
                at += sizeof eight;
                continue;
            }
        }
        const int length = first_character(text.substr(at)).length;
        if (length == 0) break;
        at += length;
    }
    return at;
}

size_t invalid_utf8_length(std::string_view text) {
    const Lead lead = lead_of(static_cast<uint8_t>(text[0]));
    return lead.length == 0 ? 1 : fitting_bytes(text, lead);
}

bool is_cut_character(std::string_view text) {
    const Lead lead = lead_of(static_cast<uint8_t>(text[0]));
    const int size = static_cast<int>(text.size());
    return size < lead.length && fitting_bytes(text, lead) == size;
}

void append_utf8(char32_t code, std::string& text) {
    const auto put = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xC0 | code >> 6), put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        put(0xE0 | code >> 12), put(0x80 | (code >> 6 & 0x3F)), put(0x80 | (code & 0x3F));
    } else {
        put(0xF0 | code >> 18), put(0x80 | (code >> 12 & 0x3F)), put(0x80 | (code >> 6 & 0x3F)), put(0x80 | (code & 0x3F));
    }
}

CharacterClasses::CharacterClasses() : classes_(kPlanes + kTagCount) {
    mark("\\p{L}+", kLetter);
    mark("\\p{M}+", kMark);
    mark("\\p{N}+", kNumber);
    mark("[\\p{P}\\p{S}]+", kPunctuationOrSymbol);
    mark("\\s+", kSpace);
    mark("\\w+", kWord);
}

void CharacterClasses::mark(std::string_view pattern, uint8_t bit) {
    std::string all;  // every character there is, in order
    all.reserve(1 << 20);
    for (char32_t code = 0; code < kPlanes; ++code)
        if (code < 0xD800 || code > 0xDFFF) append_utf8(code, all);
    for (char32_t tag = 0; tag < kTagCount; ++tag) append_utf8(kTags + tag, all);

    Regex::Scratch scratch;
    const Regex regex(pattern);
    Match match;
    for (size_t at = 0; regex.find(all, at, scratch, match); at = match.end) {
        for (size_t i = match.begin; i < match.end;) {
            const Character character = first_character(std::string_view(all).substr(i));
            const char32_t code = character.code;
            classes_[code < kPlanes ? code : kPlanes + code - kTags] |= bit;
            i += character.length;
        }
    }
}

}  // namespace fathom
