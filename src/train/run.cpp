#include "train/run.h"

#include <fmt/format.h>
#include <algorithm>
#include <memory>
#include <utility>

#include "base/file.h"
#include "io/token_shards_prepare.h"
#include "io/tokenizer.h"
#include "train/run_folder.h"
#include "train/training_run.h"

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

// Cross-entropy on the targets of a source of batches.
class Run : public TrainingRun {
public:
    Run(const TrainConfig& config, Ops& ops, const RunOptions& options, const OpenSource& open)
        : TrainingRun("train", config, ops, options),
          open_(open) {}

protected:
    void open_data() override {
        source_ = open_("train", train_config().data.train, true);
        if (!train_config().data.valid.empty()) valid_ = open_("valid", train_config().data.valid, false);
    }
    void open_trainer() override {
        trainer_ = std::make_unique<Trainer>(train_config(), model(), ops(), std::move(source_), options().deterministic);
    }
    [[nodiscard]] Optimizer& optimizer() override { return trainer_->optimizer(); }
    [[nodiscard]] TrainerState state() const override { return trainer_->state(); }
    void restore(const TrainerState& state, const std::filesystem::path&) override { trainer_->restore(state); }

    [[nodiscard]] StepMetrics step(RunSummary& summary) override {
        StepMetrics step = trainer_->step();
        if (valid_ && validates(step.step))
            step.val_loss = summary.valid_loss = trainer_->evaluate(*valid_, train_config().metrics.valid_batches);
        return step;
    }
    [[nodiscard]] std::string note(const StepMetrics& step) const override {
        std::string text =
            fmt::format("loss {:.4f}  |g| {:.2f}  {} tok/s", *step.loss, *step.grad_norm, human_count(*step.tokens_per_second));
        if (!step.max_vio.empty()) text += fmt::format("  MaxVio {:.2f}", *std::ranges::max_element(step.max_vio));
        return text;
    }
    [[nodiscard]] std::string last_note(const RunSummary& summary) const override {
        return summary.loss ? fmt::format("loss {:.4f}", *summary.loss) : "";
    }

private:
    const OpenSource& open_;
    std::unique_ptr<BatchSource> source_, valid_;
    std::unique_ptr<Trainer> trainer_;
};

}  // namespace

RunSummary run_training(const TrainConfig& config, Ops& ops, ThreadPool& threads, const RunOptions& options) {
    return run_training(config, ops, options, [&](const auto& name, const auto& inputs, bool training) {
        return open_documents(config, threads, options.progress, name, inputs, training);
    });
}

RunSummary run_training(const TrainConfig& config, Ops& ops, const RunOptions& options, const OpenSource& open) {
    return Run(config, ops, options, open).train();
}

}  // namespace fathom
