// Group Relative Policy Optimization (DeepSeekMath 4.1): sample groups of answers, judge them, move the policy towards the
// better ones. Sampling and training are the same forward on the same weights, so nothing is copied and nothing drifts.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/tokenizer.h"
#include "rl/grpo_config.h"
#include "rl/prompts.h"
#include "rl/rollout.h"
#include "train/learner.h"
#include "train/trainer.h"

namespace fathom {

// A generation and how far it is used up. Saved with every checkpoint.
struct RolloutBuffer {
    std::vector<Rollout> rollouts;
    int64_t sampled_at = 0;  // updates made when it was sampled
    int64_t uses = 0;        // steps made with it
    uint64_t streams = 0;    // random streams handed out so far, over the whole run
};

class Grpo {
public:
    // `reference`: the policy of the KL term; null where beta = 0. All references must outlive the object.
    Grpo(const GrpoConfig& config, DeepSeek& model, DeepSeek* reference, Ops& ops, const Tokenizer& tokenizer,
         std::vector<Prompt> prompts, bool deterministic);

    // One optimizer step; samples first when the last generation is used up.
    [[nodiscard]] StepMetrics step();
    // Greedy answers to `prompts`: mean reward and share of answers with full marks of the first reward function.
    [[nodiscard]] std::vector<std::pair<std::string, double>> evaluate(std::span<const Prompt> prompts);

    [[nodiscard]] Learner& learner() { return learner_; }
    [[nodiscard]] TrainerState state() const { return {learner_.step(), learner_.tokens(), order_.state()}; }
    [[nodiscard]] const RolloutBuffer& buffer() const { return buffer_; }
    void restore(const TrainerState& state, RolloutBuffer buffer);
    [[nodiscard]] const std::vector<Prompt>& prompts() const { return prompts_; }
    [[nodiscard]] std::string completion_text(const Rollout& rollout) const;
    // Reasons why answers could not be judged, since the last call.
    [[nodiscard]] std::vector<std::string> take_problems() { return std::exchange(problems_, {}); }

private:
    struct Totals;  // of a step, over its batches
    using Group = std::span<const Rollout* const>;

    const GrpoConfig& config_;
    DeepSeek* reference_;
    Ops& ops_;
    const Tokenizer& tokenizer_;
    std::vector<Prompt> prompts_;
    bool deterministic_;
    Learner learner_;
    PromptOrder order_;
    std::vector<std::unique_ptr<Reward>> rewards_;
    std::unique_ptr<RolloutSampler> sampler_, greedy_;  // made when first needed
    RolloutBuffer buffer_;
    std::vector<std::string> problems_;

    [[nodiscard]] RolloutOptions rollout_options() const;
    void generate(StepMetrics& metrics);
    [[nodiscard]] std::vector<Rollout> sample_groups(int64_t groups);
    void judge(std::vector<Rollout>& rollouts, std::span<const Prompt> prompts, StepMetrics* metrics);
    void assign_advantages();
    void describe_generation(StepMetrics& metrics, double sampling_seconds, double judging_seconds) const;
    [[nodiscard]] bool teaches(const Rollout& rollout) const;
    [[nodiscard]] std::vector<std::vector<const Rollout*>> batches_of(Group rollouts) const;
    void train_on(Group rollouts, const PolicyNormalizer& over, Totals& totals);
    [[nodiscard]] std::vector<float> reference_logprobs(const TokenBatch& tokens, const std::vector<int32_t>& rows,
                                                        const std::vector<int32_t>& targets,
                                                        const std::vector<int32_t>& allowed);
};

}  // namespace fathom
