#include "rl/reward_run.h"

#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "rl/preferences.h"
#include "rl/prompts.h"
#include "rl/reward_model.h"
#include "rl/token_budget.h"
#include "train/run_folder.h"
#include "train/sft.h"
#include "train/training_run.h"

namespace fathom {
namespace {

SectionReaders readers(RewardConfig& c) {
    return {{"reward", [&c](TomlSection& s, const std::filesystem::path&) {
                 s.integer("pairs_per_step", c.pairs_per_step, 1, 1 << 20);
                 s.number("center_rewards_coefficient", c.center_rewards_coefficient, 0, 1e6);
                 s.text("chat_format", c.chat_format);
             }}};
}

// transformers reads the score at the last token that is not padding: were the end of a sentence the padding too, that would
// be the token before it.
void make_reward_model(ModelConfig& model) {
    model.num_labels = 1;
    const auto& ends = model.eos_token_id;
    if (model.pad_token_id && std::ranges::find(ends, *model.pad_token_id) != ends.end()) model.pad_token_id.reset();
}

class RewardRun : public TrainingRun {
public:
    RewardRun(const RewardConfig& config, Ops& ops, const RunOptions& options)
        : TrainingRun("reward", config.train, ops, options),
          config_(config),
          tokenizer_(open_tokenizer(config.train)) {}

protected:
    void open_data() override {
        pairs_ = read("train", train_config().data.train);
        if (!train_config().data.valid.empty()) held_out_ = read("valid", train_config().data.valid);
        const int64_t most = train_config().metrics.valid_batches * config_.pairs_per_step;
        if (most > 0 && std::ssize(held_out_) > most) held_out_.resize(static_cast<size_t>(most));
        order_ = std::make_unique<PromptOrder>(std::ssize(pairs_), train_config().job.seed);
    }
    void open_trainer() override {
        learner_ = std::make_unique<Learner>(train_config(), model(), ops(), options().deterministic);
    }
    [[nodiscard]] Optimizer& optimizer() override { return learner_->optimizer(); }
    [[nodiscard]] TrainerState state() const override { return {learner_->step(), learner_->tokens(), order_->state()}; }
    void restore(const TrainerState& state, const std::filesystem::path&) override {
        learner_->restore(state.step, state.tokens);
        order_->restore(state.loader);
    }

    [[nodiscard]] StepMetrics step(RunSummary& summary) override {
        const auto start = std::chrono::steady_clock::now();
        std::vector<const Preference*> chosen;
        for (int64_t i = 0; i < config_.pairs_per_step; ++i) chosen.push_back(&pairs_[static_cast<size_t>(order_->next())]);
        PairwiseSums sums;
        int64_t consumed = 0;
        for (const auto& batch : batches_of(chosen)) {
            const TokenBatch tokens = pack(batch);
            consumed += std::ssize(tokens.tokens);
            sums.add(learn(tokens));
        }
        StepMetrics metrics = learner_->update(consumed);
        describe(metrics, sums, "");
        metrics.loss = sums.loss / static_cast<double>(sums.pairs);
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        metrics.tokens_per_second = static_cast<double>(consumed) / seconds;
        if (!held_out_.empty() && validates(metrics.step)) summary.valid_loss = evaluate(metrics);
        return metrics;
    }
    [[nodiscard]] std::string note(const StepMetrics& step) const override {
        return fmt::format("loss {:.4f}  accuracy {:.3f}  {} tok/s", *step.loss, step.more.front().second,
                           human_count(*step.tokens_per_second));
    }
    [[nodiscard]] std::string last_note(const RunSummary& summary) const override {
        return summary.valid_loss ? fmt::format("accuracy {:.3f} on held-out pairs", held_out_accuracy_) : "";
    }

private:
    using Pairs = std::vector<const Preference*>;

    const RewardConfig& config_;
    Tokenizer tokenizer_;
    std::vector<Preference> pairs_, held_out_;
    std::unique_ptr<Learner> learner_;
    std::unique_ptr<PromptOrder> order_;
    double held_out_accuracy_ = 0;

    [[nodiscard]] std::vector<Preference> read(const char* name, const std::vector<std::filesystem::path>& files) const {
        const ChatFormat format = chat_format_named(config_.chat_format, tokenizer_, train_config());
        PreferenceSet set = read_preferences(files, tokenizer_, format, train_config().data.sequence_length);
        if (set.overlong > 0) {
            fmt::print(stderr, "data.{}: {} pairs with an answer beyond data.sequence_length = {} tokens are left out\n", name,
                       set.overlong, train_config().data.sequence_length);
        }
        if (set.pairs.empty()) throw Error(ErrorKind::kInput, fmt::format("data.{}: holds no pair that can be used", name));
        return std::move(set.pairs);
    }

    [[nodiscard]] std::vector<Pairs> batches_of(const Pairs& pairs) const {
        std::vector<int64_t> lengths;
        for (const Preference* pair : pairs) lengths.push_back(pair->length());
        std::vector<Pairs> batches;
        for (const auto& [begin, end] : within_token_budget(lengths, train_config().batch_tokens()))
            batches.emplace_back(pairs.begin() + static_cast<ptrdiff_t>(begin), pairs.begin() + static_cast<ptrdiff_t>(end));
        return batches;
    }

    [[nodiscard]] static TokenBatch pack(const Pairs& pairs) {
        std::vector<std::span<const int32_t>> sequences;
        for (const Preference* pair : pairs) {
            sequences.emplace_back(pair->chosen);
            sequences.emplace_back(pair->rejected);
        }
        return pack_sequences(sequences);
    }

    // Adds a batch's part of the gradient of the step's mean loss.
    [[nodiscard]] PairwiseSums learn(const TokenBatch& tokens) {
        PairwiseSums sums;
        learner_->accumulate(tokens, [&](Context& cx, const Tensor& hidden, const Tensor& dhidden, DeepSeek::Saved&) {
            sums =
                pairwise_loss_and_gradient(cx, model().head(), dhidden, hidden, tokens.cu_seqlens,
                                           config_.center_rewards_coefficient, 1 / static_cast<double>(config_.pairs_per_step));
        });
        return sums;
    }

    static void describe(StepMetrics& metrics, const PairwiseSums& sums, const std::string& prefix) {
        const auto pairs = static_cast<double>(sums.pairs);
        metrics.more.emplace_back(prefix + "accuracy", sums.accuracy());
        metrics.more.emplace_back(prefix + "margin", sums.margin / pairs);
        metrics.more.emplace_back(prefix + "mean_reward", sums.score / pairs / 2);
    }

    double evaluate(StepMetrics& metrics) {
        Pairs all;
        for (const Preference& pair : held_out_) all.push_back(&pair);
        PairwiseSums sums;
        for (const auto& batch : batches_of(all)) {
            const TokenBatch tokens = pack(batch);
            learner_->forward(tokens, [&](Context& cx, const Tensor& hidden) {
                const std::vector<float> scores = sequence_scores(cx, model().head(), hidden, tokens.cu_seqlens);
                sums.add(pairwise_loss({}, scores, config_.center_rewards_coefficient, 1));
            });
        }
        describe(metrics, sums, "eval/");
        metrics.more.emplace_back("eval/length_only_accuracy", length_only_accuracy(held_out_));
        held_out_accuracy_ = sums.accuracy();
        metrics.val_loss = sums.loss / static_cast<double>(sums.pairs);
        return *metrics.val_loss;
    }
};

}  // namespace

RewardConfig RewardConfig::load(const std::filesystem::path& file, std::span<const std::string> overrides) {
    RewardConfig config;
    config.train = TrainConfig::load(file, overrides, readers(config));
    make_reward_model(config.train.model.config);
    if (config.train.training.rows_per_batch < 2)
        fail_setting("training.rows_per_batch", "must be at least 2: a batch holds both answers of a pair");
    if (config.train.model.config.num_nextn_predict_layers > 0)
        fail_setting("model.num_nextn_predict_layers", "must be 0: a score says nothing about MTP modules");
    return config;
}

RunSummary run_reward_training(const RewardConfig& config, Ops& ops, const RunOptions& options) {
    return RewardRun(config, ops, options).train();
}

}  // namespace fathom
