// How a token is drawn from logits: by the host (infer/sampler.h) or by a device that need not hand them out
// (ops/step_recorder.h).
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace fathom {

// The defaults sample from the model's own distribution. The order in which they act is vLLM's:
//   1. logit_bias is added.
//   2. repetition_penalty r (CTRL, Keskar 2019): logits of tokens in the prompt or the answer are divided by r where positive,
//      multiplied where negative.
//   3. frequency_penalty * count and presence_penalty are subtracted for tokens of the answer (OpenAI's rule: not the prompt).
//   4. temperature 0 takes the largest logit, the lowest id among equals. Otherwise logits are divided by it.
//   5. min_p drops tokens less probable than min_p times the most probable one.
//   6. top_k keeps the k largest (exactly k; the lower id among equals).
//   7. top_p keeps the smallest set of largest probabilities, renormalised after 5 and 6, that sums to at least top_p.
struct SamplingParams {
    double temperature = 1;
    double top_p = 1;
    int64_t top_k = 0;  // 0: all
    double min_p = 0;
    double repetition_penalty = 1;
    double frequency_penalty = 0;
    double presence_penalty = 0;
    uint64_t seed = 0;
    std::vector<std::pair<int32_t, float>> logit_bias;

    [[nodiscard]] bool penalizes() const { return repetition_penalty != 1 || frequency_penalty != 0 || presence_penalty != 0; }
    [[nodiscard]] bool as_given() const { return !penalizes() && logit_bias.empty(); }  // logits are not changed
    // Throws Error{kUsage} naming the first value out of range.
    void validate() const;
};

// What has been said, for the penalties.
struct SampleHistory {
    std::span<const int32_t> tokens;  // prompt and answer
    int64_t prompt_length = 0;
};

// One token that is wanted.
struct TokenQuery {
    const SamplingParams* params = nullptr;
    SampleHistory history;
    uint64_t stream = 0, step = 0;      // its random numbers are Philox(params->seed, stream) at (step, id)
    std::span<const uint64_t> allowed;  // a bit per id, 64 to a word; empty: all, else those beyond it are not
};

}  // namespace fathom
