// Supervised fine-tuning: training on conversations, where only what the assistant said is learned.
#pragma once

#include "io/chat_format.h"
#include "train/run.h"

namespace fathom {

struct SftConfig {
    TrainConfig train;
    // [sft]
    std::string chat_format = "auto";  // auto, v2, v3, r1, v31
    bool assistant_only_loss = true;   // false: prompts are learned too
    bool drop_overlong = false;        // examples beyond data.sequence_length are left out instead of cut

    // As TrainConfig::load. data.train and data.valid are JSON Lines (io/chat_examples.h).
    [[nodiscard]] static SftConfig load(const std::filesystem::path& file, std::span<const std::string> overrides);
    [[nodiscard]] static SftConfig parse(std::string_view toml, std::span<const std::string> overrides,
                                         const std::filesystem::path& base);
};

// Trains to training.steps; a batch holds whole examples up to rows_per_batch * sequence_length tokens. Errors as run_training.
[[nodiscard]] RunSummary run_sft(const SftConfig& config, Ops& ops, ThreadPool& threads, const RunOptions& options);

// A format by its name in configuration files, "auto" by what the tokenizer and the model's folder say. Throws Error{kInput}
// for an unknown one.
[[nodiscard]] ChatFormat chat_format_named(const std::string& name, const Tokenizer& tokenizer, const TrainConfig& config);

}  // namespace fathom
