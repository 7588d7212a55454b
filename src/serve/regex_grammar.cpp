// Regular expressions as grammar rules.
#include <fmt/format.h>
#include <algorithm>

#include "serve/grammar_text.h"

namespace fathom {
namespace {

using Range = GrammarExpr::Range;
using Ranges = std::vector<Range>;

constexpr uint32_t kLast = 0x10FFFF;
constexpr int64_t kMostRepeats = 10000;

Ranges inverse(const Ranges& ranges) { return GrammarExpr::none_of(ranges).ranges; }

// Inside a JSON string some characters are written differently.
GrammarExpr json_class(const Ranges& ranges) {
    std::vector<GrammarExpr> parts;
    Ranges plain;
    for (auto [first, last] : ranges) {
        // What stands for itself: 0x20 up, without the quote and the backslash.
        for (const auto& [a, b] : {Range{0x20, 0x21}, Range{0x23, 0x5B}, Range{0x5D, kLast}}) {
            if (std::max(first, a) <= std::min(last, b)) plain.emplace_back(std::max(first, a), std::min(last, b));
        }
        static constexpr std::pair<uint32_t, const char*> kEscaped[] = {
            {'"', "\\\""}, {'\\', "\\\\"}, {'\n', "\\n"}, {'\t', "\\t"}, {'\r', "\\r"}, {'\b', "\\b"}, {'\f', "\\f"}};
        for (const auto& [c, text] : kEscaped) {
            if (first <= c && c <= last) parts.push_back(GrammarExpr::literal(text));
        }
    }
    if (!plain.empty()) parts.push_back(GrammarExpr::any_of(std::move(plain)));
    return parts.size() == 1 ? std::move(parts.front()) : GrammarExpr::choice(std::move(parts));
}

class RegexParser {
public:
    RegexParser(std::string_view regex, RegexUse use)
        : reader_(regex, fmt::format("the regular expression \"{}\"", regex)),
          use_(use) {}

    GrammarExpr parse() {
        GrammarExpr whole = alternatives(true);
        if (!reader_.done()) reader_.fail("')' without '('");
        return whole;
    }

private:
    CharReader reader_;
    RegexUse use_;

    [[nodiscard]] GrammarExpr one_of(Ranges ranges) const {
        return use_ == RegexUse::kJsonString ? json_class(ranges) : GrammarExpr::any_of(std::move(ranges));
    }
    [[nodiscard]] GrammarExpr anything() const { return GrammarExpr::repeat(one_of({{0, kLast}}), 0); }

    // Only alternatives of the whole may be tied to the ends.
    GrammarExpr alternatives(bool outermost) {
        const ReadDepth depth(reader_);
        std::vector<GrammarExpr> parts;
        do {
            parts.push_back(sequence(outermost));
        } while (reader_.take('|'));
        return parts.size() == 1 ? std::move(parts.front()) : GrammarExpr::choice(std::move(parts));
    }
    GrammarExpr sequence(bool outermost) {
        const bool search = outermost && use_ == RegexUse::kJsonString;
        std::vector<GrammarExpr> parts;
        if (!reader_.take('^') && search) parts.push_back(anything());
        bool tied = false;
        while (!reader_.done() && reader_.peek() != '|' && reader_.peek() != ')') {
            if (reader_.take('$')) {
                tied = true;
                if (!reader_.done() && reader_.peek() != '|' && reader_.peek() != ')')
                    reader_.fail("'$' is understood at the end only");
                break;
            }
            parts.push_back(quantified());
        }
        if (!tied && search) parts.push_back(anything());
        return GrammarExpr::sequence(std::move(parts));
    }
    GrammarExpr quantified() {
        GrammarExpr part = atom();
        while (!reader_.done()) {
            int64_t least = 0, most = -1;
            if (reader_.take('*')) {
            } else if (reader_.take('+')) {
                least = 1;
            } else if (reader_.take('?')) {
                most = 1;
            } else if (reader_.take('{')) {
                least = reader_.integer();
                most = least;
                if (reader_.take(',')) most = reader_.at_digit() ? reader_.integer() : -1;
                reader_.expect('}');
                if (most >= 0 && most < least) reader_.fail("the bounds of a repetition are in the wrong order");
                if (std::max(least, most) > kMostRepeats) reader_.fail(fmt::format("more than {} repetitions", kMostRepeats));
            } else {
                break;
            }
            part = GrammarExpr::repeat(std::move(part), least, most);
            (void)reader_.take('?');  // lazy or greedy: the same texts match
        }
        return part;
    }
    GrammarExpr atom() {
        if (reader_.take('(')) {
            if (reader_.take('?') && !reader_.take(':')) reader_.fail("only (?:...) is understood of the (?...) forms");
            GrammarExpr group = alternatives(false);
            reader_.expect(')');
            return group;
        }
        if (reader_.take('[')) return one_of(bracket());
        if (reader_.take('.')) return one_of(inverse({{'\n', '\n'}}));
        if (reader_.peek() == '*' || reader_.peek() == '+' || reader_.peek() == '?' || reader_.peek() == '^')
            reader_.fail("nothing to repeat");
        if (reader_.take('\\')) return one_of(escape());
        const uint32_t c = reader_.next();
        return one_of({{c, c}});
    }
    Ranges escape() {
        const Ranges digits{{'0', '9'}}, word{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}, space{{'\t', '\r'}, {' ', ' '}};
        const uint32_t c = reader_.next();
        switch (c) {
            case 'd':
                return digits;
            case 'D':
                return inverse(digits);
            case 'w':
                return word;
            case 'W':
                return inverse(word);
            case 's':
                return space;
            case 'S':
                return inverse(space);
            case 'n':
                return {{'\n', '\n'}};
            case 't':
                return {{'\t', '\t'}};
            case 'r':
                return {{'\r', '\r'}};
            case 'f':
                return {{'\f', '\f'}};
            case 'v':
                return {{'\v', '\v'}};
            case 'x': {
                const uint32_t code = reader_.hex(2);
                return {{code, code}};
            }
            case 'u': {
                const uint32_t code = reader_.hex(4);
                return {{code, code}};
            }
            default:
                break;
        }
        const bool letter = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        if (letter) reader_.fail(fmt::format("\\{} is not understood", static_cast<char>(c)));
        return {{c, c}};
    }
    Ranges bracket() {
        const bool negated = reader_.take('^');
        Ranges ranges;
        for (bool first = true; first || reader_.peek() != ']'; first = false) {
            if (reader_.done()) reader_.fail("'[' without ']'");
            Ranges item = bracket_item();
            if (item.size() == 1 && item[0].first == item[0].second && reader_.peek() == '-') {
                const size_t dash = reader_.position();
                (void)reader_.next();
                if (reader_.peek() == ']') {
                    reader_.rewind(dash);
                } else {
                    const Ranges end = bracket_item();
                    if (end.size() != 1 || end[0].first < item[0].first)
                        reader_.fail("a range of characters in the wrong order");
                    item[0].second = end[0].first;
                }
            }
            ranges.insert(ranges.end(), item.begin(), item.end());
        }
        reader_.expect(']');
        return negated ? inverse(ranges) : ranges;
    }
    Ranges bracket_item() {
        if (reader_.take('\\')) return reader_.take('b') ? Ranges{{'\b', '\b'}} : escape();
        const uint32_t c = reader_.next();
        return {{c, c}};
    }
};

}  // namespace

GrammarExpr parse_regex(std::string_view regex, RegexUse use) { return RegexParser(regex, use).parse(); }

}  // namespace fathom
