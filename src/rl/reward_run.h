// Training of a reward model: of two answers to one prompt the better one shall score higher.
#pragma once

#include "train/run.h"

namespace fathom {

struct RewardConfig {
    TrainConfig train;  // data: pairs (rl/preferences.h), each sequence of up to data.sequence_length tokens; the model's head
                        // has one label whatever the file says
    // [reward]
    int64_t pairs_per_step = 16;
    double center_rewards_coefficient = 0;  // pulls the mean of scores to 0
    std::string chat_format = "auto";

    [[nodiscard]] static RewardConfig load(const std::filesystem::path& file, std::span<const std::string> overrides);
};

// Trains to training.steps. From a language model the head starts at 0, so all first scores are equal. The summary's
// valid_loss is that of data.valid; its accuracy is in the metrics. Errors as run_training.
[[nodiscard]] RunSummary run_reward_training(const RewardConfig& config, Ops& ops, const RunOptions& options);

}  // namespace fathom
