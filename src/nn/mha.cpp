#include "nn/mha.h"

#include "nn/cache_type.h"

namespace fathom {
namespace {

Tensor sum(Context& cx, const Tensor& a, const Tensor& b) {
    cx.ops.add(a, a, b);
    return a;
}

}  // namespace

Mha::Mha(const MhaConfig& config) : config_(config) {
    check(config.num_key_value_heads == config.num_attention_heads, "Mha: grouped queries are not part of this family");
    const int64_t width = config.num_attention_heads * config.head_dim;
    wq_ = Linear(width, config.hidden_size, config.attention_bias);
    wk_ = Linear(width, config.hidden_size, config.attention_bias);
    wv_ = Linear(width, config.hidden_size, config.attention_bias);
    wo_ = Linear(config.hidden_size, width, config.attention_bias);
}

void Mha::visit(const Names& names) {
    wq_.visit(names.in("q_proj"));
    wk_.visit(names.in("k_proj"));
    wv_.visit(names.in("v_proj"));
    wo_.visit(names.in("o_proj"));
}

std::vector<CacheState> Mha::cache_states() const {
    const int64_t width = config_.num_attention_heads * config_.head_dim;
    return {{"key", width}, {"value", width}};
}

Tensor Mha::forward(Context& cx, const Tensor& x, const Batch& batch, const LayerCache* cache, Saved* saved) const {
    const bool keep = saved != nullptr;
    const int64_t n = x.dim(0), h = config_.num_attention_heads, d = config_.head_dim, width = h * d;
    const auto heads = [&](const Tensor& t) { return t.view({t.dim(0), h, d}); };
    const Tensor q = heads(linear(cx, x, wq_, keep)), k = heads(linear(cx, x, wk_, keep)), v = heads(linear(cx, x, wv_, keep));
    cx.ops.rope(q, q, batch.rope, config_.pairing, false);
    cx.ops.rope(k, k, batch.rope, config_.pairing, false);
    for (const Tensor& state : {k, v}) round_as_cached(cx, state.view({n, width}));
    if (cache != nullptr) {
        cx.ops.scatter_weight_rows(page_rows(cache->states[0]), k.view({n, width}), batch.slots);
        cx.ops.scatter_weight_rows(page_rows(cache->states[1]), v.view({n, width}), batch.slots);
    }
    const Tensor o = cx.empty({n, h, d}, keep), lse = cx.empty_precise({n, h}, keep);
    for (const SequenceGroup* group : {&batch.expanded, &batch.absorbed}) {
        if (group->rows == 0) continue;
        Tensor keys = group->of(k), values = group->of(v);
        if (cache != nullptr) {
            check(group->key_rows.defined(), "Mha: sequences of a cached batch must be in expanded form");
            keys = cx.empty({group->keys, h, d});
            values = cx.empty({group->keys, h, d});
            cx.ops.gather_weight_rows(keys.view({group->keys, width}), page_rows(cache->states[0]), group->key_rows);
            cx.ops.gather_weight_rows(values.view({group->keys, width}), page_rows(cache->states[1]), group->key_rows);
        }
        cx.ops.attention(group->of(o), group->of(lse), group->of(q), keys, {}, values, group->spans, config_.softmax_scale);
    }
    if (keep) *saved = {x, q, k, v, o, lse};
    return linear(cx, o.view({n, width}), wo_);
}

Tensor Mha::backward(Context& cx, const Tensor& dy, const Batch& batch, const Saved& saved) const {
    const int64_t n = dy.dim(0), h = config_.num_attention_heads, d = config_.head_dim, width = h * d;
    const Tensor dout = linear_backward(cx, dy, saved.o.view({n, width}), wo_).view({n, h, d});
    const Tensor dq = cx.empty({n, h, d}), dk = cx.empty({n, h, d}), dv = cx.empty({n, h, d});
    for (const SequenceGroup* group : {&batch.expanded, &batch.absorbed}) {
        if (group->rows == 0) continue;
        cx.ops.attention_backward(group->of(dq), group->of(dk), {}, group->of(dv), group->of(dout), group->of(saved.q),
                                  group->of(saved.k), {}, group->of(saved.v), group->of(saved.o), group->of(saved.lse),
                                  group->spans, config_.softmax_scale);
    }
    cx.ops.rope(dq, dq, batch.rope, config_.pairing, true);
    cx.ops.rope(dk, dk, batch.rope, config_.pairing, true);
    const Tensor dx_q = linear_backward(cx, dq.view({n, width}), saved.x, wq_),
                 dx_k = linear_backward(cx, dk.view({n, width}), saved.x, wk_);
    return sum(cx, sum(cx, dx_q, dx_k), linear_backward(cx, dv.view({n, width}), saved.x, wv_));
}

}  // namespace fathom
