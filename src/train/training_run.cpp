#include "train/training_run.h"

#include <fmt/format.h>

#include "base/interrupt.h"
#include "train/init_from.h"
#include "train/run_folder.h"

namespace fathom {

TrainingRun::TrainingRun(const char* title, const TrainConfig& config, Ops& ops, const RunOptions& options)
    : title_(title),
      config_(config),
      ops_(ops),
      options_(options) {}

RunSummary TrainingRun::train() {
    RunFolder folder(config_, options_.resume);
    prepare();
    RunSummary summary;
    if (folder.from()) resume(folder, summary);
    folder.open(summary.first_step);
    Progress progress(title_, config_.training.steps, "steps", options_.progress);
    try {
        while (state().step < config_.training.steps && !interrupted()) one_step(folder, summary, progress);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::kInterrupted) throw;  // in the middle of a step, which is made again on resuming
    }
    summary.steps = state().step;
    summary.tokens = state().tokens;
    summary.interrupted = summary.steps < config_.training.steps;
    const bool nothing_done = summary.interrupted && summary.steps == 0;
    if (saved_step_ != summary.steps && !nothing_done) save(folder);
    const auto checkpoints = training_checkpoints(folder.checkpoints());
    if (!checkpoints.empty()) summary.checkpoint = checkpoints.back();
    progress.finish(last_note(summary));
    return summary;
}

void TrainingRun::prepare() {
    tokenizer_ = tokenizer_folder(config_.model.tokenizer);
    open_data();
    model_ = std::make_unique<DeepSeek>(config_.model.config);
    const std::optional<LoadedModel> initial = bind_initial_weights(config_, *model_, ops_);
    open_trainer();
    if (!initial) optimizer().initialize(config_.job.seed, config_.model.init_std);
}

void TrainingRun::resume(const RunFolder& folder, RunSummary& summary) {
    const std::filesystem::path& checkpoint = *folder.from();
    const TrainerState from = load_training_checkpoint(checkpoint, *model_, ops_, optimizer());
    restore(from, checkpoint);
    summary.first_step = from.step;
    if (folder.from_here()) saved_step_ = from.step;
    if (from.step > config_.training.steps) {
        throw Error(ErrorKind::kUsage,
                    fmt::format("{} is beyond training.steps = {}", checkpoint.string(), config_.training.steps));
    }
}

void TrainingRun::one_step(RunFolder& folder, RunSummary& summary, Progress& progress) {
    StepMetrics metrics = step(summary);
    summary.loss = metrics.loss;
    folder.log(metrics);  // before the checkpoint: a run killed in between repeats the step and drops this line
    if (config_.checkpoint.every > 0 && metrics.step % config_.checkpoint.every == 0) save(folder);
    progress.update(metrics.step, note(metrics));
}

void TrainingRun::save(const RunFolder& folder) {
    save_training_checkpoint(folder.checkpoints(), *model_, ops_, optimizer(), state(),
                             {.tokenizer = tokenizer_,
                              .keep = config_.checkpoint.keep,
                              .write_more = [this](const std::filesystem::path& path) { save_more(path); }});
    saved_step_ = state().step;
}

bool TrainingRun::validates(int64_t step) const {
    const int64_t every = config_.metrics.valid_every;
    return step == config_.training.steps || (every > 0 && step % every == 0);
}

}  // namespace fathom
