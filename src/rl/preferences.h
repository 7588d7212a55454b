// Pairs of answers to one prompt of which one is the better: what a reward model learns from, and the loss it learns by.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "io/chat_format.h"
#include "io/tokenizer.h"

namespace fathom {

// Both sequences whole: prompt, answer, end of sentence.
struct Preference {
    std::vector<int32_t> chosen, rejected;

    [[nodiscard]] int64_t length() const { return std::ssize(chosen) + std::ssize(rejected); }
    bool operator==(const Preference&) const = default;
};

struct PreferenceSet {
    std::vector<Preference> pairs;
    int64_t overlong =
        0;  // left out: one of the two has more than max_length tokens. A score stands at the end, which a cut loses
};

// JSON Lines with TRL's names: {"prompt", "chosen", "rejected"}, each a text or a list of messages; or {"chosen", "rejected"}
// alone, both whole conversations as lists of messages. Throws Error{kInput} naming file and line, for equal answers too.
[[nodiscard]] PreferenceSet read_preferences(std::span<const std::filesystem::path> files, const Tokenizer& tokenizer,
                                             const ChatFormat& format, int64_t max_length);

// How often the longer answer is the better one (or the shorter, whichever holds more often; equal lengths count half): what
// a judge that sees nothing but lengths gets right. 0 without pairs.
[[nodiscard]] double length_only_accuracy(std::span<const Preference> pairs);

// Sums over pairs; the caller divides.
struct PairwiseSums {
    double loss = 0, margin = 0, score = 0;  // margin: chosen - rejected; score: of both answers
    double right = 0;                        // pairs whose better answer has the higher score; equal scores count half
    int64_t pairs = 0;

    void add(const PairwiseSums& other);
    [[nodiscard]] double accuracy() const { return pairs > 0 ? right / static_cast<double>(pairs) : 0; }
};

// The Bradley-Terry model: P(chosen is better) = sigmoid(chosen - rejected). scores: chosen and rejected of pair after pair.
// Per pair: -log sigmoid(chosen - rejected) + center (chosen + rejected)^2, the second term for a mean of 0 (TRL's
// center_rewards_coefficient). dscores: the derivative of `scale` times the sum, or empty.
[[nodiscard]] PairwiseSums pairwise_loss(std::span<float> dscores, std::span<const float> scores, double center, double scale);

}  // namespace fathom
