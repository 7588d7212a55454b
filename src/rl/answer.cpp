#include "rl/answer.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <utility>

namespace fathom {
namespace {

bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }
bool is_letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

std::string_view trim(std::string_view text) {
    while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    return text;
}

// The length of a balanced {...} at the beginning of `text`; 0 where there is none.
size_t group_length(std::string_view text) {
    int depth = 0;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\\') {
            ++i;  // \{ and \} are no braces
            continue;
        }
        depth += text[i] == '{' ? 1 : text[i] == '}' ? -1 : 0;
        if (i == 0 && depth != 1) return 0;
        if (depth == 0) return i + 1;
    }
    return 0;
}

// "{a}" or a single character or number (\boxed 5, \frac12); moves `text` behind it.
std::optional<std::string_view> take_argument(std::string_view& text) {
    while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
    if (text.empty()) return std::nullopt;
    size_t length = group_length(text);
    if (length > 0) {
        const std::string_view inner = text.substr(1, length - 2);
        text.remove_prefix(length);
        return inner;
    }
    if (text.front() == '{' || text.front() == '}') return std::nullopt;
    length = 1;
    const std::string_view single = text.substr(0, length);
    text.remove_prefix(length);
    return single;
}

std::optional<std::string_view> last_boxed(std::string_view text) {
    for (size_t at = text.size(); at > 0;) {
        at = text.rfind('\\', at - 1);
        if (at == text.npos) break;
        for (const std::string_view name : {std::string_view("\\boxed"), std::string_view("\\fbox")}) {
            std::string_view rest = text.substr(at);
            if (!rest.starts_with(name) || (rest.size() > name.size() && is_letter(rest[name.size()]))) continue;
            rest.remove_prefix(name.size());
            if (!rest.empty() && is_space(rest.front())) {  // "\boxed 42": up to the next space or $
                rest = trim(rest);
                if (group_length(rest) == 0) return rest.substr(0, rest.find_first_of(" \t\r\n$"));
            }
            if (rest.starts_with("{")) {
                const size_t length = group_length(rest);
                return length > 0 ? std::optional(rest.substr(1, length - 2)) : std::nullopt;
            }
        }
    }
    return std::nullopt;
}

std::optional<std::string_view> after_last(std::string_view text, std::string_view mark) {
    const size_t at = text.rfind(mark);
    if (at == text.npos) return std::nullopt;
    return trim(text.substr(at + mark.size()).substr(0, text.substr(at + mark.size()).find('\n')));
}

// "answer is X" or "answer: X" in any case, up to the end of the sentence.
std::optional<std::string_view> said_answer(std::string_view text) {
    std::string lower(text);
    std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
    size_t best = std::string::npos;
    for (const std::string_view phrase :
         {std::string_view("answer is"), std::string_view("answer:"), std::string_view("answer =")}) {
        const size_t at = lower.rfind(phrase);
        if (at != std::string::npos && (best == std::string::npos || at + phrase.size() > best)) best = at + phrase.size();
    }
    if (best == std::string::npos) return std::nullopt;
    std::string_view rest = text.substr(best);
    rest = rest.substr(0, rest.find('\n'));
    if (const size_t sentence = rest.find(". "); sentence != rest.npos) rest = rest.substr(0, sentence);
    while (!rest.empty() && (is_space(rest.front()) || rest.front() == ':' || rest.front() == '*')) rest.remove_prefix(1);
    while (!rest.empty() && (is_space(rest.back()) || rest.back() == '.' || rest.back() == '*')) rest.remove_suffix(1);
    return rest.empty() ? std::nullopt : std::optional(rest);
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
    for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) text.replace(at, from.size(), to);
}

// \text{...}, \mathrm{...} and \mbox{...}: units when something stands before them, else the answer itself.
void unwrap_texts(std::string& text) {
    constexpr std::array<std::string_view, 5> kNames{"\\text", "\\textbf", "\\mathrm", "\\mbox", "\\mathbf"};
    for (const std::string_view name : kNames) {
        for (size_t at = 0; (at = text.find(name, at)) != std::string::npos;) {
            const size_t length = group_length(std::string_view(text).substr(at + name.size()));
            if (length == 0) {
                ++at;
                continue;
            }
            const std::string inner(trim(std::string_view(text).substr(at + name.size() + 1, length - 2)));
            const bool unit =
                at > 0 && (is_digit(text[at - 1]) || text[at - 1] == '}' || is_space(text[at - 1]) || text[at - 1] == ',');
            const bool power = text.substr(at + name.size() + length).starts_with("^");
            text.replace(at, name.size() + length, unit ? "" : inner);
            if (unit && power) {  // cm^2
                text.erase(at, 1);
                const size_t exponent = std::max<size_t>(group_length(std::string_view(text).substr(at)), 1);
                text.erase(at, std::min(exponent, text.size() - at));
            }
        }
    }
}

// 1,234,567 -> 1234567; (1,2) stays.
void remove_thousands(std::string& text) {
    for (size_t i = 1; i + 3 < text.size(); ++i) {
        if (text[i] != ',' || !is_digit(text[i - 1])) continue;
        const bool three = is_digit(text[i + 1]) && is_digit(text[i + 2]) && is_digit(text[i + 3]);
        const bool ends = i + 4 >= text.size() || !is_digit(text[i + 4]);
        if (three && ends) text.erase(i--, 1);
    }
}

// Numbers followed by plain words: "5 dollars", "12 square feet".
void remove_trailing_words(std::string& text) {
    size_t end = text.size();
    while (end > 0 && (is_letter(text[end - 1]) || is_space(text[end - 1]) || text[end - 1] == '.')) --end;
    const bool words = end < text.size() && end > 0 && is_space(text[end]) && is_digit(text[end - 1]);
    if (words) text.erase(end);
}

struct Rational {
    __int128 numerator = 0, denominator = 1;
};

bool equal(const Rational& a, const Rational& b) {  // parts are below 2^63, so products fit
    return a.numerator * b.denominator == b.numerator * a.denominator;
}

std::optional<Rational> parse_decimal(std::string_view text) {
    Rational value;
    const bool negative = text.starts_with("-");
    if (negative || text.starts_with("+")) text.remove_prefix(1);
    bool digits = false, point = false;
    for (const char c : text) {
        if (c == '.' && !point) {
            point = true;
            continue;
        }
        if (!is_digit(c)) return std::nullopt;
        digits = true;
        value.numerator = value.numerator * 10 + (c - '0');
        if (point) value.denominator *= 10;
        if (value.numerator >= (__int128{1} << 62) || value.denominator >= (__int128{1} << 62)) return std::nullopt;
    }
    if (negative) value.numerator = -value.numerator;
    return digits ? std::optional(value) : std::nullopt;
}

std::optional<Rational> divide(const std::optional<Rational>& a, const std::optional<Rational>& b) {
    constexpr __int128 kMost = __int128{1} << 62;
    if (!a || !b || b->numerator == 0) return std::nullopt;
    Rational q{a->numerator * b->denominator, a->denominator * b->numerator};
    if (q.denominator < 0) q = {-q.numerator, -q.denominator};
    return q.numerator < kMost && q.numerator > -kMost && q.denominator < kMost ? std::optional(q) : std::nullopt;
}

// Of normalised text: decimals, a/b, \frac{a}{b}, n\frac{a}{b}, with a sign.
std::optional<Rational> parse_number(std::string_view text) {
    if (const auto plain = parse_decimal(text)) return plain;
    if (const size_t slash = text.find('/'); slash != text.npos)
        return divide(parse_decimal(text.substr(0, slash)), parse_decimal(text.substr(slash + 1)));
    const size_t at = text.find("\\frac");
    if (at == text.npos) return std::nullopt;
    std::string_view whole = text.substr(0, at), rest = text.substr(at + 5);
    const auto above = take_argument(rest), below = above ? take_argument(rest) : std::nullopt;
    if (!below || !rest.empty()) return std::nullopt;
    auto value = divide(parse_decimal(*above), parse_decimal(*below));
    const bool negative = whole.starts_with("-");
    if (negative) whole.remove_prefix(1);
    if (value && !whole.empty()) {
        const auto units = parse_decimal(whole);
        if (!units || units->denominator != 1 || units->numerator >= (__int128{1} << 30) ||
            value->denominator >= (__int128{1} << 30))
            return std::nullopt;
        value->numerator += units->numerator * value->denominator;
    }
    if (value && negative) value->numerator = -value->numerator;
    return value;
}

}  // namespace

std::optional<std::string> extract_answer(std::string_view completion) {
    std::optional<std::string_view> found = last_boxed(completion);
    if (!found) found = after_last(completion, "####");
    if (!found) {
        const size_t open = completion.rfind("<answer>");
        const size_t close = open == completion.npos ? open : completion.find("</answer>", open);
        if (close != completion.npos) found = completion.substr(open + 8, close - open - 8);
    }
    if (!found) found = said_answer(completion);
    if (!found || trim(*found).empty()) return std::nullopt;
    return std::string(trim(*found));
}

std::string reference_answer(std::string_view stored) {
    if (const auto gsm = after_last(stored, "####")) return std::string(*gsm);
    if (const auto boxed = last_boxed(stored)) return std::string(*boxed);
    return std::string(trim(stored));
}

std::string normalized_answer(std::string_view answer) {
    std::string text(trim(answer));
    for (const auto& [from, to] : std::initializer_list<std::pair<std::string_view, std::string_view>>{
             {"\\\\ ", "\\\\"}, {"\\left", ""}, {"\\right", ""},   {"\\!", ""},       {"\\,", ""},     {"\\;", " "},
             {"\\ ", " "},      {"~", " "},     {"dfrac", "frac"}, {"tfrac", "frac"}, {"^\\circ", ""}, {"^{\\circ}", ""},
             {"°", ""},         {"\\%", ""},    {"%", ""},         {"\\$", ""},       {"$", ""},       {"€", ""},
             {"£", ""},         {"{,}", ","},   {"−", "-"},        {"\\(", ""},       {"\\)", ""},     {"\\[", ""},
             {"\\]", ""},       {"**", ""}})
        replace_all(text, from, to);
    unwrap_texts(text);
    text = trim(text);
    while (!text.empty() && (text.back() == '.' || text.back() == ',')) text.pop_back();
    remove_thousands(text);
    remove_trailing_words(text);
    // "x = 5", "f(x) = 5"
    if (const size_t equals = text.find('='); equals != text.npos && equals <= 6 && text.find('=', equals + 1) == text.npos)
        text.erase(0, equals + 1);
    std::string packed;  // two numbers stay apart
    for (size_t i = 0; i < text.size(); ++i) {
        const size_t next = is_space(text[i]) ? text.find_first_not_of(" \t\r\n", i) : i;
        const bool between =
            next != i && next != text.npos && !packed.empty() && is_digit(packed.back()) && is_digit(text[next]);
        if (next == i || (between && packed.back() != ' ')) packed += next == i ? text[i] : ' ';
    }
    text = std::move(packed);
    if (text.starts_with(".") && text.size() > 1 && is_digit(text[1])) text.insert(0, "0");
    return text;
}

bool equivalent_answers(std::string_view a, std::string_view b) {
    const std::string left = normalized_answer(a), right = normalized_answer(b);
    if (left.empty() || right.empty()) return false;
    if (left == right) return true;
    const auto x = parse_number(left), y = parse_number(right);
    return x && y && equal(*x, *y);
}

}  // namespace fathom
