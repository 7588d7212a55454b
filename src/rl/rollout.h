// Answers to prompts, sampled by the serving engine from the very weights that are being trained.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "infer/engine.h"
#include "train/learner.h"

namespace fathom {

struct Rollout {
    int64_t prompt = 0;           // index of the prompt
    std::vector<int32_t> tokens;  // prompt and completion
    int64_t prompt_length = 0;
    bool truncated = false;        // cut at the longest
    std::vector<float> logprobs;   // of the completion's tokens, under the policy that sampled them
    std::vector<int32_t> allowed;  // [completion, words]: ids that the sampler left (Ops::token_logprob); empty: all
    ExpertChoices routes;          // experts of all tokens but the last, -1 where unknown; empty where not recorded
    std::vector<double> rewards;   // per reward function
    double reward = 0;             // NaN: not judged
    double advantage = 0;

    [[nodiscard]] int64_t completion_length() const { return std::ssize(tokens) - prompt_length; }
    bool operator==(const Rollout&) const = default;
};

struct RolloutOptions {
    SamplingParams sampling;  // with its seed; temperature > 0
    int64_t max_new_tokens = 16;
    std::vector<int32_t> stop_ids;
    bool record_routes = false;
    bool keep_mask = false;      // record which ids top_k, top_p and min_p left, and take probabilities among these
    int64_t max_sequences = 64;  // running at a time
    int64_t max_batch_rows = 512;
    CacheType cache_type;
    bool deterministic = true;
    int64_t vocab_limit = 0;
};

struct RolloutRequest {
    int64_t prompt = 0;
    std::span<const int32_t> tokens;
    uint64_t stream = 0;  // of random numbers: no two answers of a run share one
};

// An engine on live weights: they may change between calls, not within one.
class RolloutSampler {
public:
    // Room for prompts of up to `longest_prompt` tokens. Model and ops must outlive the sampler.
    RolloutSampler(const DeepSeek& model, Ops& ops, const RolloutOptions& options, int64_t longest_prompt);
    ~RolloutSampler();

    // One answer per request, in their order. The logarithm of a probability is that of softmax(logits / temperature), computed
    // by the op that training uses; its bits do not depend on who else is sampled. Interrupted, it throws Error{kInterrupted}
    // and is of no further use.
    [[nodiscard]] std::vector<Rollout> sample(std::span<const RolloutRequest> requests);

private:
    class Session;
    std::unique_ptr<Session> session_;
};

// The same for one call.
[[nodiscard]] std::vector<Rollout> sample_rollouts(const DeepSeek& model, Ops& ops, std::span<const RolloutRequest> requests,
                                                   const RolloutOptions& options);

// Bits of the ids that the rules leave of one row of logits: min_p, top_k, top_p after the temperature, as in infer/sampler.h.
[[nodiscard]] std::vector<int32_t> sampling_mask(std::span<const float> logits, const SamplingParams& params);

// A packed training batch of rollouts: their tokens but the last, each predicting the next; only completions have targets.
[[nodiscard]] TokenBatch pack_rollouts(std::span<const Rollout* const> rollouts);
// Their recorded experts, laid out as that batch. Throws Error{kInput} where some are unknown.
[[nodiscard]] ExpertChoices pack_routes(std::span<const Rollout* const> rollouts);
// Tokens that `used` sent to another set or order of experts than recorded, over all layers; unknown ones do not count.
[[nodiscard]] int64_t count_route_differences(std::span<const Rollout* const> rollouts, const ExpertChoices& used);

}  // namespace fathom
