#include "train/run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "base/file.h"
#include "base/interrupt.h"
#include "checkpoint/checkpoint.h"
#include "io/token_shards_prepare.h"
#include "io/tokenizer.h"
#include "train/tensorboard.h"
#include "train/train_checkpoint.h"

namespace fathom {
namespace {

// Held while a process trains in the folder; the system lets go of it when the process ends, however it ends.
class FolderLock {
public:
    explicit FolderLock(const std::filesystem::path& folder)
        : fd_(::open((folder / ".lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644)) {
        if (fd_ < 0) throw Error(ErrorKind::kIo, fmt::format("{}: cannot write there", folder.string()));
        if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
        ::close(fd_);
        throw Error(ErrorKind::kUsage,
                    fmt::format("{}: another process is training in this folder; give this run its own job.dir, or wait "
                                "for the other to end",
                                folder.string()));
    }
    ~FolderLock() { ::close(fd_); }
    FolderLock(const FolderLock&) = delete;
    FolderLock& operator=(const FolderLock&) = delete;

private:
    int fd_;
};

// The checkpoint to go on from, if any.
std::optional<std::filesystem::path> choose_checkpoint(const TrainConfig& config, const std::string& resume) {
    const auto checkpoints = training_checkpoints(config.job.dir / "checkpoints");
    if (resume.empty()) {
        if (checkpoints.empty()) return std::nullopt;
        throw Error(ErrorKind::kUsage,
                    fmt::format("{} holds a run that is at {}: continue it with --resume auto, or choose another job.dir",
                                config.job.dir.string(), checkpoints.back().filename().string()));
    }
    if (resume == "auto" && checkpoints.empty()) return std::nullopt;
    if (resume != "auto" && resume != "latest") return resume;
    if (checkpoints.empty())
        throw Error(ErrorKind::kUsage, fmt::format("{}: no checkpoint to resume from", config.job.dir.string()));
    return checkpoints.back();
}

uint64_t hash_files(const std::filesystem::path& tokenizer) {
    uint64_t hash = 0;
    for (const char* name : {"tokenizer.json", "tiktoken.model", "tokenizer_config.json"}) {
        const auto file = std::filesystem::is_directory(tokenizer) ? tokenizer / name : tokenizer;
        if (std::filesystem::exists(file)) hash = hash * 31 + hash_bytes(MappedFile(file).bytes());
    }
    return hash;
}

// A folder of shards as it is; text files tokenised into `out` first.
TokenDataset open_data(const TrainConfig& config, const std::vector<std::filesystem::path>& inputs,
                       const std::filesystem::path& out, ThreadPool& threads, ProgressMode progress) {
    if (inputs.size() == 1 && std::filesystem::is_directory(inputs[0])) return TokenDataset(inputs[0]);
    if (config.model.tokenizer.empty()) throw Error(ErrorKind::kInput, "model.tokenizer is required to train on text files");
    const Tokenizer tokenizer = Tokenizer::load(config.model.tokenizer);
    if (!tokenizer.eos_id())
        throw Error(ErrorKind::kInput, fmt::format("{}: names no end-of-text token", config.model.tokenizer.string()));
    PrepareOptions options;
    for (const auto& input : inputs) options.inputs.push_back({input, {}});
    options.tokenizer_hash = hash_files(config.model.tokenizer);
    options.vocab_size = tokenizer.vocab_size();
    options.bos_id = tokenizer.bos_id();
    options.eos_id = *tokenizer.eos_id();
    options.out = out;
    (void)prepare_tokens(
        options, [&](std::string_view text) { return tokenizer.encode(text, false); }, threads, progress);
    return TokenDataset(out);
}

void check_vocabulary(const TokenDataset& data, const ModelConfig& config) {
    if (data.vocab_size() <= config.vocab_size) return;
    throw Error(ErrorKind::kInput, fmt::format("{}: tokens of a vocabulary of {} do not fit the model's vocab_size {}",
                                               data.folder().string(), data.vocab_size(), config.vocab_size));
}

// One start of a run: from nothing or from a checkpoint to the last step or an interruption.
class Run {
public:
    Run(const TrainConfig& config, Ops& ops, ThreadPool& threads, const RunOptions& options)
        : config_(config),
          ops_(ops),
          threads_(threads),
          options_(options),
          checkpoints_(config.job.dir / "checkpoints") {
        std::filesystem::create_directories(checkpoints_);
    }

    RunSummary train() {
        const FolderLock lock(config_.job.dir);
        const auto from = choose_checkpoint(config_, options_.resume);
        open();
        if (from) load_training_checkpoint(*from, *model_, ops_, *trainer_);
        RunSummary summary;
        summary.first_step = trainer_->state().step;
        start_ = std::chrono::steady_clock::now();
        write_text_atomically(config_.job.dir / "config.toml", config_.text);
        MetricsWriter metrics(config_.job.dir / "metrics.jsonl", summary.first_step);
        TensorBoardWriter board(config_.job.dir / "tb", summary.first_step + 1);
        Progress progress("train", config_.training.steps, "steps", options_.progress);
        while (trainer_->state().step < config_.training.steps && !interrupted()) {
            StepMetrics step = one_step(summary);
            if (step.step % config_.metrics.every == 0 || step.step == config_.training.steps || step.val_loss) {
                metrics.append(step);
                board.append(step.step, scalars(step));
            }
            progress.update(step.step, note(step));
        }
        summary.steps = trainer_->state().step;
        summary.tokens = trainer_->state().tokens;
        summary.interrupted = summary.steps < config_.training.steps;
        if (saved_step_ != summary.steps) save();
        summary.checkpoint = training_checkpoints(checkpoints_).back();
        progress.finish(fmt::format("loss {:.4f}", summary.loss));
        return summary;
    }

private:
    const TrainConfig& config_;
    Ops& ops_;
    ThreadPool& threads_;
    const RunOptions& options_;
    std::filesystem::path checkpoints_;
    std::unique_ptr<DeepSeek> model_;
    std::unique_ptr<Trainer> trainer_;
    std::chrono::steady_clock::time_point start_;
    int64_t saved_step_ = -1;

    void open() {
        TokenDataset data =
            open_data(config_, config_.data.train, config_.job.dir / "data" / "train", threads_, options_.progress);
        check_vocabulary(data, config_.model.config);
        const auto& c = config_;
        PackedLoader loader(std::move(data), {c.data.sequence_length, c.training.rows_per_batch, c.job.seed, true});
        std::optional<LoadedModel> source;  // its memory is copied by the optimizer
        if (!c.model.init_from.empty()) {
            source = load_model(c.model.init_from, ops_, {.with_mtp = c.model.config.num_nextn_predict_layers > 0});
            model_ = std::move(source->model);
        } else {
            model_ = std::make_unique<DeepSeek>(c.model.config);
        }
        trainer_ = std::make_unique<Trainer>(c, *model_, ops_, std::move(loader), options_.deterministic);
        if (!source) trainer_->optimizer().initialize(c.job.seed, c.model.init_std);
    }

    StepMetrics one_step(RunSummary& summary) {
        StepMetrics step = trainer_->step();
        const bool last = step.step == config_.training.steps;
        summary.loss = *step.loss;
        if (!config_.data.valid.empty() &&
            (last || (config_.metrics.valid_every > 0 && step.step % config_.metrics.valid_every == 0))) {
            step.val_loss = summary.valid_loss = validate();
        }
        step.elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
        if (last || (config_.checkpoint.every > 0 && step.step % config_.checkpoint.every == 0)) save();
        return step;
    }

    double validate() {
        TokenDataset data =
            open_data(config_, config_.data.valid, config_.job.dir / "data" / "valid", threads_, ProgressMode::kQuiet);
        PackedLoader loader(std::move(data), {config_.data.sequence_length, config_.training.rows_per_batch, 0, false});
        return trainer_->evaluate(std::move(loader), config_.metrics.valid_batches);
    }

    void save() {
        save_training_checkpoint(checkpoints_, *model_, ops_, *trainer_, config_.model.tokenizer, config_.checkpoint.keep);
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
    return Run(config, ops, threads, options).train();
}

}  // namespace fathom
