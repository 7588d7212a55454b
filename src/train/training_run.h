// The life of a run of any kind of training: what it goes on from, its steps, its checkpoints, its end.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "train/run.h"
#include "train/train_checkpoint.h"

namespace fathom {

class RunFolder;

// One start of a run. A kind of training derives from it and brings its data, its step and its state.
class TrainingRun {
public:
    // All four must outlive the run.
    TrainingRun(const char* title, const TrainConfig& config, Ops& ops, const RunOptions& options);
    virtual ~TrainingRun() = default;
    TrainingRun(const TrainingRun&) = delete;
    TrainingRun& operator=(const TrainingRun&) = delete;

    // From nothing, or from a checkpoint, to training.steps or an interruption, which saves what was done. Throws Error{kUsage}
    // when the folder holds a run and `resume` does not say what to do with it, when another process is running in it, or when
    // the checkpoint lies beyond training.steps.
    [[nodiscard]] RunSummary train();

protected:
    // In this order: data is read before a large model is loaded.
    virtual void open_data() = 0;
    // model() has its initial weights, or none; whoever trains it takes them over.
    virtual void open_trainer() = 0;
    // The rest is asked for after both.
    [[nodiscard]] virtual Optimizer& optimizer() = 0;
    [[nodiscard]] virtual TrainerState state() const = 0;
    virtual void restore(const TrainerState& state, const std::filesystem::path& checkpoint) = 0;
    // One update, and the validation that is due; fills in the summary's losses. Interrupted, it may throw Error{kInterrupted}
    // with the state unchanged.
    [[nodiscard]] virtual StepMetrics step(RunSummary& summary) = 0;
    // For the progress line: of a step, and at the end.
    [[nodiscard]] virtual std::string note(const StepMetrics& step) const = 0;
    [[nodiscard]] virtual std::string last_note(const RunSummary& summary) const = 0;
    // What a checkpoint holds besides model, optimizer and position.
    virtual void save_more(const std::filesystem::path& /*checkpoint*/) const {}

    [[nodiscard]] const TrainConfig& train_config() const { return config_; }
    [[nodiscard]] Ops& ops() const { return ops_; }
    [[nodiscard]] const RunOptions& options() const { return options_; }
    [[nodiscard]] DeepSeek& model() const { return *model_; }
    // Whether a validation is due after this step.
    [[nodiscard]] bool validates(int64_t step) const;

private:
    const char* title_;
    const TrainConfig& config_;
    Ops& ops_;
    const RunOptions& options_;
    std::filesystem::path tokenizer_;
    std::unique_ptr<DeepSeek> model_;
    int64_t saved_step_ = -1;

    void prepare();
    void resume(const RunFolder& folder, RunSummary& summary);
    void one_step(RunFolder& folder, RunSummary& summary, Progress& progress);
    void save(const RunFolder& folder);
};

}  // namespace fathom
