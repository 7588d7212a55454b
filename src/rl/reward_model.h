// A reward model: the trunk of a language model under a head of one score, read at the last token of a conversation. On disk
// it is transformers' DeepseekV3ForSequenceClassification with num_labels = 1: `score.weight` [1, hidden_size].
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "io/chat_format.h"
#include "io/packed_loader.h"
#include "rl/preferences.h"
#include "rl/reward.h"

namespace fathom {

// Sequences one behind the other. They have no targets: a score is no prediction of a token.
[[nodiscard]] TokenBatch pack_sequences(std::span<const std::span<const int32_t>> sequences);
// Scores of packed sequences, read at their last tokens: one per sequence. hidden [n, hidden_size].
[[nodiscard]] std::vector<float> sequence_scores(Context& cx, const Head& head, const Tensor& hidden,
                                                 std::span<const int32_t> cu_seqlens);
// The pairwise loss of packed sequences, chosen and rejected of pair after pair (rl/preferences.h): writes dhidden [n,
// hidden_size], the gradient of `scale` times the sum, and accumulates the head's own.
[[nodiscard]] PairwiseSums pairwise_loss_and_gradient(Context& cx, const Head& head, const Tensor& dhidden,
                                                      const Tensor& hidden, std::span<const int32_t> cu_seqlens, double center,
                                                      double scale);

class RewardModel {
public:
    // `folder`: a checkpoint of `fathom reward train`, or another classifier with one label, with its tokenizer. `chat_format`:
    // auto, v2, v3, r1, v31. Throws Error{kInput} for what is no reward model. The ops must outlive it.
    RewardModel(const std::filesystem::path& folder, Ops& ops, const std::string& chat_format = "auto");

    // One score per sequence (conversation_tokens), of 1 to max_length() tokens each. Its bits do not depend on the others.
    [[nodiscard]] std::vector<float> score(std::span<const std::vector<int32_t>> sequences);

    [[nodiscard]] const Tokenizer& tokenizer() const { return *tokenizer_; }
    [[nodiscard]] const ChatFormat& format() const { return *format_; }
    [[nodiscard]] int64_t max_length() const { return loaded_.config.max_position_embeddings; }

private:
    Ops& ops_;
    LoadedModel loaded_;
    std::optional<Tokenizer> tokenizer_;
    std::optional<ChatFormat> format_;
    Arena scratch_, saved_;
};

// The reward "model": what RewardModel says of the record's "prompt" or "messages" with the completion behind it. Answers that
// are too long for it, or empty conversations, count as not judged.
[[nodiscard]] std::unique_ptr<Reward> make_model_reward(const RewardOptions& options, Ops& ops);

}  // namespace fathom
