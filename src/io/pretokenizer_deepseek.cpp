#include "io/pretokenizer_deepseek.h"

namespace fathom {
namespace {

constexpr uint8_t kNewline = 64, kCjk = 128;  // beside CharacterClasses' bits

struct Glyph {
    uint8_t bits;
    uint8_t length;  // bytes
};

// Reads characters of valid UTF-8 together with their class.
class Reader {
public:
    Reader(std::string_view text, const CharacterClasses& classes) : text_(text), classes_(classes) {
        for (char32_t code = 0; code < 128; ++code) ascii_[code] = bits_of(code);
    }

    [[nodiscard]] Glyph at(size_t i) const {
        const auto byte = static_cast<uint8_t>(text_[i]);
        if (byte < 0x80) return {ascii_[byte], 1};
        const Character character = first_character(text_.substr(i));
        return {bits_of(character.code), static_cast<uint8_t>(character.length)};
    }

    // End of the run, from i on, of characters with any of `bits`.
    [[nodiscard]] size_t run(size_t i, size_t end, uint8_t bits) const {
        while (i < end) {
            const Glyph glyph = at(i);
            if (!(glyph.bits & bits)) break;
            i += glyph.length;
        }
        return i;
    }

private:
    std::string_view text_;
    const CharacterClasses& classes_;
    uint8_t ascii_[128];

    [[nodiscard]] uint8_t bits_of(char32_t code) const {
        uint8_t bits = classes_.of(code) & ~kWord;
        if (code == '\r' || code == '\n') bits |= kNewline;
        if ((code >= 0x4E00 && code <= 0x9FA5) || (code >= 0x3040 && code <= 0x30FF)) bits |= kCjk;
        return bits;
    }
};

bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// Third pattern, on [begin, end) of the text, which the first two have cut: no look beyond `end`.
class WordSplitter {
public:
    WordSplitter(std::string_view text, const Reader& reader) : text_(text), reader_(reader) {}

    void split(size_t begin, size_t end, std::vector<std::string_view>& pieces) const {
        size_t gap = begin;  // start of what no alternative has matched
        for (size_t i = begin; i < end;) {
            const size_t stop = match(i, end);
            if (stop == i) {
                i += reader_.at(i).length;
                continue;
            }
            if (gap < i) pieces.push_back(text_.substr(gap, i - gap));
            pieces.push_back(text_.substr(i, stop - i));
            gap = i = stop;
        }
        if (gap < end) pieces.push_back(text_.substr(gap, end - gap));
    }

private:
    std::string_view text_;
    const Reader& reader_;

    // End of the first alternative that matches at i, or i when none does.
    [[nodiscard]] size_t match(size_t i, size_t end) const {
        const Glyph first = reader_.at(i);
        const size_t next = i + first.length;
        // [!"#$...~][A-Za-z]+
        if ((first.bits & kPunctuationOrSymbol) && first.length == 1 && next < end && is_ascii_letter(text_[next])) {
            size_t stop = next + 1;
            while (stop < end && is_ascii_letter(text_[stop])) ++stop;
            return stop;
        }
        // [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+
        constexpr uint8_t kWordPart = kLetter | kMark;
        if (first.bits & kWordPart) return reader_.run(next, end, kWordPart);
        const bool leads = !(first.bits & (kNewline | kPunctuationOrSymbol));
        const Glyph second = next < end ? reader_.at(next) : Glyph{0, 0};
        if (leads && (second.bits & kWordPart)) return reader_.run(next + second.length, end, kWordPart);
        //  ?[\p{P}\p{S}]+[\r\n]*
        const size_t marks = text_[i] == ' ' && (second.bits & kPunctuationOrSymbol) ? next : i;
        if (const size_t stop = reader_.run(marks, end, kPunctuationOrSymbol); stop > marks)
            return reader_.run(stop, end, kNewline);
        return first.bits & kSpace ? match_space(i, end) : i;
    }

    // \s*[\r\n]+ | \s+(?!\S) | \s+
    [[nodiscard]] size_t match_space(size_t i, size_t end) const {
        size_t stop = i, last = i, after_newline = i;  // `last`: where the last space begins
        while (stop < end) {
            const Glyph glyph = reader_.at(stop);
            if (!(glyph.bits & kSpace)) break;
            last = stop;
            stop += glyph.length;
            if (glyph.bits & kNewline) after_newline = stop;
        }
        if (after_newline > i) return after_newline;
        if (stop == end || last == i) return stop;
        return last;  // leaves one space to lead the next word
    }
};

}  // namespace

void split_deepseek_v3(std::string_view text, const CharacterClasses& classes, std::vector<std::string_view>& pieces) {
    const Reader reader(text, classes);
    const WordSplitter words(text, reader);
    constexpr int kDigits = 3;
    for (size_t i = 0; i < text.size();) {
        const Glyph first = reader.at(i);
        size_t stop = i + first.length;
        if (first.bits & kNumber) {  // \p{N}{1,3}
            for (int digits = 1; digits < kDigits && stop < text.size(); ++digits) {
                const Glyph glyph = reader.at(stop);
                if (!(glyph.bits & kNumber)) break;
                stop += glyph.length;
            }
            pieces.push_back(text.substr(i, stop - i));
        } else {  // a run of CJK and kana, or a run without them and without numbers
            const uint8_t kind = first.bits & kCjk;
            while (stop < text.size()) {
                const Glyph glyph = reader.at(stop);
                if ((glyph.bits & kNumber) || (glyph.bits & kCjk) != kind) break;
                stop += glyph.length;
            }
            words.split(i, stop, pieces);
        }
        i = stop;
    }
}

}  // namespace fathom
