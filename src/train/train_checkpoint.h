// Training checkpoints: a Hugging Face folder that any tool can load, plus what a resumed run needs to continue to the bit.
//   step-00000100/config.json, model.safetensors, tokenizer files    the model
//                /optimizer/model.safetensors                       f32 masters (of bf16 parameters) and moments
//                /trainer.json                                      step, tokens, data position
//                /...                                               what else a kind of training must not forget
// Nothing in them names a path, a time or a machine, so equal runs write equal bytes.
#pragma once

#include <filesystem>
#include <functional>
#include <vector>

#include "train/trainer.h"

namespace fathom {

struct CheckpointOptions {
    std::filesystem::path tokenizer;  // a folder whose tokenizer files are copied along; empty: none
    int64_t keep = 3;                 // checkpoints
    std::function<void(const std::filesystem::path& folder)> write_more;  // adds files of its own before the rename
};

// Writes `folder`/step-... whole or not at all (a .partial folder renamed at the end), then removes all but the last `keep`.
void save_training_checkpoint(const std::filesystem::path& folder, DeepSeek& model, Ops& ops, Optimizer& optimizer,
                              const TrainerState& state, const CheckpointOptions& options);

// Fills parameters, masters, moments and router biases; returns the trainer's position. Throws Error{kInput} when the
// checkpoint is of another model.
[[nodiscard]] TrainerState load_training_checkpoint(const std::filesystem::path& checkpoint, DeepSeek& model, Ops& ops,
                                                    Optimizer& optimizer);

// Clears away what a killed run was writing or removing. Only for who holds the run's folder.
void remove_partial_checkpoints(const std::filesystem::path& folder);

// Complete checkpoints of a run, oldest first.
[[nodiscard]] std::vector<std::filesystem::path> training_checkpoints(const std::filesystem::path& folder);

}  // namespace fathom
