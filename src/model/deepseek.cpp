#include "model/deepseek.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>

namespace fathom {
namespace {

// How many ids a module guesses among: tokenizers number what is frequent first. A multiple of 128, so that no quantized block
// of the head's rows is cut; all of a vocabulary below 4096, whose head is small anyway.
int64_t guessed_ids(int64_t vocab_size) {
    constexpr int64_t kShare = 4, kRows = 128, kSmall = 4096;
    return vocab_size < kSmall ? vocab_size : (vocab_size / kShare + kRows - 1) / kRows * kRows;
}

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer); }

Attention make_attention(const ModelConfig& c) {
    const RopePairing pairing = c.rope_interleave ? RopePairing::kInterleaved : RopePairing::kHalves;
    if (!c.mla()) {
        return Mha({c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.qk_head_dim(), c.attention_bias,
                    c.softmax_scale(), pairing});
    }
    return Mla({c.hidden_size, c.num_attention_heads, c.q_lora_rank, c.kv_lora_rank, c.qk_nope_head_dim, c.qk_rope_head_dim,
                c.v_head_dim, c.attention_bias, c.softmax_scale(), pairing, c.latent_norm_eps()});
}

FeedForward make_feed_forward(const ModelConfig& c, int64_t layer) {
    if (!c.moe_layer(layer)) return Mlp(c.hidden_size, c.intermediate_size);
    const RouteRule rule{c.scoring_func, c.topk_method, c.n_group, c.topk_group, c.norm_topk_prob, c.routed_scaling_factor};
    return Moe({layer,
                {c.hidden_size, c.n_routed_experts, c.num_experts_per_tok, rule, c.correction_bias()},
                c.moe_intermediate_size,
                c.n_shared_experts});
}

}  // namespace

std::vector<float> rope_frequencies(const ModelConfig& config) {
    const auto d = static_cast<double>(config.rope_dim());
    const double base = config.rope_theta;
    std::vector<float> frequencies;
    double low = 0, high = 0;
    if (config.rope_scaling) {
        const auto length = static_cast<double>(config.rope_scaling->original_max_position_embeddings);
        const auto correction = [&](double rotations) {
            return d * std::log(length / (2 * std::numbers::pi * rotations)) / (2 * std::log(base));
        };
        low = std::max(std::floor(correction(config.rope_scaling->beta_fast)), 0.0);
        high = std::min(std::ceil(correction(config.rope_scaling->beta_slow)), d - 1);
        if (low == high) high += 0.001;
    }
    for (int64_t i = 0; i < config.rope_dim() / 2; ++i) {
        const double theta = std::pow(base, -2.0 * static_cast<double>(i) / d);
        double value = theta;
        if (config.rope_scaling) {
            const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
            value = theta * (1 - ramp) + theta / config.rope_scaling->factor * ramp;
        }
        frequencies.push_back(static_cast<float>(value));
    }
    return frequencies;
}

DeepSeek::DeepSeek(const ModelConfig& config)
    : config_(config),
      inv_freq_(rope_frequencies(config)),
      embed_tokens_(config.vocab_size, config.hidden_size),
      norm_(config.hidden_size, config.rms_norm_eps),
      lm_head_(config.head_size(), config.hidden_size) {
    for (int64_t i = 0; i < config_.num_hidden_layers; ++i) layers_.push_back(make_block(i));
    for (int64_t i = 0; i < config_.num_nextn_predict_layers; ++i) {
        mtp_.emplace_back(config_.hidden_size, config_.rms_norm_eps, make_block(config_.num_hidden_layers + i));
    }
}

Block DeepSeek::make_block(int64_t layer) const {
    return {config_.hidden_size, config_.rms_norm_eps, make_attention(config_), make_feed_forward(config_, layer)};
}

void DeepSeek::visit(const ParamVisitor& visitor) {
    const Names names("", visitor);
    embed_tokens_.visit(names.in("model.embed_tokens"));
    for (size_t i = 0; i < layers_.size(); ++i) layers_[i].visit(names.in(layer_prefix(static_cast<int64_t>(i))));
    norm_.visit(names.in("model.norm"));
    if (!config_.tied_head()) lm_head_.visit(names.in(config_.num_labels > 0 ? "score" : "lm_head"));
    for (size_t i = 0; i < mtp_.size(); ++i)
        mtp_[i].visit(names.in(layer_prefix(config_.num_hidden_layers + static_cast<int64_t>(i))));
}

std::vector<DeepSeek::Alias> DeepSeek::aliases() const {
    std::vector<Alias> result;
    const std::string head = config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    for (int64_t i = 0; i < config_.num_nextn_predict_layers; ++i) {
        const std::string prefix = layer_prefix(config_.num_hidden_layers + i);
        result.push_back({prefix + ".embed_tokens.weight", "model.embed_tokens.weight"});
        result.push_back({prefix + ".shared_head.head.weight", head});
    }
    return result;
}

Batch DeepSeek::with_rope(Context& cx, const Batch& batch, bool keep) const {
    Batch result = batch;
    const Tensor inv_freq = (keep ? cx.saved : cx.scratch).allocate(DType::kF32, {config_.rope_dim() / 2});
    cx.ops.write(inv_freq, inv_freq_.data());
    result.rope = cx.empty_precise({batch.rows, config_.rope_dim()}, keep);
    cx.ops.rope_table(result.rope, batch.positions, inv_freq, config_.rope_magnitude());
    return result;
}

Tensor DeepSeek::embed(Context& cx, const Tensor& tokens, bool keep) const {
    const Tensor x = cx.empty({tokens.dim(0), config_.hidden_size}, keep);
    cx.ops.gather_weight_rows(x, embed_tokens_.weight.weight, tokens);
    return x;
}

Tensor DeepSeek::forward(Context& cx, const Batch& plain_batch, const CacheView* cache, Saved* saved,
                         std::vector<Tensor>* states) const {
    const bool keep = saved != nullptr;
    const Batch batch = with_rope(cx, plain_batch, keep);
    Tensor x = embed(cx, batch.tokens, keep),
           y = keep || states != nullptr ? Tensor() : cx.empty({batch.rows, config_.hidden_size});
    if (keep) *saved = {batch, {x}, std::vector<Block::Saved>(layers_.size()), {}, std::vector<Mtp::Saved>(mtp_.size())};
    for (size_t i = 0; i < layers_.size(); ++i) {
        if (states != nullptr) states->push_back(x);
        if (keep || states != nullptr) y = cx.empty({batch.rows, config_.hidden_size}, keep);
        layers_[i].forward(cx, y, x, batch, layer_cache(cache, static_cast<int64_t>(i)),
                           keep && !recompute_ ? &saved->blocks[i] : nullptr);
        std::swap(x, y);
        if (keep) saved->x.push_back(x);
    }
    const Tensor hidden = rms_norm(cx, x, norm_, keep);
    if (states != nullptr) states->push_back(hidden);
    if (keep) saved->hidden = hidden;
    return hidden;
}

void DeepSeek::backward(Context& cx, const Tensor& dhidden, const Saved& saved) const {
    const ArenaScope scope(cx.scratch);
    const Tensor dx = rms_norm_backward(cx, dhidden, saved.x.back(), norm_);
    for (size_t i = layers_.size(); i-- > 0;) {
        if (!recompute_) {
            layers_[i].backward(cx, dx, dx, saved.batch, saved.blocks[i]);
            continue;
        }
        const ArenaScope kept(cx.saved), temporary(cx.scratch);
        Block::Saved block;
        layers_[i].forward(cx, cx.empty({dx.dim(0), dx.dim(1)}), saved.x[i], saved.batch, nullptr, &block);
        layers_[i].backward(cx, dx, dx, saved.batch, block);
    }
    cx.ops.gather_rows_backward(summed_gradient(cx.ops, embed_tokens_.weight), dx, saved.batch.tokens);
}

Tensor DeepSeek::mtp_forward(Context& cx, int64_t depth, const Tensor& hidden, const Tensor& tokens_ahead, const Batch& batch,
                             const CacheView* cache, Saved* saved) const {
    const auto k = static_cast<size_t>(depth);
    const bool keep = saved != nullptr;
    const Tensor embedding = embed(cx, tokens_ahead, keep);
    const Batch roped = batch.rope ? batch : with_rope(cx, batch, keep);
    return mtp_[k].forward(cx, hidden, embedding, roped, layer_cache(cache, config_.num_hidden_layers + depth),
                           keep ? &saved->mtp[k] : nullptr);
}

// Of a large vocabulary a quarter is enough: on models/stories a guess among it comes true 0.85 times instead of 0.91, and a
// step costs 1.56 plain ones instead of 1.84 (docs/performance.md).
Tensor DeepSeek::mtp_logits(Context& cx, int64_t depth, const Tensor& y) const {
    const Tensor hidden = mtp_[static_cast<size_t>(depth)].output(cx, y);
    const int64_t ids = guessed_ids(config_.vocab_size);
    if (ids == config_.vocab_size) return logits(cx, hidden);
    const Tensor some = cx.empty_precise({y.dim(0), ids});
    const Linear& head = config_.tied_head() ? embed_tokens_ : lm_head_;
    cx.ops.matmul(some, hidden, head.weight.weight.rows(0, ids));
    return some;
}

void DeepSeek::mtp_loss_and_gradient(Context& cx, const Tensor& loss, const Tensor& dhidden,
                                     std::span<const Tensor> tokens_ahead, std::span<const Tensor> targets, double scale,
                                     Saved& saved) const {
    const ArenaScope scope(cx.scratch);
    const int64_t n = dhidden.dim(0), d = dhidden.dim(1);
    std::vector<Tensor> doutput;
    Tensor hidden = saved.hidden;
    for (size_t k = 0; k < mtp_.size(); ++k) {
        hidden = mtp_forward(cx, static_cast<int64_t>(k), hidden, tokens_ahead[k], saved.batch, nullptr, &saved);
        doutput.push_back(cx.empty({n, d}));
        const Tensor row = loss.slice(0, static_cast<int64_t>(k), static_cast<int64_t>(k) + 1).view({n});
        head().loss_and_gradient(cx, row, doutput[k], mtp_[k].output(cx, hidden), targets[k], scale);
    }
    Tensor dnext;
    const Tensor dembedding = cx.empty({n, d});
    for (size_t k = mtp_.size(); k-- > 0;) {
        const Tensor din = cx.empty({n, d});
        mtp_[k].backward(cx, din, dembedding, doutput[k], dnext, saved.batch, saved.mtp[k]);
        cx.ops.gather_rows_backward(summed_gradient(cx.ops, embed_tokens_.weight), dembedding, tokens_ahead[k]);
        dnext = din;
    }
    if (dnext) cx.ops.add(dhidden, dhidden, dnext);
}

std::vector<std::vector<CacheState>> DeepSeek::cache_states() const {
    std::vector<std::vector<CacheState>> result;
    for (const Block& block : layers_) result.push_back(block.cache_states());
    for (const Mtp& module : mtp_) result.push_back(module.block().cache_states());
    return result;
}

std::vector<std::pair<int64_t, Moe*>> DeepSeek::moe_layers() {
    std::vector<std::pair<int64_t, Moe*>> result;
    for (size_t i = 0; i < layers_.size(); ++i) {
        if (Moe* moe = layers_[i].moe()) result.emplace_back(static_cast<int64_t>(i), moe);
    }
    for (size_t i = 0; i < mtp_.size(); ++i) {
        if (Moe* moe = mtp_[i].block().moe()) result.emplace_back(config_.num_hidden_layers + static_cast<int64_t>(i), moe);
    }
    return result;
}

void DeepSeek::split_kv_b() {
    for (Block& block : layers_) {
        if (Mla* mla = block.mla()) mla->split_kv_b();
    }
}

}  // namespace fathom
