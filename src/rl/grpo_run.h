// A GRPO run as a folder: that of any training (train/run.h), with rollouts.safetensors in every checkpoint and, where asked
// for, completions.jsonl.
#pragma once

#include "rl/grpo_config.h"
#include "train/run.h"

namespace fathom {

// Trains to training.steps. Errors as run_training. Answers that could not be judged are reported on stderr and counted.
[[nodiscard]] RunSummary run_grpo(const GrpoConfig& config, Ops& ops, const RunOptions& options);

}  // namespace fathom
