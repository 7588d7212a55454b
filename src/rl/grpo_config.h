// What a GRPO run is told: the sections of any training, and [grpo] with TRL's names.
#pragma once

#include "rl/policy_loss.h"
#include "rl/reward.h"
#include "train/config.h"

namespace fathom {

struct GrpoConfig {
    TrainConfig
        train;  // data.train: prompts; data.valid: held-out prompts; a batch has rows_per_batch * sequence_length tokens
    PolicyLossOptions loss;

    int64_t num_generations = 8;                                   // answers per prompt: G
    int64_t prompts_per_step = 8;                                  // prompts of one generation
    int64_t steps_per_generation = 1;                              // parts a generation is cut into, one optimizer step each
    int64_t num_iterations = 1;                                    // times a generation is used
    int64_t max_prompt_length = 512, max_completion_length = 256;  // tokens
    double temperature = 1, top_p = 1, min_p = 0;
    int64_t top_k = 0;
    RewardScaling scale_rewards = RewardScaling::kGroup;
    bool mask_truncated_completions = false;  // answers that were cut teach nothing
    bool keep_routing = false;                // V3.2: training uses the experts that sampling used
    bool keep_sampling_mask = false;          // V3.2: probabilities among the ids that top_k, top_p, min_p left
    bool dynamic_sampling = false;            // DAPO: groups whose rewards are all equal are replaced by others ...
    int64_t max_resamples = 3;                // ... so many times
    bool shuffle_rewards = false;             // the control of an experiment: rewards go to random answers of their generation
    std::vector<std::string> reward_funcs{"math"};
    std::vector<double> reward_weights;  // one per function; empty: all 1
    RewardOptions reward;
    std::filesystem::path reference_model;  // for beta > 0; empty: model.init_from
    std::string chat_format = "auto";
    bool thinking = false;
    int64_t max_sequences = 64;    // sampled at a time
    int64_t max_batch_rows = 512;  // of the sampler
    int64_t log_completions = 0;   // answers of every generation that completions.jsonl gets; 0: none

    [[nodiscard]] int64_t rollouts() const { return prompts_per_step * num_generations; }  // of a generation
    [[nodiscard]] int64_t uses() const { return steps_per_generation * num_iterations; }   // steps per generation

    [[nodiscard]] static GrpoConfig load(const std::filesystem::path& file, std::span<const std::string> overrides);
    [[nodiscard]] static GrpoConfig parse(std::string_view toml, std::span<const std::string> overrides,
                                          const std::filesystem::path& base);
};

}  // namespace fathom
