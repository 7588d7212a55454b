// On-policy distillation: the student writes, the teacher says at every token what it would have thought (GKD, Agarwal et al.
// 2024). Teacher and student share a tokenizer and nothing else: sizes and MoE or dense may differ.
#pragma once

#include "train/run.h"

namespace fathom {

struct DistillConfig {
    TrainConfig train;  // data.train: prompts, as for GRPO; a line's "completion" is what off-policy steps learn from
    // [distill]
    std::filesystem::path teacher;  // a checkpoint
    bool reverse_kl = true;         // KL(student | teacher), which seeks a mode; else KL(teacher | student), which covers all
    double on_policy = 1;           // share of steps on the student's own answers; the others use the data's completions
    double temperature = 1;         // of the student's sampling
    int64_t prompts_per_step = 16;
    int64_t max_prompt_length = 512, max_completion_length = 256;
    int64_t max_sequences = 64;
    std::string chat_format = "auto";

    [[nodiscard]] static DistillConfig load(const std::filesystem::path& file, std::span<const std::string> overrides);
};

// Trains to training.steps. Errors as run_training, and Error{kInput} for a teacher of another vocabulary.
[[nodiscard]] RunSummary run_distill(const DistillConfig& config, Ops& ops, const RunOptions& options);

}  // namespace fathom
