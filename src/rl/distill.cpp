#include "rl/distill.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <numeric>
#include <utility>

#include "base/rng.h"
#include "checkpoint/checkpoint.h"
#include "rl/prompts.h"
#include "rl/rollout.h"
#include "rl/token_budget.h"
#include "train/run_folder.h"
#include "train/sft.h"
#include "train/training_run.h"

namespace fathom {
namespace {

constexpr uint64_t kChoiceStream = 0xD157;

SectionReaders readers(DistillConfig& c) {
    constexpr std::array<std::pair<std::string_view, bool>, 2> kDirections{{{"reverse", true}, {"forward", false}}};
    return {{"distill", [&c, kDirections](TomlSection& s, const std::filesystem::path& base) {
                 c.teacher = s.path("teacher", base);
                 s.choice("kl", c.reverse_kl, kDirections);
                 s.number("on_policy", c.on_policy, 0, 1);
                 s.number("temperature", c.temperature, 0.01, 100);
                 s.integer("prompts_per_step", c.prompts_per_step, 1, 1 << 20);
                 s.integer("max_prompt_length", c.max_prompt_length, 1);
                 s.integer("max_completion_length", c.max_completion_length, 1);
                 s.integer("max_sequences", c.max_sequences, 1, 1 << 16);
                 s.text("chat_format", c.chat_format);
                 if (c.teacher.empty()) fail_setting("distill.teacher", "is required: the folder of a checkpoint");
             }}};
}

class DistillRun : public TrainingRun {
public:
    DistillRun(const DistillConfig& config, Ops& ops, const RunOptions& options)
        : TrainingRun("distill", config.train, ops, options),
          config_(config),
          tokenizer_(open_tokenizer(config.train)) {}

protected:
    void open_data() override {
        const ChatFormat format = chat_format_named(config_.chat_format, tokenizer_, train_config());
        prompts_ = read_prompts(train_config().data.train, tokenizer_, format, false, config_.max_prompt_length).prompts;
        if (prompts_.empty()) throw Error(ErrorKind::kInput, "data.train: holds no prompt that can be used");
        order_ = std::make_unique<PromptOrder>(std::ssize(prompts_), train_config().job.seed);
    }
    void open_trainer() override {
        teacher_ = load_model(config_.teacher, ops(), {.dtype = train_config().training.dtype});
        const int64_t student = train_config().model.config.vocab_size;
        if (teacher_.config.vocab_size != student) {
            throw Error(ErrorKind::kInput,
                        fmt::format("distill.teacher {}: has a vocabulary of {}, the student one of {}; both must have one "
                                    "tokenizer",
                                    config_.teacher.string(), teacher_.config.vocab_size, student));
        }
        learner_ = std::make_unique<Learner>(train_config(), model(), ops(), options().deterministic);
    }
    [[nodiscard]] Optimizer& optimizer() override { return learner_->optimizer(); }
    [[nodiscard]] TrainerState state() const override { return {learner_->step(), learner_->tokens(), order_->state()}; }
    void restore(const TrainerState& state, const std::filesystem::path&) override {
        learner_->restore(state.step, state.tokens);
        order_->restore(state.loader);
    }

    [[nodiscard]] StepMetrics step(RunSummary&) override {
        const auto start = std::chrono::steady_clock::now();
        const BatchSource::State place = order_->state();
        std::vector<Rollout> rollouts;
        try {
            rollouts = texts();
        } catch (...) {  // Ctrl-C: what is saved now must begin with the same prompts
            order_->restore(place);
            throw;
        }
        int64_t counted = 0, consumed = 0;
        std::vector<int64_t> lengths;
        for (const Rollout& rollout : rollouts) {
            counted += rollout.completion_length();
            lengths.push_back(std::ssize(rollout.tokens) - 1);
        }
        const auto per_token = 1 / static_cast<double>(std::max<int64_t>(counted, 1));
        double loss = 0;
        for (const auto& [begin, end] : within_token_budget(lengths, train_config().batch_tokens())) {
            std::vector<const Rollout*> batch;
            for (size_t i = begin; i < end; ++i) batch.push_back(&rollouts[i]);
            const TokenBatch tokens = pack_rollouts(batch);
            loss += learn(tokens, per_token);
            consumed += std::ssize(tokens.tokens);
        }
        StepMetrics metrics = learner_->update(consumed);
        metrics.loss = loss * per_token;
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        metrics.tokens_per_second = static_cast<double>(consumed) / seconds;
        metrics.more.emplace_back("completions/mean_length",
                                  static_cast<double>(counted) / static_cast<double>(rollouts.size()));
        return metrics;
    }
    [[nodiscard]] std::string note(const StepMetrics& step) const override { return fmt::format("KL {:.4f}", *step.loss); }
    [[nodiscard]] std::string last_note(const RunSummary&) const override { return ""; }

private:
    const DistillConfig& config_;
    Tokenizer tokenizer_;
    std::vector<Prompt> prompts_;
    LoadedModel teacher_;
    std::unique_ptr<Learner> learner_;
    std::unique_ptr<PromptOrder> order_;
    std::unique_ptr<RolloutSampler> sampler_;  // made when first needed

    // The step's texts: the student's own, or those of the data.
    std::vector<Rollout> texts() {
        const auto step = static_cast<uint64_t>(learner_->step());
        const bool own = Philox{train_config().job.seed, kChoiceStream}.uniform(step) < config_.on_policy;
        std::vector<RolloutRequest> requests;
        for (int64_t i = 0; i < config_.prompts_per_step; ++i) {
            const int64_t p = order_->next();
            requests.push_back({p, prompts_[static_cast<size_t>(p)].tokens,
                                step * static_cast<uint64_t>(config_.prompts_per_step) + static_cast<uint64_t>(i)});
        }
        if (!own) return completions_of(requests);
        if (!sampler_) {
            RolloutOptions how;
            how.sampling.seed = train_config().job.seed;
            how.sampling.temperature = config_.temperature;
            how.max_new_tokens = config_.max_completion_length;
            how.stop_ids.assign(tokenizer_.stop_ids().begin(), tokenizer_.stop_ids().end());
            how.max_sequences = config_.max_sequences;
            how.cache_type = train_config().training.dtype;
            how.deterministic = options().deterministic;
            how.vocab_limit = tokenizer_.vocab_size();
            sampler_ = std::make_unique<RolloutSampler>(model(), ops(), how, config_.max_prompt_length);
        }
        return sampler_->sample(requests);
    }

    std::vector<Rollout> completions_of(const std::vector<RolloutRequest>& requests) const {
        std::vector<Rollout> rollouts;
        for (const RolloutRequest& request : requests) {
            const auto& record = prompts_[static_cast<size_t>(request.prompt)].record;
            const auto found = record.find("completion");
            if (found == record.end() || !found->is_string())
                throw Error(ErrorKind::kInput,
                            "distill.on_policy below 1 needs a text \"completion\" in every line of data.train");
            Rollout rollout;
            rollout.prompt = request.prompt;
            rollout.tokens.assign(request.tokens.begin(), request.tokens.end());
            rollout.prompt_length = std::ssize(rollout.tokens);
            for (const int32_t id : tokenizer_.encode(found->get<std::string>(), false)) rollout.tokens.push_back(id);
            rollout.tokens.push_back(*tokenizer_.eos_id());
            rollouts.push_back(std::move(rollout));
        }
        return rollouts;
    }

    // Adds a batch's gradient; returns the sum of its divergences.
    double learn(const TokenBatch& tokens, double scale) {
        std::vector<std::byte> thought;  // the teacher's hidden states, in the compute type
        int64_t width = 0;
        learner_->forward_model(*teacher_.model, tokens, [&](Context&, const Tensor& hidden) {
            thought.resize(static_cast<size_t>(hidden.bytes()));
            ops().read_back(thought.data(), hidden);
            width = hidden.dim(1);
        });
        double sum = 0;
        learner_->accumulate(tokens, [&](Context& cx, const Tensor& hidden, const Tensor& dhidden, DeepSeek::Saved&) {
            const int64_t n = hidden.dim(0);
            const Tensor teacher = cx.empty({n, width}, true), loss = cx.empty_precise({n}, true);
            ops().write(teacher, thought.data());
            model().head().divergence_and_gradient(cx, loss, dhidden, hidden, teacher_.model->head(), teacher,
                                                   cx.ints(tokens.targets, true), config_.reverse_kl, scale);
            const std::vector<float> values = learner_->to_host(loss);
            sum = std::accumulate(values.begin(), values.end(), 0.0);
        });
        return sum;
    }
};

}  // namespace

DistillConfig DistillConfig::load(const std::filesystem::path& file, std::span<const std::string> overrides) {
    DistillConfig config;
    config.train = TrainConfig::load(file, overrides, readers(config));
    const auto& train = config.train;
    if (config.max_prompt_length + config.max_completion_length > train.batch_tokens())
        fail_setting("data.sequence_length", "times training.rows_per_batch must hold the longest prompt with its completion");
    if (train.model.config.num_nextn_predict_layers > 0)
        fail_setting("model.num_nextn_predict_layers", "must be 0: MTP modules are not distilled");
    return config;
}

RunSummary run_distill(const DistillConfig& config, Ops& ops, const RunOptions& options) {
    return DistillRun(config, ops, options).train();
}

}  // namespace fathom
