#include "rl/grpo_run.h"

#include <fmt/format.h>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <utility>

#include "checkpoint/checkpoint.h"
#include "rl/grpo.h"
#include "rl/rollout_buffer.h"
#include "train/run_folder.h"
#include "train/sft.h"
#include "train/training_run.h"

namespace fathom {
namespace {

constexpr size_t kShownProblems = 3;  // of one step

double value_of(const StepMetrics& metrics, std::string_view name) {
    const auto found = std::ranges::find_if(metrics.more, [&](const auto& entry) { return entry.first == name; });
    return found == metrics.more.end() ? 0 : found->second;
}

class GrpoRun : public TrainingRun {
public:
    GrpoRun(const GrpoConfig& config, Ops& ops, const RunOptions& options)
        : TrainingRun("grpo", config.train, ops, options),
          config_(config),
          tokenizer_(open_tokenizer(config.train)) {}

protected:
    void open_data() override {
        prompts_ = open_prompts("train", train_config().data.train);
        if (!train_config().data.valid.empty()) held_out_ = open_prompts("valid", train_config().data.valid);
        const int64_t most = train_config().metrics.valid_batches;
        if (most > 0 && std::ssize(held_out_) > most) held_out_.resize(static_cast<size_t>(most));
    }
    void open_trainer() override {
        if (config_.loss.beta > 0) open_reference();
        grpo_ = std::make_unique<Grpo>(config_, model(), reference_ ? reference_->model.get() : nullptr, ops(), tokenizer_,
                                       std::move(prompts_), options().deterministic);
    }
    [[nodiscard]] Optimizer& optimizer() override { return grpo_->learner().optimizer(); }
    [[nodiscard]] TrainerState state() const override { return grpo_->state(); }
    void restore(const TrainerState& state, const std::filesystem::path& checkpoint) override {
        grpo_->restore(state, load_rollouts(checkpoint, std::ssize(grpo_->prompts())));
    }
    void save_more(const std::filesystem::path& checkpoint) const override { save_rollouts(checkpoint, grpo_->buffer()); }

    [[nodiscard]] StepMetrics step(RunSummary&) override {
        StepMetrics step = grpo_->step();
        const bool fresh = grpo_->buffer().uses == 1;
        if (fresh) last_reward_ = value_of(step, "reward");
        step.more.emplace_back("prompts/overlong", static_cast<double>(overlong_));
        if (!held_out_.empty() && validates(step.step)) evaluate(step);
        report_problems(step.step);
        if (fresh && config_.log_completions > 0) log_completions(step.step);
        return step;
    }
    [[nodiscard]] std::string note(const StepMetrics& step) const override {
        return fmt::format("reward {:.3f}  entropy {:.2f}  length {:.0f}  |dlogp| {:.1e}  {:.0f} rollouts/s", last_reward_,
                           value_of(step, "entropy"), value_of(step, "completions/mean_length"),
                           value_of(step, "logp_diff_max"), value_of(step, "rollouts_per_second"));
    }
    [[nodiscard]] std::string last_note(const RunSummary& summary) const override {
        return summary.loss ? fmt::format("reward {:.4f}", last_reward_) : "";
    }

private:
    const GrpoConfig& config_;
    Tokenizer tokenizer_;
    std::vector<Prompt> prompts_, held_out_;
    std::optional<LoadedModel> reference_;
    std::unique_ptr<Grpo> grpo_;
    int64_t overlong_ = 0;
    double last_reward_ = 0;

    std::vector<Prompt> open_prompts(const char* name, const std::vector<std::filesystem::path>& files) {
        const ChatFormat format = chat_format_named(config_.chat_format, tokenizer_, train_config());
        PromptSet set = read_prompts(files, tokenizer_, format, config_.thinking, config_.max_prompt_length);
        if (set.overlong > 0) {
            fmt::print(stderr, "data.{}: {} prompts of more than grpo.max_prompt_length = {} tokens are left out\n", name,
                       set.overlong, config_.max_prompt_length);
        }
        if (set.prompts.empty()) throw Error(ErrorKind::kInput, fmt::format("data.{}: holds no prompt that can be used", name));
        overlong_ += set.overlong;
        return std::move(set.prompts);
    }

    void open_reference() {
        reference_ = load_model(config_.reference_model, ops(), {.dtype = train_config().training.dtype});
        const int64_t policy = train_config().model.config.vocab_size;
        if (reference_->config.vocab_size == policy) return;
        throw Error(
            ErrorKind::kInput,
            fmt::format("grpo.reference_model {}: has a vocabulary of {}, the policy one of {}; it must be a model with "
                        "the same tokenizer",
                        config_.reference_model.string(), reference_->config.vocab_size, policy));
    }

    void evaluate(StepMetrics& step) {
        try {
            for (auto& value : grpo_->evaluate(held_out_)) step.more.push_back(std::move(value));
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::kInterrupted) throw;  // the step itself is done and will be saved
        }
    }

    void report_problems(int64_t step) {
        const std::vector<std::string> problems = grpo_->take_problems();
        for (size_t i = 0; i < std::min(problems.size(), kShownProblems); ++i)
            fmt::print(stderr, "step {}: reward: {}\n", step, problems[i]);
        if (problems.size() > kShownProblems)
            fmt::print(stderr, "step {}: reward: and {} more\n", step, problems.size() - kShownProblems);
    }

    void log_completions(int64_t step) const {
        std::ofstream out(train_config().job.dir / "completions.jsonl", std::ios::app);
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
};

}  // namespace

RunSummary run_grpo(const GrpoConfig& config, Ops& ops, const RunOptions& options) {
    return GrpoRun(config, ops, options).train();
}

}  // namespace fathom
