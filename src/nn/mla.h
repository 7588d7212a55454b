// Multi-head latent attention (DeepSeek-V2 2.1; V3, Moonlight, Kimi-K2): queries and keys are built from small latents, and
// only the key/value latent and one shared rotary key are cached.
#pragma once

#include <span>
#include <vector>

#include "nn/batch.h"
#include "nn/linear.h"

namespace fathom {

struct MlaConfig {
    int64_t hidden_size = 0;
    int64_t num_attention_heads = 0;  // h
    int64_t q_lora_rank = 0;          // c_q; 0: queries come straight from x
    int64_t kv_lora_rank = 0;         // c_kv
    int64_t qk_nope_head_dim = 0;     // d_n
    int64_t qk_rope_head_dim = 0;     // d_r
    int64_t v_head_dim = 0;           // d_v
    bool attention_bias = false;      // on the two down-projections and the output
    double softmax_scale = 0;
    RopePairing pairing = RopePairing::kInterleaved;
    double latent_norm_eps = 1e-6;  // of the norms of c_q and c_kv, whatever rms_norm_eps says (ModelConfig::latent_norm_eps)
};

class Mla {
public:
    // [n, .] each; the up-projections are recomputed in the backward (V3 3.2.3).
    struct Saved {
        Tensor x;     // [n, hidden]
        Tensor q_a;   // [n, c_q] before its norm; absent without q_lora_rank
        Tensor kv_a;  // [n, c_kv + d_r] before norm and rope
        Tensor c_kv;  // [n, c_kv + d_r] what the cache would hold
        Tensor o;     // [n, h, d_v]
        Tensor lse;   // [n, h]
    };

    explicit Mla(const MlaConfig& config);
    void visit(const Names& names);
    // From now on kv_b_proj is two parameters, as GGUF files keep it: k_b_proj [h c_kv, d_n], its key rows transposed per head,
    // and v_b_proj [h d_v, c_kv]. A quantized matrix cannot be transposed, so such files cannot be read in the other form. For
    // inference only.
    void split_kv_b();
    [[nodiscard]] std::vector<CacheState> cache_states() const;

    // x [n, hidden] -> [n, hidden]. With a cache, writes the rows' latents first and attends to everything cached of each
    // sequence.
    [[nodiscard]] Tensor forward(Context& cx, const Tensor& x, const Batch& batch, const LayerCache* cache, Saved* saved) const;
    // dy [n, hidden] -> dx [n, hidden]. For batches without a cache.
    [[nodiscard]] Tensor backward(Context& cx, const Tensor& dy, const Batch& batch, const Saved& saved) const;

private:
    struct Expanded {
        Tensor nope, rope, value;  // [keys, h, d_n], [keys, d_r], [keys, h, d_v]
    };

    MlaConfig config_;
    Linear wq_;           // q_proj [h (d_n + d_r), hidden], when q_lora_rank = 0
    Linear wq_a_, wq_b_;  // [c_q, hidden], [h (d_n + d_r), c_q]
    RmsNorm q_norm_;      // [c_q]
    Linear wkv_a_;        // [c_kv + d_r, hidden]
    RmsNorm kv_norm_;     // [c_kv]
    Linear wkv_b_;        // [h (d_n + d_v), c_kv]
    Linear wk_b_, wv_b_;  // [h c_kv, d_n], [h d_v, c_kv], when split
    Linear wo_;           // [hidden, h d_v]
    bool split_ = false;

    [[nodiscard]] Tensor queries(Context& cx, const Tensor& x, const Tensor& q_a) const;
    void rotate(Context& cx, const Tensor& y, const Tensor& x, const Tensor& rope, bool inverse = false) const;
    [[nodiscard]] Tensor latents(Context& cx, const Tensor& kv_a, const Tensor& rope, bool keep) const;
    [[nodiscard]] Expanded expanded_keys(Context& cx, const Tensor& c_kv, const SequenceGroup& group,
                                         const LayerCache* cache) const;
    [[nodiscard]] Tensor absorbed(Context& cx, const Tensor& q, const Tensor& rope) const;
    void attend_absorbed(Context& cx, const Tensor& o, const Tensor& lse, const Tensor& q_latent, const Weight& c_kv,
                         std::span<const SequenceRun> runs) const;
    [[nodiscard]] Tensor queries_backward(Context& cx, const Tensor& dq, const Batch& batch, const Saved& saved) const;
    // Keys and values [n, h, d_n + d_v] of latents c_kv [n, c_kv].
    [[nodiscard]] Tensor expand(Context& cx, const Tensor& c_kv) const;
    [[nodiscard]] std::vector<Weight> key_weights() const;    // per head [d_n, c_kv]
    [[nodiscard]] std::vector<Weight> value_weights() const;  // per head [d_v, c_kv]
};

}  // namespace fathom
