// From logits to a token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "infer/token_mask.h"
#include "ops/sampling.h"

namespace fathom {

// A pure function of its arguments: every token has a random number of its own, Philox(seed, stream) at (step, id), so what a
// request says depends neither on its neighbours in the batch nor on the time of day, and on logits that differ a little it
// mostly says the same. Never returns an id >= vocab_limit (rows that only pad the matrix), nor
// one outside `mask` unless that is empty. Throws Error{kInput} when the logits hold NaN or no finite value, or when no token
// is allowed.
[[nodiscard]] int32_t sample(std::span<const float> logits, const SamplingParams& params, const SampleHistory& history,
                             uint64_t stream, uint64_t step, int64_t vocab_limit, const TokenMask& mask = {});

struct Sample {
    int32_t token = 0;
    float logprob = 0;  // under the model itself: softmax of the logits as given
};

// The log-probability of `token` under the model itself, and those of the `count` most probable tokens, best first.
struct TokenLogprobs {
    float logprob = 0;
    std::vector<Sample> top;
};
[[nodiscard]] TokenLogprobs token_logprobs(std::span<const float> logits, int32_t token, int64_t count);

}  // namespace fathom
