// How well a model predicts a text.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "model/deepseek.h"

namespace fathom {

struct PerplexityOptions {
    int64_t context = 1024;  // tokens of a window
    int64_t stride = 0;      // tokens between windows; smaller than `context` gives each more to look back on. 0: context
    CacheType cache_type;
    ExpertSource* experts = nullptr;  // see Context
    bool deterministic = false;
};

struct PerplexityResult {
    int64_t tokens = 0;  // predicted: all but the first
    double nll = 0;      // sum of -log p, nats

    [[nodiscard]] double mean_nll() const { return tokens > 0 ? nll / static_cast<double>(tokens) : 0; }
    [[nodiscard]] double perplexity() const;  // exp of the mean
};

// Every token but the first is predicted exactly once. A window holds `context` inputs and predicts the token after each; the
// next window begins `stride` further on and scores only what is new. `progress` is told how many are done.
[[nodiscard]] PerplexityResult perplexity(const DeepSeek& model, Ops& ops, std::span<const int32_t> tokens,
                                          const PerplexityOptions& options,
                                          const std::function<void(const PerplexityResult& so_far)>& progress = {});

}  // namespace fathom
