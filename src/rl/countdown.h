// Countdown: reach a target from given numbers with + - * / and parentheses, each number at most once. Verified by evaluation,
// never by comparison with a stored solution.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/rng.h"

namespace fathom {

struct CountdownTask {
    std::vector<int64_t> nums;
    int64_t target = 0;
    std::string solution;  // one of many
};

// The exact value of an expression and the numbers it uses, in order; nothing where it is no expression, divides by zero or
// with a remainder, or leaves 64 bits. Also reads x, · and × as *, ÷ as /, and − as -.
struct CountdownValue {
    int64_t value = 0;
    std::vector<int64_t> used;
};
[[nodiscard]] std::optional<CountdownValue> evaluate_countdown(std::string_view expression);

enum class CountdownVerdict : uint8_t {
    kNone,   // no expression, or one that uses numbers it was not given
    kLegal,  // an expression over the given numbers with another value
    kRight,
};
[[nodiscard]] CountdownVerdict judge_countdown(std::string_view expression, std::span<const int64_t> nums, int64_t target);

// What a completion offers as its answer: the text in the last <answer>...</answer>, else in the last \boxed{...}, else behind
// the last "Answer:", else its last line that is not empty; of "a = b" the part before the first "=".
[[nodiscard]] std::string countdown_answer(std::string_view completion);

struct CountdownRules {
    int64_t count = 3;         // numbers
    int64_t largest = 30;      // of 1 .. largest
    int64_t max_target = 100;  // targets lie in 1 .. max_target
};
// Combines two numbers at random by a legal operation until one is left; tries again until that is a fair target that is not
// one of the numbers. The solution uses all numbers.
[[nodiscard]] CountdownTask make_countdown(const CountdownRules& rules, Rng& rng);

// A sum told in words, with steps: "Tom has 7 apples. He gets 5 more, ..." and its value.
struct WordTask {
    std::string question;
    std::vector<std::string> steps;  // "7 + 5 = 12"
    int64_t answer = 0;
};
[[nodiscard]] WordTask make_word_arithmetic(int64_t steps, int64_t largest, Rng& rng);

}  // namespace fathom
