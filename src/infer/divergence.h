// How far a changed model (quantized, pruned) has moved from the original on a text.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "model/deepseek.h"

namespace fathom {

struct Divergence {
    int64_t tokens = 0;                        // positions compared
    double nll_original = 0, nll_changed = 0;  // sums of -log p of the text's next token, nats
    double kl = 0;                             // sum of KL(original || changed) over the vocabulary, nats
    int64_t same_best = 0;                     // positions where both find the same token most likely

    [[nodiscard]] double perplexity_original() const;
    [[nodiscard]] double perplexity_changed() const;
    [[nodiscard]] double mean_kl() const { return tokens > 0 ? kl / static_cast<double>(tokens) : 0; }
    [[nodiscard]] double agreement() const {
        return tokens > 0 ? static_cast<double>(same_best) / static_cast<double>(tokens) : 0;
    }
};

// KL(softmax(p) || softmax(q)), nats.
[[nodiscard]] double logits_divergence(std::span<const float> p, std::span<const float> q);

// Both models read windows of `context` tokens, each from its own beginning. Models of one vocabulary.
[[nodiscard]] Divergence divergence(const DeepSeek& original, const DeepSeek& changed, Ops& ops,
                                    std::span<const int32_t> tokens, int64_t context,
                                    const std::function<void(const Divergence& so_far)>& progress = {});

}  // namespace fathom
