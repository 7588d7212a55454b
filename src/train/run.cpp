#include "train/run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
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

// The checkpoint to go on from, if any. A run's checkpoints are one line of history: going on from an earlier one, or from
// elsewhere, would leave later ones behind that `auto` takes for the present.
std::optional<std::filesystem::path> choose_checkpoint(const TrainConfig& config, const std::string& resume) {
    const auto checkpoints = training_checkpoints(config.job.dir / "checkpoints");
    const std::string folder = config.job.dir.string();
    if (resume.empty() && !checkpoints.empty()) {
        throw Error(ErrorKind::kUsage,
                    fmt::format("{} holds a run that is at {}: continue it with --resume auto, or choose another job.dir",
                                folder, checkpoints.back().filename().string()));
    }
    if (resume == "latest" && checkpoints.empty()) throw Error(ErrorKind::kUsage, folder + ": no checkpoint to resume from");
    if (resume.empty() || ((resume == "auto") && checkpoints.empty())) return std::nullopt;
    if (resume == "auto" || resume == "latest") return checkpoints.back();
    if (!std::filesystem::exists(std::filesystem::path(resume) / "trainer.json"))
        throw Error(ErrorKind::kUsage,
                    fmt::format("{}: not a checkpoint of a training run (auto, latest, or a folder step-...)", resume));
    if (!checkpoints.empty() && !std::filesystem::equivalent(resume, checkpoints.back())) {
        throw Error(
            ErrorKind::kUsage,
            fmt::format(
                "{} holds a run that is at {}: to go on from {} choose another job.dir, or remove the later checkpoints first",
                folder, checkpoints.back().filename().string(), resume));
    }
    return resume;
}

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
    if (config.model.tokenizer.empty()) {
        throw Error(
            ErrorKind::kInput,
            "model.tokenizer is required to train on text files: the folder of a tokenizer.json, e.g. one made by `fathom "
            "tokenizer train`");
    }
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
    return out;
}

void check_vocabulary(const TokenDataset& data, const ModelConfig& config) {
    if (data.vocab_size() <= config.vocab_size) return;
    throw Error(ErrorKind::kInput, fmt::format("{}: tokens of a vocabulary of {} do not fit the model's vocab_size {}",
                                               data.folder().string(), data.vocab_size(), config.vocab_size));
}

// The folder that holds the tokenizer's files; empty without one.
std::filesystem::path tokenizer_folder(const std::filesystem::path& tokenizer) {
    if (!tokenizer.empty() && !std::filesystem::exists(tokenizer))
        throw Error(ErrorKind::kInput, fmt::format("model.tokenizer: {} does not exist", tokenizer.string()));
    return std::filesystem::is_regular_file(tokenizer) ? tokenizer.parent_path() : tokenizer;
}

// Points the parameters of `model` to those of `source`, which must hold all of them.
void bind_parameters(DeepSeek& model, DeepSeek& source, const std::filesystem::path& where) {
    std::map<std::string, Weight> weights;
    source.visit([&](const std::string& name, Param& param) { weights.emplace(name, param.weight); });
    model.visit([&](const std::string& name, Param& param) {
        const auto found = weights.find(name);
        const bool fits = found != weights.end() && found->second.codes.dim(0) == param.rows &&
                          (!param.is_matrix() || found->second.codes.dim(1) == param.cols);
        if (!fits) {
            throw Error(ErrorKind::kInput,
                        fmt::format("{}: {} is {}: the keys of [model] must describe the model of init_from (if it has no MTP "
                                    "modules, model.num_nextn_predict_layers=0)",
                                    where.string(), name, found == weights.end() ? "missing" : found->second.codes.describe()));
        }
        param.weight = found->second;
    });
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
        remove_partial_checkpoints(checkpoints_);
        open();
        RunSummary summary;
        if (from) {
            load_training_checkpoint(*from, *model_, ops_, *trainer_);
            summary.first_step = trainer_->state().step;
            const auto own = training_checkpoints(checkpoints_);
            if (!own.empty()) saved_step_ = summary.first_step;
        }
        if (summary.first_step > config_.training.steps) {
            throw Error(ErrorKind::kUsage,
                        fmt::format("{} is beyond training.steps = {}", from->string(), config_.training.steps));
        }
        write_text_atomically(config_.job.dir / "config.toml", config_.text);
        const std::filesystem::path metrics_file = config_.job.dir / "metrics.jsonl";
        MetricsWriter metrics(metrics_file, summary.first_step);
        const double earlier = elapsed_before(metrics_file);
        const auto start = std::chrono::steady_clock::now();
        TensorBoardWriter board(config_.job.dir / "tb", summary.first_step + 1);
        Progress progress("train", config_.training.steps, "steps", options_.progress);
        while (trainer_->state().step < config_.training.steps && !interrupted()) {
            StepMetrics step = one_step(summary);
            step.elapsed = earlier + std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            // Before the checkpoint: a run killed in between repeats the step and drops this line.
            if (step.step % config_.metrics.every == 0 || step.step == config_.training.steps || step.val_loss) {
                metrics.append(step);
                board.append(step.step, scalars(step));
            }
            if (config_.checkpoint.every > 0 && step.step % config_.checkpoint.every == 0) save();
            progress.update(step.step, note(step));
        }
        summary.steps = trainer_->state().step;
        summary.tokens = trainer_->state().tokens;
        summary.interrupted = summary.steps < config_.training.steps;
        if (saved_step_ != summary.steps) save();
        summary.checkpoint = training_checkpoints(checkpoints_).back();
        progress.finish(summary.loss ? fmt::format("loss {:.4f}", *summary.loss) : "");
        return summary;
    }

private:
    const TrainConfig& config_;
    Ops& ops_;
    ThreadPool& threads_;
    const RunOptions& options_;
    std::filesystem::path checkpoints_, tokenizer_;
    std::unique_ptr<DeepSeek> model_;
    std::unique_ptr<Trainer> trainer_;
    std::optional<PackedLoader> valid_;
    int64_t saved_step_ = -1;

    void open() {
        const auto& c = config_;
        tokenizer_ = tokenizer_folder(c.model.tokenizer);
        PackedLoader loader(open_data("train", c.data.train),
                            {c.data.sequence_length, c.training.rows_per_batch, c.job.seed, true});
        if (!c.data.valid.empty())
            valid_.emplace(open_data("valid", c.data.valid),
                           PackedLoaderOptions{c.data.sequence_length, c.training.rows_per_batch, 0, false});
        model_ = std::make_unique<DeepSeek>(c.model.config);
        std::optional<LoadedModel> source;  // its memory is copied by the optimizer
        if (!c.model.init_from.empty()) {
            const bool quantized = ModelConfig::load(c.model.init_from).quantization_config.has_value();
            source = load_model(c.model.init_from, ops_,
                                {.dtype = quantized ? std::optional(DType::kF32) : std::nullopt,
                                 .with_mtp = c.model.config.num_nextn_predict_layers > 0});
            bind_parameters(*model_, *source->model, c.model.init_from);
        }
        trainer_ = std::make_unique<Trainer>(c, *model_, ops_, std::move(loader), options_.deterministic);
        if (!source) trainer_->optimizer().initialize(c.job.seed, c.model.init_std);
    }

    TokenDataset open_data(const std::string& name, const std::vector<std::filesystem::path>& inputs) {
        const bool shards = inputs.size() == 1 && std::filesystem::is_directory(inputs[0]);
        TokenDataset data(shards ? inputs[0]
                                 : prepare_text(config_, inputs, config_.job.dir / "data" / name, threads_, options_.progress));
        check_vocabulary(data, config_.model.config);
        return data;
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

    void save() {
        save_training_checkpoint(checkpoints_, *model_, ops_, *trainer_, tokenizer_, config_.checkpoint.keep);
        saved_step_ = trainer_->state().step;
    }

    // Seconds of earlier starts, as the last line of their metrics says.
    static double elapsed_before(const std::filesystem::path& metrics) {
        const std::vector<StepMetrics> lines = read_metrics(metrics);
        return lines.empty() ? 0 : lines.back().elapsed.value_or(0);
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
