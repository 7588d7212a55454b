// Advantages of groups of answers, and the clipped policy objective with its published corrections. All on the host, in double:
// one number per token, where the model spent millions of operations on it (docs/decisions/006).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fathom {

enum class RewardScaling : uint8_t {
    kGroup,  // (R - mean) / std of its group: GRPO (DeepSeekMath 4.1.1)
    kBatch,  // (R - mean of its group) / std of the whole batch
    kNone,   // R - mean: Dr. GRPO, V3.2
};

// rewards: groups of `group_size`, NaN for an answer that could not be judged. Such answers count in no mean and get 0; so does
// a group whose rewards are all equal. Deviations are of samples (n - 1), with 1e-4 added, as in TRL.
[[nodiscard]] std::vector<double> group_advantages(std::span<const double> rewards, int64_t group_size, RewardScaling scaling);

enum class ImportanceLevel : uint8_t {
    kToken,     // one ratio per token
    kSequence,  // exp of the mean log-ratio, for all tokens of an answer: GSPO
};
enum class LossType : uint8_t {
    kGrpo,    // mean over answers of the mean over their tokens
    kBnpo,    // sum / tokens of the step
    kDrGrpo,  // sum / (answers * max_completion_length)
    kDapo,    // sum / tokens of the step, which is our batch: as kBnpo
};
// Estimators of KL(policy | reference) at a sampled token, with log r = log reference - log policy (Schulman 2020).
enum class KlEstimator : uint8_t { kK1 /* -log r */, kK2 /* (log r)^2 / 2 */, kK3 /* r - log r - 1 */ };

struct PolicyLossOptions {
    double epsilon = 0.2, epsilon_high = 0.2;  // the ratio is clipped to [1 - epsilon, 1 + epsilon_high]
    double delta = 0;                          // upper bound of the unclipped ratio (INTELLECT-2); 0: none
    double beta = 0;                           // weight of the KL term; 0: no reference needed
    KlEstimator kl_estimator = KlEstimator::kK3;
    bool unbiased_kl = false;    // V3.2: the estimate times the ratio, differentiated through both
    double off_policy_mask = 0;  // V3.2: answers with A < 0 and mean log(old / policy) above this are left out; 0: none
    ImportanceLevel importance_sampling_level = ImportanceLevel::kToken;
    LossType loss_type = LossType::kDapo;
    int64_t max_completion_length = 0;  // for kDrGrpo
};

// One answer: log-probabilities of its tokens.
struct PolicyTokens {
    std::span<const float> logprob;    // of the policy in training
    std::span<const float> old;        // of the policy that sampled
    std::span<const float> reference;  // empty where beta = 0
    double advantage = 0;
};

// What a loss is divided by: of all answers of an optimizer step, however it is cut into batches.
struct PolicyNormalizer {
    int64_t answers = 0, tokens = 0;
};

// Sums over tokens, but for `loss`; the caller divides.
struct PolicyLossSums {
    double loss = 0;
    double kl = 0, ratio = 0;
    int64_t tokens = 0, clipped_low = 0, clipped_high = 0, masked_answers = 0;

    void add(const PolicyLossSums& other);
};

// Adds one answer's part of the loss, and writes its derivative by each log-probability of the policy to `dlogprob`.
[[nodiscard]] PolicyLossSums policy_loss(std::span<double> dlogprob, const PolicyTokens& answer,
                                         const PolicyLossOptions& options, const PolicyNormalizer& over);

}  // namespace fathom
