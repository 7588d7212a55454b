#include "nn/block.h"

#include <utility>

namespace fathom {

Block::Block(int64_t hidden_size, double rms_norm_eps, const Attention& attention, FeedForward feed_forward)
    : input_layernorm_(hidden_size, rms_norm_eps),
      post_attention_layernorm_(hidden_size, rms_norm_eps),
      attention_(attention),
      feed_forward_(std::move(feed_forward)) {}

void Block::visit(const Names& names) {
    input_layernorm_.visit(names.in("input_layernorm"));
    std::visit([&](auto& layer) { layer.visit(names.in("self_attn")); }, attention_);
    post_attention_layernorm_.visit(names.in("post_attention_layernorm"));
    std::visit([&](auto& layer) { layer.visit(names.in("mlp")); }, feed_forward_);
}

std::vector<CacheState> Block::cache_states() const {
    return std::visit([](const auto& layer) { return layer.cache_states(); }, attention_);
}

void Block::forward(Context& cx, const Tensor& y, const Tensor& x, const Batch& batch, const LayerCache* cache,
                    Saved* saved) const {
    const ArenaScope scope(cx.scratch);
    const bool keep = saved != nullptr;
    const Tensor h = cx.empty({x.dim(0), x.dim(1)}, keep);
    const Tensor attended = std::visit(
        [&]<class Layer>(const Layer& layer) {
            auto* state = keep ? &saved->attention.emplace<typename Layer::Saved>() : nullptr;
            return layer.forward(cx, rms_norm(cx, x, input_layernorm_, keep), batch, cache, state);
        },
        attention_);
    const Tensor normed = add_rms_norm(cx, h, x, attended, post_attention_layernorm_, keep);
    std::visit(
        [&]<class Layer>(const Layer& layer) {
            auto* state = keep ? &saved->feed_forward.emplace<typename Layer::Saved>() : nullptr;
            layer.forward(cx, y, h, normed, batch, state);
        },
        feed_forward_);
    if (keep) saved->x = x, saved->h = h;
}

void Block::backward(Context& cx, const Tensor& dx, const Tensor& dy, const Batch& batch, const Saved& saved) const {
    const ArenaScope scope(cx.scratch);
    const Tensor dh = cx.empty({dy.dim(0), dy.dim(1)});
    const Tensor dfed = std::visit(
        [&]<class Layer>(const Layer& layer) {
            return layer.backward(cx, dy, batch, std::get<typename Layer::Saved>(saved.feed_forward));
        },
        feed_forward_);
    cx.ops.add(dh, dy, rms_norm_backward(cx, dfed, saved.h, post_attention_layernorm_));
    const Tensor dattended = std::visit(
        [&]<class Layer>(const Layer& layer) {
            return layer.backward(cx, dh, batch, std::get<typename Layer::Saved>(saved.attention));
        },
        attention_);
    cx.ops.add(dx, dh, rms_norm_backward(cx, dattended, saved.x, input_layernorm_));
}

}  // namespace fathom
