#include "rl/countdown.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

namespace fathom {
namespace {

constexpr int kMaxDepth = 64;

// Recursive descent over sums of products of atoms; `ok` falls once and for all at the first mistake.
class Parser {
public:
    explicit Parser(std::string_view text) : text_(text) {}

    std::optional<CountdownValue> parse() {
        result_.value = sum(0);
        skip_spaces();
        if (!ok_ || at_ != text_.size() || result_.used.empty()) return std::nullopt;
        return result_;
    }

private:
    std::string_view text_;
    size_t at_ = 0;
    bool ok_ = true;
    CountdownValue result_;

    void skip_spaces() {
        while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
    }
    // One of + - * / ( ) in any of its spellings, 0 for anything else; does not move.
    [[nodiscard]] std::pair<char, size_t> peek() {
        constexpr std::array<std::pair<std::string_view, char>, 15> kSigns{{{"+", '+'},
                                                                            {"-", '-'},
                                                                            {"−", '-'},
                                                                            {"*", '*'},
                                                                            {"x", '*'},
                                                                            {"×", '*'},
                                                                            {"·", '*'},
                                                                            {"\\times", '*'},
                                                                            {"\\cdot", '*'},
                                                                            {"/", '/'},
                                                                            {"÷", '/'},
                                                                            {"\\div", '/'},
                                                                            {"(", '('},
                                                                            {")", ')'},
                                                                            {"=", '='}}};
        skip_spaces();
        for (const auto& [spelling, sign] : kSigns) {
            if (text_.substr(at_).starts_with(spelling)) return {sign, spelling.size()};
        }
        return {'\0', 0};
    }
    bool take(char wanted) {
        const auto [sign, length] = peek();
        if (sign != wanted) return false;
        at_ += length;
        return true;
    }
    int64_t fail() {
        ok_ = false;
        return 0;
    }
    int64_t sum(int depth) {
        int64_t value = product(depth);
        while (ok_) {
            if (take('+')) {
                if (__builtin_add_overflow(value, product(depth), &value)) return fail();
            } else if (take('-')) {
                if (__builtin_sub_overflow(value, product(depth), &value)) return fail();
            } else {
                break;
            }
        }
        return value;
    }
    int64_t product(int depth) {
        int64_t value = atom(depth);
        while (ok_) {
            if (take('*')) {
                if (__builtin_mul_overflow(value, atom(depth), &value)) return fail();
            } else if (take('/')) {
                const int64_t by = atom(depth);
                if (!ok_ || by == 0 || by == -1 || value % by != 0) return by == -1 && ok_ ? value = -value : fail();
                value /= by;
            } else {
                break;
            }
        }
        return value;
    }
    int64_t atom(int depth) {
        if (depth > kMaxDepth) return fail();
        if (take('(')) {
            const int64_t value = sum(depth + 1);
            return ok_ && take(')') ? value : fail();
        }
        skip_spaces();
        const size_t begin = at_;
        int64_t value = 0;
        for (; at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_])) != 0; ++at_) {
            value = value * 10 + (text_[at_] - '0');
            if (at_ - begin > 15) return fail();
        }
        if (at_ == begin) return fail();
        result_.used.push_back(value);
        return value;
    }
};

std::string_view trim(std::string_view text) {
    const size_t begin = std::min(text.find_first_not_of(" \t\r\n$`*."), text.size());
    const size_t end = text.find_last_not_of(" \t\r\n$`*.");
    return end == text.npos || end < begin ? std::string_view() : text.substr(begin, end + 1 - begin);
}

// The text of the last <open>...<close>; to the end where it is not closed.
std::optional<std::string_view> last_between(std::string_view text, std::string_view open, std::string_view close) {
    const size_t at = text.rfind(open);
    if (at == text.npos) return std::nullopt;
    text.remove_prefix(at + open.size());
    return text.substr(0, text.find(close));
}

struct Term {
    int64_t value;
    std::string text;
    bool sum;  // its outermost operation is + or -
};

std::string grouped(const Term& term) { return term.sum ? "(" + term.text + ")" : term.text; }

// A random legal combination of two terms: results stay positive, divisions exact.
Term combine(const Term& a, const Term& b, Rng& rng) {
    while (true) {
        switch (rng.below(4)) {
            case 0:
                return {a.value + b.value, a.text + " + " + b.text, true};
            case 1:
                if (a.value > b.value) return {a.value - b.value, a.text + " - " + grouped(b), true};
                break;
            case 2:
                return {a.value * b.value, grouped(a) + " * " + grouped(b), false};
            default:
                if (b.value > 1 && a.value % b.value == 0) {
                    const bool plain = b.text.find_first_not_of("0123456789") == std::string::npos;
                    return {a.value / b.value, grouped(a) + " / " + (plain ? b.text : "(" + b.text + ")"), false};
                }
        }
    }
}

}  // namespace

std::optional<CountdownValue> evaluate_countdown(std::string_view expression) { return Parser(expression).parse(); }

CountdownVerdict judge_countdown(std::string_view expression, std::span<const int64_t> nums, int64_t target) {
    const auto value = evaluate_countdown(expression);
    if (!value) return CountdownVerdict::kNone;
    std::vector<int64_t> left(nums.begin(), nums.end());
    for (const int64_t number : value->used) {
        const auto found = std::ranges::find(left, number);
        if (found == left.end()) return CountdownVerdict::kNone;
        left.erase(found);
    }
    return value->value == target ? CountdownVerdict::kRight : CountdownVerdict::kLegal;
}

std::string countdown_answer(std::string_view completion) {
    std::string_view text = trim(completion);
    if (const auto tagged = last_between(completion, "<answer>", "</answer>")) {
        text = *tagged;
    } else if (const auto boxed = last_between(completion, "\\boxed{", "}")) {
        text = *boxed;
    } else if (const auto said = last_between(completion, "Answer:", "\n")) {
        text = *said;
    } else if (const size_t line = text.rfind('\n'); line != text.npos) {
        text.remove_prefix(line + 1);
    }
    return std::string(trim(text.substr(0, text.find('='))));
}

CountdownTask make_countdown(const CountdownRules& rules, Rng& rng) {
    while (true) {
        CountdownTask task;
        std::vector<Term> terms;
        for (int64_t i = 0; i < rules.count; ++i) {
            task.nums.push_back(1 + static_cast<int64_t>(rng.below(static_cast<uint64_t>(rules.largest))));
            terms.push_back({task.nums.back(), std::to_string(task.nums.back()), false});
        }
        while (terms.size() > 1) {
            std::swap(terms[rng.below(terms.size())], terms.back());
            const Term a = std::move(terms.back());
            terms.pop_back();
            std::swap(terms[rng.below(terms.size())], terms.back());
            terms.back() = combine(a, terms.back(), rng);
        }
        task.target = terms[0].value;
        task.solution = terms[0].text;
        const bool given = std::ranges::find(task.nums, task.target) != task.nums.end();
        if (task.target >= 1 && task.target <= rules.max_target && !given) return task;
    }
}

WordTask make_word_arithmetic(int64_t steps, int64_t largest, Rng& rng) {
    constexpr std::array kNames{"Tom", "Mia", "Ben", "Lea", "Sam", "Ida"};
    constexpr std::array kThings{"apples", "books", "coins", "stones", "cards", "shells"};
    const auto number = [&](int64_t bound) { return 1 + static_cast<int64_t>(rng.below(static_cast<uint64_t>(bound))); };
    const std::string name = kNames[rng.below(kNames.size())], thing = kThings[rng.below(kThings.size())];
    WordTask task;
    int64_t value = number(largest);
    task.question = fmt::format("{} has {} {}.", name, value, thing);
    for (int64_t i = 0; i < steps; ++i) {
        const uint64_t kind = rng.below(value > 1 ? 3 : 2);
        const int64_t by = kind == 0 ? number(largest) : kind == 1 ? 2 + static_cast<int64_t>(rng.below(2)) : number(value - 1);
        const int64_t next = kind == 0 ? value + by : kind == 1 ? value * by : value - by;
        task.question += kind == 0   ? fmt::format(" {} finds {} more.", name, by)
                         : kind == 1 ? fmt::format(" Then {} has {} times as many.", name, by)
                                     : fmt::format(" {} gives {} away.", name, by);
        task.steps.push_back(fmt::format("{} {} {} = {}", value, kind == 0 ? '+' : kind == 1 ? '*' : '-', by, next));
        value = next;
    }
    task.question += fmt::format(" How many {} does {} have now?", thing, name);
    task.answer = value;
    return task;
}

}  // namespace fathom
