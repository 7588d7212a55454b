// Final answers of mathematical solutions: where they stand, and when two of them say the same.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace fathom {

// The final answer of a completion, as it is written: the last \boxed{...} (or \fbox), else the text behind the last "####"
// (GSM8K), else the last <answer>...</answer>, else what follows the last "answer is" or "answer:" on its line. Nothing where
// no answer is given: a number somewhere in the text is a guess of ours, not an answer. An unclosed \boxed{ is none either.
[[nodiscard]] std::optional<std::string> extract_answer(std::string_view completion);

// A reference as data sets store it: GSM8K's solution, MATH's solution, or the plain answer.
[[nodiscard]] std::string reference_answer(std::string_view stored);

// What remains when spelling is taken away: spaces, $, \left, \right, \dfrac, \text{...}, units, degrees, percent and currency
// signs, thousands separators, leading "x =", a final period.
[[nodiscard]] std::string normalized_answer(std::string_view answer);

// The same after normalisation, or the same number: 0.5 = 1/2 = \frac12, 1\frac{1}{2} = 1.5, 1,000 = 1000. Numbers are compared
// exactly where both are fractions of 64-bit integers.
[[nodiscard]] bool equivalent_answers(std::string_view a, std::string_view b);

}  // namespace fathom
