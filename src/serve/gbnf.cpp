// llama.cpp's notation of grammars.
#include <fmt/format.h>
#include <algorithm>
#include <map>

#include "base/error.h"
#include "serve/grammar_text.h"

namespace fathom {
namespace {

bool is_name(uint32_t c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

class GbnfParser {
public:
    explicit GbnfParser(std::string_view text) : reader_(text, "the grammar") { (void)number_of("root"); }

    Grammar parse() {
        space(true);
        while (!reader_.done()) {
            const int32_t rule = number_of(name());
            space(false);
            if (!reader_.take("::=")) reader_.fail("expected ::=");
            space(true);
            if (defined_[static_cast<size_t>(rule)]) reader_.fail("this rule was defined before");
            defined_[static_cast<size_t>(rule)] = true;
            GrammarExpr expr = alternatives(false);
            rules_[static_cast<size_t>(rule)] = std::move(expr);
            space(true);
        }
        for (const auto& [rule_name, number] : numbers_) {
            if (!defined_[static_cast<size_t>(number)])
                throw Error(ErrorKind::kInput, fmt::format("the grammar has no rule \"{}\"", rule_name));
        }
        return std::move(rules_);
    }

private:
    CharReader reader_;
    Grammar rules_;
    std::vector<bool> defined_;
    std::map<std::string, int32_t> numbers_;

    int32_t number_of(const std::string& name) {
        const auto [found, fresh] = numbers_.emplace(name, static_cast<int32_t>(rules_.size()));
        if (fresh) {
            rules_.emplace_back();
            defined_.push_back(false);
        }
        return found->second;
    }
    std::string name() {
        std::string text;
        while (is_name(reader_.peek())) text += static_cast<char>(reader_.next());
        if (text.empty()) reader_.fail("expected the name of a rule");
        return text;
    }
    // Blanks and comments; line breaks, too, where they do not end a rule.
    void space(bool lines) {
        while (!reader_.done()) {
            const uint32_t c = reader_.peek();
            if (c == '#') {
                while (!reader_.done() && reader_.peek() != '\n') (void)reader_.next();
            } else if (c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r'))) {
                (void)reader_.next();
            } else {
                return;
            }
        }
    }
    // A rule ends with its line, unless the next one goes on with |.
    GrammarExpr alternatives(bool nested) {
        const ReadDepth depth(reader_);
        std::vector<GrammarExpr> parts;
        while (true) {
            parts.push_back(sequence(nested));
            const size_t end = reader_.position();
            space(true);
            if (!reader_.take('|')) {
                if (!nested) reader_.rewind(end);
                break;
            }
            space(true);
        }
        return parts.size() == 1 ? std::move(parts.front()) : GrammarExpr::choice(std::move(parts));
    }
    GrammarExpr sequence(bool nested) {
        std::vector<GrammarExpr> parts;
        while (true) {
            space(nested);
            const uint32_t c = reader_.peek();
            const bool begins = c == '"' || c == '[' || c == '(' || c == '.' || is_name(c);
            if (!begins) break;
            parts.push_back(quantified(nested));
        }
        return GrammarExpr::sequence(std::move(parts));
    }
    GrammarExpr quantified(bool nested) {
        GrammarExpr part = atom();
        while (true) {
            const size_t end = reader_.position();
            space(nested);
            int64_t least = 0, most = -1;
            if (reader_.take('*')) {
            } else if (reader_.take('+')) {
                least = 1;
            } else if (reader_.take('?')) {
                most = 1;
            } else if (reader_.take('{')) {
                least = reader_.at_digit() ? reader_.integer() : 0;
                most = least;
                if (reader_.take(',')) most = reader_.at_digit() ? reader_.integer() : -1;
                reader_.expect('}');
                if (most >= 0 && most < least) reader_.fail("the bounds of a repetition are in the wrong order");
                if (std::max(least, most) > 10000) reader_.fail("too many repetitions");
            } else {
                reader_.rewind(end);
                return part;
            }
            part = GrammarExpr::repeat(std::move(part), least, most);
        }
    }
    GrammarExpr atom() {
        if (reader_.take('"')) {
            std::string text;
            while (!reader_.take('"')) text += encode_utf8(character());
            return GrammarExpr::literal(text);
        }
        if (reader_.take('[')) return bracket();
        if (reader_.take('.')) return GrammarExpr::none_of({});
        if (reader_.take('(')) {
            GrammarExpr group = alternatives(true);
            space(true);
            reader_.expect(')');
            return group;
        }
        return GrammarExpr::rule(number_of(name()));
    }
    GrammarExpr bracket() {
        const bool negated = reader_.take('^');
        std::vector<GrammarExpr::Range> ranges;
        while (!reader_.take(']')) {
            const uint32_t first = character();
            uint32_t last = first;
            const size_t dash = reader_.position();
            if (reader_.take('-')) {
                if (reader_.peek() == ']') {
                    reader_.rewind(dash);
                } else {
                    last = character();
                }
            }
            if (last < first) reader_.fail("a range of characters in the wrong order");
            ranges.emplace_back(first, last);
        }
        return negated ? GrammarExpr::none_of(std::move(ranges)) : GrammarExpr::any_of(std::move(ranges));
    }
    uint32_t character() {
        const uint32_t c = reader_.next();
        if (c != '\\') return c;
        const uint32_t escaped = reader_.next();
        switch (escaped) {
            case 'n':
                return '\n';
            case 'r':
                return '\r';
            case 't':
                return '\t';
            case 'x':
                return reader_.hex(2);
            case 'u':
                return reader_.hex(4);
            case 'U':
                return reader_.hex(8);
            default:
                return escaped;
        }
    }
};

}  // namespace

Grammar parse_gbnf(std::string_view text) { return GbnfParser(text).parse(); }

}  // namespace fathom
