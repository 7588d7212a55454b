#include "nn/mla.h"

#include <tuple>
#include <utility>

#include "nn/cache_type.h"
#include "nn/stacked.h"

namespace fathom {
namespace {

// [n, h, width] channels [begin, end) of every head.
Tensor channels(const Tensor& x, int64_t begin, int64_t end) { return x.slice(2, begin, end); }

// [x a^T | x b^T] of two matrices that follow each other in memory, as one product; absent where they do not.
std::pair<Tensor, Tensor> joined(Context& cx, const Tensor& x, const Linear& a, const Linear& b) {
    const Weight both = a.bias || b.bias ? Weight() : stacked(a.weight.weight, b.weight.weight);
    if (!both.codes) return {};
    const Tensor y = cx.empty({x.dim(0), a.weight.rows + b.weight.rows});
    cx.ops.matmul(y, x, both);
    return {y.slice(1, 0, a.weight.rows), y.slice(1, a.weight.rows, y.dim(1))};
}

// Of the device, for prompts of `rows` tokens in all beside answers: attention to what is cached is bound by reading it, for
// which not all of the device is needed.
double part_for_prompts(int64_t rows) {
    constexpr int64_t kMost = 1024, kAll = 2400;
    return rows <= kMost ? static_cast<double>(rows) / kAll : 1;
}

}  // namespace

Mla::Mla(const MlaConfig& config) : config_(config), kv_norm_(config.kv_lora_rank, config.latent_norm_eps) {
    const auto& c = config_;
    const int64_t q_rows = c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim);
    if (c.q_lora_rank > 0) {
        wq_a_ = Linear(c.q_lora_rank, c.hidden_size, c.attention_bias);
        q_norm_ = RmsNorm(c.q_lora_rank, c.latent_norm_eps);
        wq_b_ = Linear(q_rows, c.q_lora_rank);
    } else {
        wq_ = Linear(q_rows, c.hidden_size);
    }
    wkv_a_ = Linear(c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size, c.attention_bias);
    wkv_b_ = Linear(c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank);
    wo_ = Linear(c.hidden_size, c.num_attention_heads * c.v_head_dim, c.attention_bias);
}

void Mla::visit(const Names& names) {
    if (config_.q_lora_rank > 0) {
        wq_a_.visit(names.in("q_a_proj"));
        q_norm_.visit(names.in("q_a_layernorm"));
        wq_b_.visit(names.in("q_b_proj"));
    } else {
        wq_.visit(names.in("q_proj"));
    }
    wkv_a_.visit(names.in("kv_a_proj_with_mqa"));
    kv_norm_.visit(names.in("kv_a_layernorm"));
    if (split_) {
        wk_b_.visit(names.in("k_b_proj"));
        wv_b_.visit(names.in("v_b_proj"));
    } else {
        wkv_b_.visit(names.in("kv_b_proj"));
    }
    wo_.visit(names.in("o_proj"));
}

void Mla::split_kv_b() {
    const int64_t h = config_.num_attention_heads, c = config_.kv_lora_rank;
    wk_b_ = Linear(h * c, config_.qk_nope_head_dim);
    wv_b_ = Linear(h * config_.v_head_dim, c);
    split_ = true;
}

std::vector<CacheState> Mla::cache_states() const { return {{"latent", config_.kv_lora_rank + config_.qk_rope_head_dim}}; }

Tensor Mla::forward(Context& cx, const Tensor& x, const Batch& batch, const LayerCache* cache, Saved* saved) const {
    const bool keep = saved != nullptr;
    const int64_t n = x.dim(0), h = config_.num_attention_heads, d_v = config_.v_head_dim;
    const bool lora = config_.q_lora_rank > 0;
    Tensor q_a, kv_a;  // [n, c_q], or without lora the queries before RoPE if they came along; [n, c_kv + d_r]
    // A batch-invariant sampler makes the very calls of the trainer: kernels may be chosen by a product's width.
    if (!keep && !cx.deterministic) std::tie(q_a, kv_a) = joined(cx, x, lora ? wq_a_ : wq_, wkv_a_);
    if (!q_a && lora) q_a = linear(cx, x, wq_a_, keep);
    if (!kv_a) kv_a = linear(cx, x, wkv_a_, keep);
    const SequenceGroup &many = batch.expanded, &few = batch.absorbed;
    // Latents and queries go side by side as far as one form of attention takes them; where both forms are in the batch, what
    // each needs comes with it instead, and the forms go side by side.
    const bool mixed = many.rows > 0 && few.rows > 0;
    Tensor c_kv, q;   // [n, c_kv + d_r]; [n, h, d_n + d_r], rotated in the rows of `many`
    Expanded keys;    // that `many` attend to
    Tensor q_latent;  // of `few`
    const auto expand_keys = [&] { keys = expanded_keys(cx, c_kv, many, cache); };
    const auto absorb_queries = [&] { q_latent = absorbed(cx, few.of(q), few.of(batch.rope)); };
    cx.ops.side_by_side(
        [&] {
            c_kv = latents(cx, kv_a, batch.rope, keep);
            if (cache != nullptr) cx.ops.scatter_weight_rows(page_rows(cache->states[0]), c_kv, batch.slots);
            if (many.rows > 0 && !mixed) expand_keys();
        },
        [&] {
            q = queries(cx, x, q_a);
            if (many.rows > 0) rotate(cx, many.of(q), many.of(q), many.of(batch.rope));
            if (few.rows > 0 && !mixed) absorb_queries();
        });

    const Tensor o = cx.empty({n, h, d_v}, keep), lse = cx.empty_precise({n, h}, keep);
    const auto attend_many = [&] {  // o = softmax(scale RoPE(q) [k_n | k_r]^T) v; q is rotated
        cx.ops.attention(many.of(o), many.of(lse), many.of(q), keys.nope, keys.rope, keys.value, many.spans,
                         config_.softmax_scale);
    };
    const auto attend_few = [&] {
        attend_absorbed(cx, few.of(o), few.of(lse), q_latent, cache != nullptr ? cache->states[0] : Weight(few.of(c_kv)),
                        few.runs);
    };
    if (mixed)
        cx.ops.side_by_side([&] { absorb_queries(), attend_few(); }, [&] { expand_keys(), attend_many(); },
                            part_for_prompts(many.rows));
    else if (many.rows > 0)
        attend_many();
    else if (few.rows > 0)
        attend_few();
    if (keep) *saved = {x, q_a, kv_a, c_kv, o, lse};
    return linear(cx, o.view({n, h * d_v}), wo_);
}

// W_UQ RMSNorm(c_q), not yet rotated: eq. 38 to 40 of DeepSeek-V2. [n, h, d_n + d_r], per head [nope | rope].
Tensor Mla::queries(Context& cx, const Tensor& x, const Tensor& q_a) const {
    const int64_t d = config_.qk_nope_head_dim + config_.qk_rope_head_dim;
    Tensor flat = q_a;
    if (config_.q_lora_rank > 0)
        flat = linear(cx, rms_norm(cx, q_a, q_norm_), wq_b_);
    else if (!flat)
        flat = linear(cx, x, wq_);
    return flat.view({x.dim(0), config_.num_attention_heads, d});
}

// y = the last d_r channels of x's heads, rotated.
void Mla::rotate(Context& cx, const Tensor& y, const Tensor& x, const Tensor& rope, bool inverse) const {
    const auto last = [&](const Tensor& heads) {
        return channels(heads, heads.dim(2) - config_.qk_rope_head_dim, heads.dim(2));
    };
    cx.ops.rope(last(y), last(x), rope, config_.pairing, inverse);
}

// [RMSNorm(c~) | RoPE(k~)]: all that is cached per token, and the only input of keys and values. [n, c_kv + d_r].
Tensor Mla::latents(Context& cx, const Tensor& kv_a, const Tensor& rope, bool keep) const {
    const int64_t n = kv_a.dim(0), c = config_.kv_lora_rank, width = kv_a.dim(1);
    const Tensor c_kv = cx.empty({n, width}, keep);
    cx.ops.rms_norm(c_kv.slice(1, 0, c), kv_a.slice(1, 0, c), kv_norm_.weight.vector(), kv_norm_.eps);
    rotate(cx, c_kv.view({n, 1, width}), kv_a.view({n, 1, width}), rope);
    round_as_cached(cx, c_kv);
    return c_kv;
}

// Keys and values of all that the group attends to, projected up from latents: the batch's own [n, c_kv + d_r], or the cache's.
Mla::Expanded Mla::expanded_keys(Context& cx, const Tensor& c_kv, const SequenceGroup& group, const LayerCache* cache) const {
    const int64_t c = config_.kv_lora_rank, d_n = config_.qk_nope_head_dim, d_v = config_.v_head_dim;
    Tensor all = group.of(c_kv);
    if (cache != nullptr) {
        all = cx.empty({group.keys, c_kv.dim(1)});
        cx.ops.gather_weight_rows(all, page_rows(cache->states[0]), group.key_rows);
    }
    const Tensor kv = expand(cx, all.slice(1, 0, c));
    return {channels(kv, 0, d_n), all.slice(1, c, all.dim(1)), channels(kv, d_n, d_n + d_v)};
}

// [q_n W_UK | RoPE(q_r)] per head: queries in the latent space. q [n, h, d_n + d_r] -> [n, h, c_kv + d_r].
Tensor Mla::absorbed(Context& cx, const Tensor& q, const Tensor& rope) const {
    const int64_t n = q.dim(0), h = q.dim(1), c = config_.kv_lora_rank, d_n = config_.qk_nope_head_dim,
                  d_r = config_.qk_rope_head_dim;
    const Tensor q_latent = cx.empty({n, h, c + d_r});
    if (split_)
        cx.ops.batched_matmul(channels(q_latent, 0, c), channels(q, 0, d_n), key_weights());
    else
        cx.ops.batched_dgrad(channels(q_latent, 0, c), channels(q, 0, d_n), key_weights());
    rotate(cx, q_latent, q, rope);
    return q_latent;
}

// The same function as attention to expanded keys, with W_UK moved to the query and W_UV to the output: keys are the latents
// themselves, values their first c_kv channels. c_kv: rows [keys, c_kv + d_r], or a cache's pages.
void Mla::attend_absorbed(Context& cx, const Tensor& o, const Tensor& lse, const Tensor& q_latent, const Weight& c_kv,
                          std::span<const SequenceRun> runs) const {
    const Tensor u = cx.empty({q_latent.dim(0), q_latent.dim(1), config_.kv_lora_rank});
    for (const SequenceRun& run : runs)
        cx.ops.latent_attention(run.of(u), run.of(lse), run.of(q_latent), c_kv, run.spans, config_.softmax_scale);
    cx.ops.batched_matmul(o, u, value_weights());
}

Tensor Mla::expand(Context& cx, const Tensor& c_kv) const {
    const int64_t n = c_kv.dim(0), h = config_.num_attention_heads, d_n = config_.qk_nope_head_dim, d_v = config_.v_head_dim;
    if (!split_) return linear(cx, c_kv, wkv_b_).view({n, h, d_n + d_v});
    const Tensor kv = cx.empty({n, h, d_n + d_v});
    Tensor every_head = c_kv;  // [n, h, c_kv]: all heads read the one latent
    every_head.rank = 3;
    every_head.shape = {n, h, c_kv.dim(1)};
    every_head.stride = {c_kv.stride[0], 0, 1};
    cx.ops.batched_dgrad(channels(kv, 0, d_n), every_head, key_weights());
    cx.ops.batched_matmul(channels(kv, d_n, d_n + d_v), every_head, value_weights());
    return kv;
}

Tensor Mla::backward(Context& cx, const Tensor& dy, const Batch& batch, const Saved& saved) const {
    const int64_t n = dy.dim(0), h = config_.num_attention_heads, c = config_.kv_lora_rank,
                  width = c + config_.qk_rope_head_dim;
    const int64_t d_n = config_.qk_nope_head_dim, d_v = config_.v_head_dim;
    const Tensor dout = linear_backward(cx, dy, saved.o.view({n, h * d_v}), wo_).view({n, h, d_v});
    const Tensor c_kv = saved.c_kv.slice(1, 0, c), k_rope = saved.c_kv.slice(1, c, width);
    const Tensor q = queries(cx, saved.x, saved.q_a);
    rotate(cx, q, q, batch.rope);
    const Tensor kv = linear(cx, c_kv, wkv_b_).view({n, h, d_n + d_v});

    const Tensor dq = cx.empty({n, h, q.dim(2)}), dkv = cx.empty({n, h, d_n + d_v}), dkv_a = cx.empty({n, width});
    const Tensor dk_rope = dkv_a.slice(1, c, width);
    for (const SequenceGroup* group : {&batch.expanded, &batch.absorbed}) {
        if (group->rows == 0) continue;
        cx.ops.attention_backward(group->of(dq), channels(group->of(dkv), 0, d_n), group->of(dk_rope),
                                  channels(group->of(dkv), d_n, d_n + d_v), group->of(dout), group->of(q),
                                  channels(group->of(kv), 0, d_n), group->of(k_rope), channels(group->of(kv), d_n, d_n + d_v),
                                  group->of(saved.o), group->of(saved.lse), group->spans, config_.softmax_scale);
    }
    rotate(cx, dkv_a.view({n, 1, width}), dkv_a.view({n, 1, width}), batch.rope, true);
    const Tensor dc_kv = linear_backward(cx, dkv.view({n, h * (d_n + d_v)}), c_kv, wkv_b_);
    cx.ops.rms_norm_backward(dkv_a.slice(1, 0, c), summed_gradient(cx.ops, kv_norm_.weight), dc_kv, saved.kv_a.slice(1, 0, c),
                             kv_norm_.weight.vector(), kv_norm_.eps);

    const Tensor dx = linear_backward(cx, dkv_a, saved.x, wkv_a_);
    cx.ops.add(dx, dx, queries_backward(cx, dq, batch, saved));
    return dx;
}

// dq [n, h, d_n + d_r] -> the part of dx that comes through the queries.
Tensor Mla::queries_backward(Context& cx, const Tensor& dq, const Batch& batch, const Saved& saved) const {
    rotate(cx, dq, dq, batch.rope, true);
    const Tensor flat = dq.view({dq.dim(0), dq.dim(1) * dq.dim(2)});
    if (!saved.q_a) return linear_backward(cx, flat, saved.x, wq_);
    const Tensor dc_q = linear_backward(cx, flat, rms_norm(cx, saved.q_a, q_norm_), wq_b_);
    return linear_backward(cx, rms_norm_backward(cx, dc_q, saved.q_a, q_norm_), saved.x, wq_a_);
}

std::vector<Weight> Mla::key_weights() const {
    const int64_t d_n = config_.qk_nope_head_dim, step = d_n + config_.v_head_dim, c = config_.kv_lora_rank;
    std::vector<Weight> heads;
    for (int64_t j = 0; j < config_.num_attention_heads; ++j)
        heads.push_back(split_ ? wk_b_.weight.weight.rows(j * c, (j + 1) * c)
                               : wkv_b_.weight.weight.rows(j * step, j * step + d_n));
    return heads;
}

std::vector<Weight> Mla::value_weights() const {
    const int64_t d_n = config_.qk_nope_head_dim, d_v = config_.v_head_dim, step = d_n + d_v;
    std::vector<Weight> heads;
    for (int64_t j = 0; j < config_.num_attention_heads; ++j)
        heads.push_back(split_ ? wv_b_.weight.weight.rows(j * d_v, (j + 1) * d_v)
                               : wkv_b_.weight.weight.rows(j * step + d_n, (j + 1) * step));
    return heads;
}

}  // namespace fathom
