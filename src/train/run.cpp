#include "train/run.h"

#include <fmt/format.h>
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "base/file.h"
#include "base/interrupt.h"
#include "io/token_shards_prepare.h"
#include "io/tokenizer.h"
#include "train/init_from.h"
#include "train/run_folder.h"
#include "train/train_checkpoint.h"

namespace fathom {
namespace {

uint64_t hash_files(const std::filesystem::path& tokenizer) {
    uint64_t hash = 0;
    for (const char* name : {"tokenizer.json", "tiktoken.model", "tokenizer_config.json"}) {
        const auto file = std::filesystem::is_directory(tokenizer) ? tokenizer / name : tokenizer;
        if (std::filesystem::exists(file)) hash = hash * 31 + hash_bytes(MappedFile(file).bytes());
    }
    return hash;
}

// Tokenises text files into `out`, or finds that this was done.
std::filesystem::path prepare_text(const TrainConfig& config, const std::vector<std::filesystem::path>& inputs,
                                   const std::filesystem::path& out, ThreadPool& threads, ProgressMode progress) {
    const Tokenizer tokenizer = open_tokenizer(config);
    PrepareOptions options;
    for (const auto& input : inputs) options.inputs.push_back({input, {}});
    options.tokenizer_hash = hash_files(config.model.tokenizer);
    options.vocab_size = tokenizer.vocab_size();
    options.bos_id = tokenizer.bos_id();
    options.eos_id = *tokenizer.eos_id();
    options.out = out;
    (void)prepare_tokens(
        options, [&](std::string_view text) { return tokenizer.encode(text, false); }, threads, progress);
    return out;
}

void check_vocabulary(const TokenDataset& data, const ModelConfig& config) {
    if (data.vocab_size() <= config.vocab_size) return;
    throw Error(ErrorKind::kInput, fmt::format("{}: tokens of a vocabulary of {} do not fit the model's vocab_size {}",
                                               data.folder().string(), data.vocab_size(), config.vocab_size));
}

// Text or token shards, packed.
std::unique_ptr<BatchSource> open_documents(const TrainConfig& config, ThreadPool& threads, ProgressMode progress,
                                            const std::string& name, const std::vector<std::filesystem::path>& inputs,
                                            bool training) {
    const bool shards = inputs.size() == 1 && std::filesystem::is_directory(inputs[0]);
    TokenDataset data(shards ? inputs[0] : prepare_text(config, inputs, config.job.dir / "data" / name, threads, progress));
    check_vocabulary(data, config.model.config);
    return std::make_unique<PackedLoader>(std::move(data),
                                          PackedLoaderOptions{config.data.sequence_length, config.training.rows_per_batch,
                                                              training ? config.job.seed : 0, training});
}

// One start of a run: from nothing or from a checkpoint to the last step or an interruption.
class Run {
public:
    Run(const TrainConfig& config, Ops& ops, const RunOptions& options) : config_(config), ops_(ops), options_(options) {}

    RunSummary train(const OpenSource& open) {
        RunFolder folder(config_, options_.resume);
        prepare(open);
        RunSummary summary;
        if (folder.from()) {
            trainer_->restore(load_training_checkpoint(*folder.from(), *model_, ops_, trainer_->optimizer()));
            summary.first_step = trainer_->state().step;
            if (folder.from_here()) saved_step_ = summary.first_step;
        }
        if (summary.first_step > config_.training.steps) {
            throw Error(ErrorKind::kUsage,
                        fmt::format("{} is beyond training.steps = {}", folder.from()->string(), config_.training.steps));
        }
        folder.open(summary.first_step);
        Progress progress("train", config_.training.steps, "steps", options_.progress);
        while (trainer_->state().step < config_.training.steps && !interrupted()) {
            StepMetrics step = one_step(summary);
            folder.log(step);  // before the checkpoint: a run killed in between repeats the step and drops this line
            if (config_.checkpoint.every > 0 && step.step % config_.checkpoint.every == 0) save(folder);
            progress.update(step.step, note(step));
        }
        summary.steps = trainer_->state().step;
        summary.tokens = trainer_->state().tokens;
        summary.interrupted = summary.steps < config_.training.steps;
        if (saved_step_ != summary.steps) save(folder);
        summary.checkpoint = training_checkpoints(folder.checkpoints()).back();
        progress.finish(summary.loss ? fmt::format("loss {:.4f}", *summary.loss) : "");
        return summary;
    }

private:
    const TrainConfig& config_;
    Ops& ops_;
    const RunOptions& options_;
    std::filesystem::path tokenizer_;
    std::unique_ptr<DeepSeek> model_;
    std::unique_ptr<Trainer> trainer_;
    std::unique_ptr<BatchSource> valid_;
    int64_t saved_step_ = -1;

    void prepare(const OpenSource& open) {
        tokenizer_ = tokenizer_folder(config_.model.tokenizer);
        std::unique_ptr<BatchSource> source = open("train", config_.data.train, true);
        if (!config_.data.valid.empty()) valid_ = open("valid", config_.data.valid, false);
        model_ = std::make_unique<DeepSeek>(config_.model.config);
        const std::optional<LoadedModel> initial = bind_initial_weights(config_, *model_, ops_);
        trainer_ = std::make_unique<Trainer>(config_, *model_, ops_, std::move(source), options_.deterministic);
        if (!initial) trainer_->optimizer().initialize(config_.job.seed, config_.model.init_std);
    }

    StepMetrics one_step(RunSummary& summary) {
        StepMetrics step = trainer_->step();
        const bool last = step.step == config_.training.steps;
        summary.loss = step.loss;
        if (valid_ && (last || (config_.metrics.valid_every > 0 && step.step % config_.metrics.valid_every == 0))) {
            step.val_loss = summary.valid_loss = trainer_->evaluate(*valid_, config_.metrics.valid_batches);
        }
        return step;
    }

    void save(const RunFolder& folder) {
        save_training_checkpoint(folder.checkpoints(), *model_, ops_, trainer_->optimizer(), trainer_->state(),
                                 {.tokenizer = tokenizer_, .keep = config_.checkpoint.keep, .write_more = {}});
        saved_step_ = trainer_->state().step;
    }

    static std::string note(const StepMetrics& step) {
        std::string text =
            fmt::format("loss {:.4f}  |g| {:.2f}  {} tok/s", *step.loss, *step.grad_norm, human_count(*step.tokens_per_second));
        if (!step.max_vio.empty()) text += fmt::format("  MaxVio {:.2f}", *std::ranges::max_element(step.max_vio));
        return text;
    }
};

}  // namespace

RunSummary run_training(const TrainConfig& config, Ops& ops, ThreadPool& threads, const RunOptions& options) {
    return run_training(config, ops, options, [&](const auto& name, const auto& inputs, bool training) {
        return open_documents(config, threads, options.progress, name, inputs, training);
    });
}

RunSummary run_training(const TrainConfig& config, Ops& ops, const RunOptions& options, const OpenSource& open) {
    return Run(config, ops, options).train(open);
}

}  // namespace fathom
