#include "rl/distill.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <numeric>
#include <utility>

#include "base/interrupt.h"
#include "base/rng.h"
#include "rl/prompts.h"
#include "rl/rollout.h"
#include "train/init_from.h"
#include "train/run_folder.h"
#include "train/sft.h"
#include "train/train_checkpoint.h"

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

class DistillRun {
public:
    DistillRun(const DistillConfig& config, Ops& ops, const RunOptions& options)
        : config_(config),
          train_(config.train),
          ops_(ops),
          options_(options),
          tokenizer_(open_tokenizer(config.train)) {}

    RunSummary train() {
        RunFolder folder(train_, options_.resume);
        prepare();
        RunSummary summary;
        if (folder.from()) {
            const TrainerState state = load_training_checkpoint(*folder.from(), *model_, ops_, learner_->optimizer());
            learner_->restore(state.step, state.tokens);
            order_->restore(state.loader);
            summary.first_step = state.step;
            if (folder.from_here()) saved_step_ = state.step;
        }
        if (summary.first_step > train_.training.steps) {
            throw Error(ErrorKind::kUsage,
                        fmt::format("{} is beyond training.steps = {}", folder.from()->string(), train_.training.steps));
        }
        folder.open(summary.first_step);
        Progress progress("distill", train_.training.steps, "steps", options_.progress);
        while (learner_->step() < train_.training.steps && !interrupted()) {
            StepMetrics step = one_step();
            summary.loss = step.loss;
            folder.log(step);
            if (train_.checkpoint.every > 0 && step.step % train_.checkpoint.every == 0) save(folder);
            progress.update(step.step, fmt::format("KL {:.4f}", *step.loss));
        }
        summary.steps = learner_->step();
        summary.tokens = learner_->tokens();
        summary.interrupted = summary.steps < train_.training.steps;
        if (saved_step_ != summary.steps) save(folder);
        summary.checkpoint = training_checkpoints(folder.checkpoints()).back();
        progress.finish();
        return summary;
    }

private:
    const DistillConfig& config_;
    const TrainConfig& train_;
    Ops& ops_;
    const RunOptions& options_;
    Tokenizer tokenizer_;
    std::vector<Prompt> prompts_;
    std::unique_ptr<DeepSeek> model_;
    LoadedModel teacher_;
    std::unique_ptr<Learner> learner_;
    std::unique_ptr<PromptOrder> order_;
    std::unique_ptr<RolloutSampler> sampler_;  // made when first needed
    int64_t saved_step_ = -1;

    void prepare() {
        const ChatFormat format = chat_format_named(config_.chat_format, tokenizer_, train_);
        prompts_ = read_prompts(train_.data.train, tokenizer_, format, false, config_.max_prompt_length).prompts;
        if (prompts_.empty()) throw Error(ErrorKind::kInput, "data.train: holds no prompt that can be used");
        model_ = std::make_unique<DeepSeek>(train_.model.config);
        const std::optional<LoadedModel> initial = bind_initial_weights(train_, *model_, ops_);
        teacher_ = load_model(config_.teacher, ops_, {.dtype = train_.training.dtype});
        if (teacher_.config.vocab_size != train_.model.config.vocab_size) {
            throw Error(ErrorKind::kInput,
                        fmt::format("distill.teacher {}: has a vocabulary of {}, the student one of {}; both must have one "
                                    "tokenizer",
                                    config_.teacher.string(), teacher_.config.vocab_size, train_.model.config.vocab_size));
        }
        learner_ = std::make_unique<Learner>(train_, *model_, ops_, options_.deterministic);
        if (!initial) learner_->optimizer().initialize(train_.job.seed, train_.model.init_std);
        order_ = std::make_unique<PromptOrder>(std::ssize(prompts_), train_.job.seed);
    }

    // The step's texts: the student's own, or those of the data.
    std::vector<Rollout> texts() {
        const auto step = static_cast<uint64_t>(learner_->step());
        const bool own = Philox{train_.job.seed, kChoiceStream}.uniform(step) < config_.on_policy;
        std::vector<RolloutRequest> requests;
        for (int64_t i = 0; i < config_.prompts_per_step; ++i) {
            const int64_t p = order_->next();
            requests.push_back({p, prompts_[static_cast<size_t>(p)].tokens,
                                step * static_cast<uint64_t>(config_.prompts_per_step) + static_cast<uint64_t>(i)});
        }
        if (!own) return completions_of(requests);
        if (!sampler_) {
            RolloutOptions how;
            how.sampling.seed = train_.job.seed;
            how.sampling.temperature = config_.temperature;
            how.max_new_tokens = config_.max_completion_length;
            how.stop_ids.assign(tokenizer_.stop_ids().begin(), tokenizer_.stop_ids().end());
            how.max_sequences = config_.max_sequences;
            how.cache_dtype = train_.training.dtype;
            how.deterministic = options_.deterministic;
            how.vocab_limit = tokenizer_.vocab_size();
            sampler_ = std::make_unique<RolloutSampler>(*model_, ops_, how, config_.max_prompt_length);
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

    StepMetrics one_step() {
        const auto start = std::chrono::steady_clock::now();
        const std::vector<Rollout> rollouts = texts();
        int64_t counted = 0, consumed = 0, room = 0;
        std::vector<std::vector<const Rollout*>> batches;
        for (const Rollout& rollout : rollouts) {
            counted += rollout.completion_length();
            const int64_t length = std::ssize(rollout.tokens) - 1;
            if (batches.empty() || length > room) {
                batches.emplace_back();
                room = train_.data.sequence_length * train_.training.rows_per_batch;
            }
            batches.back().push_back(&rollout);
            room -= length;
        }
        double loss = 0;
        for (const auto& batch : batches) {
            const TokenBatch tokens = pack_rollouts(batch);
            loss += learn(tokens, 1 / static_cast<double>(std::max<int64_t>(counted, 1)));
            consumed += std::ssize(tokens.tokens);
        }
        StepMetrics metrics = learner_->update(consumed);
        metrics.loss = loss / static_cast<double>(std::max<int64_t>(counted, 1));
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        metrics.tokens_per_second = static_cast<double>(consumed) / seconds;
        metrics.more.emplace_back("completions/mean_length",
                                  static_cast<double>(counted) / static_cast<double>(rollouts.size()));
        return metrics;
    }

    // Adds a batch's gradient; returns the sum of its divergences.
    double learn(const TokenBatch& tokens, double scale) {
        std::vector<std::byte> thought;  // the teacher's hidden states, in the compute type
        int64_t width = 0;
        learner_->forward_model(*teacher_.model, tokens, [&](Context&, const Tensor& hidden) {
            thought.resize(static_cast<size_t>(hidden.bytes()));
            ops_.read_back(thought.data(), hidden);
            width = hidden.dim(1);
        });
        double sum = 0;
        learner_->accumulate(tokens, [&](Context& cx, const Tensor& hidden, const Tensor& dhidden, DeepSeek::Saved&) {
            const int64_t n = hidden.dim(0);
            const Tensor teacher = cx.empty({n, width}, true), loss = cx.empty_precise({n}, true);
            ops_.write(teacher, thought.data());
            model_->head().divergence_and_gradient(cx, loss, dhidden, hidden, teacher_.model->head(), teacher,
                                                   cx.ints(tokens.targets, true), config_.reverse_kl, scale);
            const std::vector<float> values = learner_->to_host(loss);
            sum = std::accumulate(values.begin(), values.end(), 0.0);
        });
        return sum;
    }

    void save(const RunFolder& folder) {
        save_training_checkpoint(
            folder.checkpoints(), *model_, ops_, learner_->optimizer(), {learner_->step(), learner_->tokens(), order_->state()},
            {.tokenizer = tokenizer_folder(train_.model.tokenizer), .keep = train_.checkpoint.keep, .write_more = {}});
        saved_step_ = learner_->step();
    }
};

}  // namespace

DistillConfig DistillConfig::load(const std::filesystem::path& file, std::span<const std::string> overrides) {
    DistillConfig config;
    config.train = TrainConfig::load(file, overrides, readers(config));
    const auto& train = config.train;
    if (config.max_prompt_length + config.max_completion_length > train.data.sequence_length * train.training.rows_per_batch)
        fail_setting("data.sequence_length", "times training.rows_per_batch must hold the longest prompt with its completion");
    if (train.model.config.num_nextn_predict_layers > 0)
        fail_setting("model.num_nextn_predict_layers", "must be 0: MTP modules are not distilled");
    return config;
}

RunSummary run_distill(const DistillConfig& config, Ops& ops, const RunOptions& options) {
    return DistillRun(config, ops, options).train();
}

}  // namespace fathom
