#include "train/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"
#include "train/train_checkpoint.h"

namespace fathom {
namespace {

// Held while a process trains in the folder; the system lets go of it when the process ends, however it ends.
int lock_folder(const std::filesystem::path& folder) {
    const int fd = ::open((folder / ".lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    if (fd < 0) throw Error(ErrorKind::kIo, fmt::format("{}: cannot write there", folder.string()));
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
    ::close(fd);
    throw Error(ErrorKind::kUsage, fmt::format("{}: another process is training in this folder; give this run its own job.dir, "
                                               "or wait for the other to end",
                                               folder.string()));
}

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

}  // namespace

RunFolder::RunFolder(const TrainConfig& config, const std::string& resume) : config_(config) {
    std::filesystem::create_directories(checkpoints());
    lock_ = lock_folder(config.job.dir);
    try {
        from_ = choose_checkpoint(config, resume);
        remove_partial_checkpoints(checkpoints());
    } catch (...) {
        ::close(lock_);
        throw;
    }
    from_here_ = from_ && !training_checkpoints(checkpoints()).empty();
}

RunFolder::~RunFolder() { ::close(lock_); }

void RunFolder::open(int64_t first_step) {
    write_text_atomically(config_.job.dir / "config.toml", config_.text);
    const std::filesystem::path file = config_.job.dir / "metrics.jsonl";
    metrics_.emplace(file, first_step);
    const std::vector<StepMetrics> lines = read_metrics(file);
    earlier_ = lines.empty() ? 0 : lines.back().elapsed.value_or(0);
    start_ = Clock::now();
    board_.emplace(config_.job.dir / "tb", first_step + 1);
}

void RunFolder::log(StepMetrics& metrics) {
    metrics.elapsed = earlier_ + std::chrono::duration<double>(Clock::now() - start_).count();
    if (metrics.step % config_.metrics.every != 0 && metrics.step != config_.training.steps && !metrics.val_loss) return;
    metrics_->append(metrics);
    board_->append(metrics.step, scalars(metrics));
}

std::filesystem::path tokenizer_folder(const std::filesystem::path& tokenizer) {
    if (!tokenizer.empty() && !std::filesystem::exists(tokenizer))
        throw Error(ErrorKind::kInput, fmt::format("model.tokenizer: {} does not exist", tokenizer.string()));
    return std::filesystem::is_regular_file(tokenizer) ? tokenizer.parent_path() : tokenizer;
}

Tokenizer open_tokenizer(const TrainConfig& config) {
    if (config.model.tokenizer.empty()) {
        throw Error(ErrorKind::kInput,
                    "model.tokenizer is required to train on text: the folder of a tokenizer.json, e.g. one made by `fathom "
                    "tokenizer train`");
    }
    Tokenizer tokenizer = Tokenizer::load(config.model.tokenizer);
    if (!tokenizer.eos_id())
        throw Error(ErrorKind::kInput, fmt::format("{}: names no end-of-text token", config.model.tokenizer.string()));
    if (tokenizer.vocab_size() > config.model.config.vocab_size) {
        throw Error(ErrorKind::kInput,
                    fmt::format("{}: its {} tokens do not fit the model's vocab_size {}", config.model.tokenizer.string(),
                                tokenizer.vocab_size(), config.model.config.vocab_size));
    }
    return tokenizer;
}

}  // namespace fathom
