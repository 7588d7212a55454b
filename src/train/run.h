// A training run as a folder: config.toml, metrics.jsonl, tb/, checkpoints/step-.../, and data/ when text had to be tokenised.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "base/threads.h"
#include "io/packed_loader.h"
#include "train/config.h"

namespace fathom {

struct RunOptions {
    std::string resume;  // "": a new run; "auto": go on if there is something to go on from; "latest"; or a checkpoint's path
    bool deterministic = false;
    ProgressMode progress = ProgressMode::kAuto;
};

struct RunSummary {
    int64_t first_step = 0, steps = 0;  // steps done before this start, and in all
    int64_t tokens = 0;
    std::optional<double> loss, valid_loss;  // of the last step made and of the last validation; absent when there was none
    std::filesystem::path checkpoint;
    bool interrupted = false;  // Ctrl-C: saved and stopped
};

// Opens data.train (`training`: for ever, shuffled) or data.valid (once, in order); `name` is "train" or "valid".
using OpenSource = std::function<std::unique_ptr<BatchSource>(const std::string& name,
                                                              const std::vector<std::filesystem::path>& inputs, bool training)>;

// Trains to training.steps on documents: text, or token shards. Throws Error{kUsage} when the folder holds a run and `resume`
// does not say what to do with it, or when another process is running in it.
[[nodiscard]] RunSummary run_training(const TrainConfig& config, Ops& ops, ThreadPool& threads, const RunOptions& options);
// The same on any other source of batches.
[[nodiscard]] RunSummary run_training(const TrainConfig& config, Ops& ops, const RunOptions& options, const OpenSource& open);

}  // namespace fathom
