// The one model: every DeepSeek-architecture checkpoint is this class under another config.
#pragma once

#include <optional>
#include <vector>

#include "model/config.h"
#include "nn/head.h"
#include "nn/mtp.h"

namespace fathom {

class DeepSeek {
public:
    // From a forward to its backward. Tensors live in cx.saved.
    struct Saved {
        Batch batch;            // with the rope table
        std::vector<Tensor> x;  // [layers + 1] x [n, hidden]: the residual stream before each layer, and after the last
        std::vector<Block::Saved> blocks;  // empty structs for layers that are recomputed
        Tensor hidden;                     // [n, hidden] after the final norm
        std::vector<Mtp::Saved> mtp;
    };

    explicit DeepSeek(const ModelConfig& config);
    DeepSeek(const DeepSeek&) = delete;
    DeepSeek& operator=(const DeepSeek&) = delete;

    [[nodiscard]] const ModelConfig& config() const { return config_; }

    // Every parameter once, under its checkpoint name (architecture reference 8.1; MTP modules are layers num_hidden_layers +
    // k).
    void visit(const ParamVisitor& visitor);
    // Names under which released checkpoints repeat a parameter: the embedding and the head inside each MTP module.
    struct Alias {
        std::string name, of;
    };
    [[nodiscard]] std::vector<Alias> aliases() const;

    // forward() step by step, for who wants to stop between layers (calibration): the batch with the angles of its positions,
    // the embedding [n, hidden_size], then layer after layer.
    [[nodiscard]] Batch with_rope(Context& cx, const Batch& batch, bool keep) const;
    [[nodiscard]] Tensor embed(Context& cx, const Tensor& tokens, bool keep) const;
    [[nodiscard]] const Block& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }

    // tokens -> hidden [n, hidden_size] after the final norm, in cx.saved when `saved`, else in cx.scratch. With a cache, reads
    // and writes it. `states`: receives the residual stream before each layer (what `dump --what hidden` shows).
    [[nodiscard]] Tensor forward(Context& cx, const Batch& batch, const CacheView* cache, Saved* saved,
                                 std::vector<Tensor>* states = nullptr) const;
    // dhidden [n, hidden_size] -> gradients of all parameters below the head.
    void backward(Context& cx, const Tensor& dhidden, const Saved& saved) const;

    [[nodiscard]] Head head() const { return Head(config_.tied_head() ? embed_tokens_ : lm_head_); }
    [[nodiscard]] Tensor logits(Context& cx, const Tensor& hidden) const { return head().logits(cx, hidden); }
    void logits_to(Context& cx, const Tensor& y, const Tensor& hidden) const { head().logits_to(cx, y, hidden); }

    // MTP module `depth` (0-based) on the state one depth earlier; tokens_ahead [n] i32 = the token depth + 1 further on.
    [[nodiscard]] Tensor mtp_forward(Context& cx, int64_t depth, const Tensor& hidden, const Tensor& tokens_ahead,
                                     const Batch& batch, const CacheView* cache, Saved* saved) const;
    // [n, vocab]; of a vocabulary of 4096 ids or more the first quarter only (to whole 128): what a guess is chosen from.
    [[nodiscard]] Tensor mtp_logits(Context& cx, int64_t depth, const Tensor& y) const;
    // Training: the losses of all modules at weight `scale` each, from targets shifted by 1 + k: targets[k] [n] i32,
    // tokens_ahead[k] [n]. Writes loss [depths, n], adds the gradient of scale * sum to dhidden [n, hidden_size].
    void mtp_loss_and_gradient(Context& cx, const Tensor& loss, const Tensor& dhidden, std::span<const Tensor> tokens_ahead,
                               std::span<const Tensor> targets, double scale, Saved& saved) const;

    // State per token of every layer, MTP modules included: what a cache must hold.
    [[nodiscard]] std::vector<std::vector<CacheState>> cache_states() const;
    // The MoE layers, MTP's included, with their layer index.
    [[nodiscard]] std::vector<std::pair<int64_t, Moe*>> moe_layers();
    // Every Mla::split_kv_b: before parameters are bound.
    void split_kv_b();
    // Recompute every block's activations in the backward instead of keeping them.
    void set_recompute(bool recompute) { recompute_ = recompute; }

private:
    ModelConfig config_;
    bool recompute_ = false;
    std::vector<float> inv_freq_;  // [rope_dim / 2], YaRN applied
    Linear embed_tokens_;          // [vocab, hidden]: a table, and the head's matrix when tied
    std::vector<Block> layers_;
    RmsNorm norm_;
    Linear lm_head_;  // [vocab, hidden], unused when tied; of a classifier `score`, [num_labels, hidden]
    std::vector<Mtp> mtp_;

    [[nodiscard]] Block make_block(int64_t layer) const;
    [[nodiscard]] static const LayerCache* layer_cache(const CacheView* cache, int64_t layer) {
        return cache == nullptr ? nullptr : &cache->layers[static_cast<size_t>(layer)];
    }
};

// Rotation frequencies [rope_dim / 2] with YaRN's interpolation (architecture: V2 3.1.4, YaRN eq. 23).
[[nodiscard]] std::vector<float> rope_frequencies(const ModelConfig& config);

}  // namespace fathom
