// The folder of a run of any kind of training: who may write there, what it goes on from, what it reports.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>

#include "io/tokenizer.h"
#include "train/config.h"
#include "train/metrics.h"
#include "train/tensorboard.h"

namespace fathom {

class RunFolder {
public:
    // Takes the folder for this process and chooses the checkpoint to go on from. `resume` "": a new run; "auto": go on if
    // there is something to go on from; "latest"; or a checkpoint's path. Throws Error{kUsage} when the folder holds a run and
    // `resume` does not say what to do with it, or when another process is running in it.
    RunFolder(const TrainConfig& config, const std::string& resume);
    ~RunFolder();
    RunFolder(const RunFolder&) = delete;
    RunFolder& operator=(const RunFolder&) = delete;

    [[nodiscard]] const std::optional<std::filesystem::path>& from() const { return from_; }
    [[nodiscard]] std::filesystem::path checkpoints() const { return config_.job.dir / "checkpoints"; }
    // Whether the checkpoint to go on from is the folder's own.
    [[nodiscard]] bool from_here() const { return from_here_; }

    // Writes config.toml and opens metrics.jsonl and tb/ behind `first_step`; what a killed run wrote after it is dropped.
    void open(int64_t first_step);
    // Fills in `elapsed` and writes the line if its step is one to be reported.
    void log(StepMetrics& metrics);

private:
    using Clock = std::chrono::steady_clock;
    const TrainConfig& config_;
    int lock_ = -1;
    bool from_here_ = false;
    std::optional<std::filesystem::path> from_;
    std::optional<MetricsWriter> metrics_;
    std::optional<TensorBoardWriter> board_;
    double earlier_ = 0;  // seconds of earlier starts
    Clock::time_point start_;
};

// The folder that holds a tokenizer's files; empty without one. Throws Error{kInput} where it does not exist.
[[nodiscard]] std::filesystem::path tokenizer_folder(const std::filesystem::path& tokenizer);

// The tokenizer that training on text needs: model.tokenizer, or that of init_from. Throws Error{kInput} where there is none,
// or where its tokens do not fit the model.
[[nodiscard]] Tokenizer open_tokenizer(const TrainConfig& config);

}  // namespace fathom
