#include "rl/reward_model.h"

#include <fmt/format.h>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "io/chat_examples.h"
#include "rl/token_budget.h"
#include "train/sft.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

constexpr int64_t kBatchTokens = 8192;  // of one forward

class ModelReward : public Reward {
public:
    ModelReward(const RewardOptions& options, Ops& ops) : model_(options.model, ops) {}

    [[nodiscard]] std::string name() const override { return "model"; }
    [[nodiscard]] std::vector<double> score(std::span<const RewardInput> answers, std::vector<std::string>& problems) override {
        std::vector<double> values(answers.size(), std::numeric_limits<double>::quiet_NaN());
        std::vector<std::vector<int32_t>> sequences;
        std::vector<size_t> whose;
        for (size_t i = 0; i < answers.size(); ++i) {
            try {
                sequences.push_back(tokens_of(answers[i]));
                whose.push_back(i);
            } catch (const std::exception& error) {  // of this answer alone
                problems.push_back(fmt::format("model: {}", error.what()));
            }
        }
        const std::vector<float> scores = model_.score(sequences);
        for (size_t k = 0; k < whose.size(); ++k) {
            values[whose[k]] = std::isfinite(scores[k]) ? static_cast<double>(scores[k]) : values[whose[k]];
            if (!std::isfinite(scores[k])) problems.emplace_back("model: the reward model's score is not a number");
        }
        return values;
    }

private:
    RewardModel model_;

    [[nodiscard]] std::vector<int32_t> tokens_of(const RewardInput& input) const {
        const Json& record = *input.record;
        Json prompt = record.contains("messages") ? record["messages"] : record.value("prompt", Json());
        if (prompt.is_array()) {  // answers that the record has are not the one to be judged
            while (!prompt.empty() && prompt.back().is_object() && prompt.back().value("role", "") == "assistant")
                prompt.erase(prompt.size() - 1);
        }
        std::vector<int32_t> tokens = conversation_tokens(prompt, input.completion, model_.format(), model_.tokenizer());
        if (std::ssize(tokens) <= model_.max_length()) return tokens;
        throw Error(ErrorKind::kInput,
                    fmt::format("{} tokens are more than the reward model reads ({})", tokens.size(), model_.max_length()));
    }
};

// Last tokens of packed sequences, their states and scores.
struct Scored {
    Tensor rows;    // [sequences] i32
    Tensor states;  // [sequences, hidden_size]
    Tensor scores;  // [sequences, 1], of the precise type

    Scored(Context& cx, const Head& head, const Tensor& hidden, std::span<const int32_t> cu_seqlens) {
        std::vector<int32_t> last;
        for (const int32_t end : cu_seqlens.subspan(1)) last.push_back(end - 1);
        rows = cx.ints(last);
        states = cx.empty({std::ssize(last), hidden.dim(1)});
        cx.ops.gather_rows(states, hidden, rows);
        scores = head.logits(cx, states);
    }
    [[nodiscard]] std::vector<float> to_host(Context& cx) const {
        const Tensor narrow = cx.scratch.allocate(DType::kF32, {scores.dim(0), 1});
        cx.ops.copy(narrow, scores);
        std::vector<float> values(static_cast<size_t>(scores.dim(0)));
        cx.ops.read_back(values.data(), narrow);
        return values;
    }
};

}  // namespace

TokenBatch pack_sequences(std::span<const std::span<const int32_t>> sequences) {
    TokenBatch batch;
    batch.cu_seqlens.push_back(0);
    for (const std::span<const int32_t> sequence : sequences) {
        batch.tokens.insert(batch.tokens.end(), sequence.begin(), sequence.end());
        for (int64_t i = 0; i < std::ssize(sequence); ++i) batch.positions.push_back(static_cast<int32_t>(i));
        batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
    }
    batch.targets.assign(batch.tokens.size(), kNoTarget);
    return batch;
}

std::vector<float> sequence_scores(Context& cx, const Head& head, const Tensor& hidden, std::span<const int32_t> cu_seqlens) {
    return Scored(cx, head, hidden, cu_seqlens).to_host(cx);
}

PairwiseSums pairwise_loss_and_gradient(Context& cx, const Head& head, const Tensor& dhidden, const Tensor& hidden,
                                        std::span<const int32_t> cu_seqlens, double center, double scale) {
    const ArenaScope scope(cx.scratch);
    const Scored scored(cx, head, hidden, cu_seqlens);
    const std::vector<float> scores = scored.to_host(cx);
    std::vector<float> gradient(scores.size());
    const PairwiseSums sums = pairwise_loss(gradient, scores, center, scale);
    const int64_t m = std::ssize(scores);
    const Tensor written = cx.scratch.allocate(DType::kF32, {m, 1}), dscores = cx.empty({m, 1}),
                 dstates = cx.empty({m, hidden.dim(1)});
    cx.ops.write(written, gradient.data());
    cx.ops.copy(dscores, written);
    head.logits_backward(cx, dstates, dscores, scored.states);
    cx.ops.fill(dhidden, 0);
    cx.ops.scatter_rows(dhidden, dstates, scored.rows);
    return sums;
}

RewardModel::RewardModel(const std::filesystem::path& folder, Ops& ops, const std::string& chat_format)
    : ops_(ops),
      loaded_(load_model(folder, ops, {.head = HeadKind::kLabels})),
      scratch_("scratch", [&ops](int64_t bytes) { return ops.allocate(bytes); }),
      saved_("activations", [&ops](int64_t bytes) { return ops.allocate(bytes); }) {
    if (loaded_.config.num_labels != 1) {
        throw Error(ErrorKind::kInput, fmt::format("{}: a reward model has one score, this classifier {} labels",
                                                   folder.string(), loaded_.config.num_labels));
    }
    tokenizer_.emplace(Tokenizer::load(folder));
    TrainConfig names;
    names.model.config = loaded_.config;
    names.model.init_from = folder;
    format_.emplace(chat_format_named(chat_format, *tokenizer_, names));
}

std::vector<float> RewardModel::score(std::span<const std::vector<int32_t>> sequences) {
    std::vector<int64_t> lengths;
    for (const auto& sequence : sequences) lengths.push_back(std::ssize(sequence));
    std::vector<float> values;
    for (const auto& [begin, end] : within_token_budget(lengths, kBatchTokens)) {
        scratch_.clear();
        saved_.clear();
        Context cx{ops_, scratch_, saved_};
        std::vector<SequenceChunk> chunks;
        std::vector<int32_t> cu_seqlens{0};
        for (size_t i = begin; i < end; ++i) {
            chunks.push_back({sequences[i], 0, AttentionForm::kExpanded, {}});
            cu_seqlens.push_back(cu_seqlens.back() + static_cast<int32_t>(sequences[i].size()));
        }
        const Tensor hidden = loaded_.model->forward(cx, make_batch(cx, chunks, 0, false), nullptr, nullptr);
        const std::vector<float> scores = sequence_scores(cx, loaded_.model->head(), hidden, cu_seqlens);
        values.insert(values.end(), scores.begin(), scores.end());
    }
    return values;
}

std::unique_ptr<Reward> make_model_reward(const RewardOptions& options, Ops& ops) {
    return std::make_unique<ModelReward>(options, ops);
}

}  // namespace fathom
