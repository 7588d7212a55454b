#include "rl/grpo_run.h"

#include <fmt/format.h>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <utility>

#include "base/file.h"
#include "base/interrupt.h"
#include "rl/grpo.h"
#include "rl/rollout_buffer.h"
#include "train/init_from.h"
#include "train/run_folder.h"
#include "train/sft.h"
#include "train/train_checkpoint.h"

namespace fathom {
namespace {

constexpr size_t kShownProblems = 3;  // of one step

double value_of(const StepMetrics& metrics, std::string_view name) {
    const auto found = std::ranges::find_if(metrics.more, [&](const auto& entry) { return entry.first == name; });
    return found == metrics.more.end() ? 0 : found->second;
}

// One start of a run.
class GrpoRun {
public:
    GrpoRun(const GrpoConfig& config, Ops& ops, const RunOptions& options)
        : config_(config),
          train_(config.train),
          ops_(ops),
          options_(options),
          tokenizer_(open_tokenizer(config.train)) {}

    RunSummary train() {
        RunFolder folder(train_, options_.resume);
        prepare();
        RunSummary summary;
        if (folder.from()) resume(folder, summary);
        if (summary.first_step > train_.training.steps) {
            throw Error(ErrorKind::kUsage,
                        fmt::format("{} is beyond training.steps = {}", folder.from()->string(), train_.training.steps));
        }
        folder.open(summary.first_step);
        Progress progress("grpo", train_.training.steps, "steps", options_.progress);
        try {
            while (step_count() < train_.training.steps && !interrupted()) one_step(folder, summary, progress);
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::kInterrupted) throw;  // while sampling: the generation is sampled again on resuming
        }
        summary.steps = step_count();
        summary.tokens = grpo_->state().tokens;
        summary.interrupted = summary.steps < train_.training.steps;
        if (saved_step_ != summary.steps && !(summary.interrupted && summary.steps == 0)) save(folder);
        const auto checkpoints = training_checkpoints(folder.checkpoints());
        if (!checkpoints.empty()) summary.checkpoint = checkpoints.back();
        progress.finish(summary.loss ? fmt::format("reward {:.4f}", last_reward_) : "");
        return summary;
    }

private:
    const GrpoConfig& config_;
    const TrainConfig& train_;
    Ops& ops_;
    const RunOptions& options_;
    Tokenizer tokenizer_;
    std::filesystem::path tokenizer_files_;
    std::unique_ptr<DeepSeek> model_;
    std::optional<LoadedModel> reference_;
    std::unique_ptr<Grpo> grpo_;
    std::vector<Prompt> held_out_;
    int64_t overlong_ = 0, saved_step_ = -1;
    double last_reward_ = 0;

    [[nodiscard]] int64_t step_count() const { return grpo_->state().step; }

    std::vector<Prompt> open_prompts(const char* name, const std::vector<std::filesystem::path>& files) {
        const ChatFormat format = chat_format_named(config_.chat_format, tokenizer_, train_);
        PromptSet set = read_prompts(files, tokenizer_, format, config_.thinking, config_.max_prompt_length);
        if (set.overlong > 0) {
            fmt::print(stderr, "data.{}: {} prompts of more than grpo.max_prompt_length = {} tokens are left out\n", name,
                       set.overlong, config_.max_prompt_length);
        }
        if (set.prompts.empty()) throw Error(ErrorKind::kInput, fmt::format("data.{}: holds no prompt that can be used", name));
        overlong_ += set.overlong;
        return std::move(set.prompts);
    }

    void prepare() {
        tokenizer_files_ = tokenizer_folder(train_.model.tokenizer);
        std::vector<Prompt> prompts = open_prompts("train", train_.data.train);
        if (!train_.data.valid.empty()) held_out_ = open_prompts("valid", train_.data.valid);
        if (train_.metrics.valid_batches > 0 && std::ssize(held_out_) > train_.metrics.valid_batches)
            held_out_.resize(static_cast<size_t>(train_.metrics.valid_batches));
        model_ = std::make_unique<DeepSeek>(train_.model.config);
        const std::optional<LoadedModel> initial = bind_initial_weights(train_, *model_, ops_);
        if (config_.loss.beta > 0) open_reference();
        grpo_ = std::make_unique<Grpo>(config_, *model_, reference_ ? reference_->model.get() : nullptr, ops_, tokenizer_,
                                       std::move(prompts), options_.deterministic);
        if (!initial) grpo_->learner().optimizer().initialize(train_.job.seed, train_.model.init_std);
    }

    void open_reference() {
        reference_ = load_model(config_.reference_model, ops_, {.dtype = train_.training.dtype});
        if (reference_->config.vocab_size == train_.model.config.vocab_size) return;
        throw Error(
            ErrorKind::kInput,
            fmt::format("grpo.reference_model {}: has a vocabulary of {}, the policy one of {}; it must be a model with "
                        "the same tokenizer",
                        config_.reference_model.string(), reference_->config.vocab_size, train_.model.config.vocab_size));
    }

    void resume(const RunFolder& folder, RunSummary& summary) {
        const TrainerState state = load_training_checkpoint(*folder.from(), *model_, ops_, grpo_->learner().optimizer());
        grpo_->restore(state, load_rollouts(*folder.from(), std::ssize(grpo_->prompts())));
        summary.first_step = state.step;
        if (folder.from_here()) saved_step_ = state.step;
    }

    void one_step(RunFolder& folder, RunSummary& summary, Progress& progress) {
        StepMetrics step = grpo_->step();
        summary.loss = step.loss;
        const bool fresh = grpo_->buffer().uses == 1;
        if (fresh) last_reward_ = value_of(step, "reward");
        step.more.emplace_back("prompts/overlong", static_cast<double>(overlong_));
        const int64_t every = train_.metrics.valid_every;
        if (!held_out_.empty() && (step.step == train_.training.steps || (every > 0 && step.step % every == 0)))
            for (auto& value : grpo_->evaluate(held_out_)) step.more.push_back(std::move(value));
        report_problems(step.step);
        if (fresh && config_.log_completions > 0) log_completions(step.step);
        folder.log(step);
        if (train_.checkpoint.every > 0 && step.step % train_.checkpoint.every == 0) save(folder);
        progress.update(step.step,
                        fmt::format("reward {:.3f}  entropy {:.2f}  length {:.0f}  |dlogp| {:.1e}  {:.0f} rollouts/s",
                                    last_reward_, value_of(step, "entropy"), value_of(step, "completions/mean_length"),
                                    value_of(step, "logp_diff_max"), value_of(step, "rollouts_per_second")));
    }

    void report_problems(int64_t step) {
        const std::vector<std::string> problems = grpo_->take_problems();
        for (size_t i = 0; i < std::min(problems.size(), kShownProblems); ++i)
            fmt::print(stderr, "step {}: reward: {}\n", step, problems[i]);
        if (problems.size() > kShownProblems)
            fmt::print(stderr, "step {}: reward: and {} more\n", step, problems.size() - kShownProblems);
    }

    void log_completions(int64_t step) const {
        std::ofstream out(train_.job.dir / "completions.jsonl", std::ios::app);
        for (int64_t i = 0; i < std::min(config_.log_completions, std::ssize(grpo_->buffer().rollouts)); ++i) {
            const Rollout& rollout = grpo_->buffer().rollouts[static_cast<size_t>(i)];
            const nlohmann::ordered_json line{{"step", step},
                                              {"prompt", rollout.prompt},
                                              {"completion", grpo_->completion_text(rollout)},
                                              {"reward", rollout.reward},
                                              {"advantage", rollout.advantage}};
            out << line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
        }
    }

    void save(const RunFolder& folder) {
        save_training_checkpoint(
            folder.checkpoints(), *model_, ops_, grpo_->learner().optimizer(), grpo_->state(),
            {.tokenizer = tokenizer_files_,
             .keep = train_.checkpoint.keep,
             .write_more = [&](const std::filesystem::path& path) { save_rollouts(path, grpo_->buffer()); }});
        saved_step_ = step_count();
    }
};

}  // namespace

RunSummary run_grpo(const GrpoConfig& config, Ops& ops, const RunOptions& options) {
    return GrpoRun(config, ops, options).train();
}

}  // namespace fathom
