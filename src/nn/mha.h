// Multi-head attention of DeepSeekMoE-16B (V1): LLaMA style, rotary over the whole head, keys and values cached.
#pragma once

#include <vector>

#include "nn/batch.h"
#include "nn/linear.h"

namespace fathom {

struct MhaConfig {
    int64_t hidden_size = 0;
    int64_t num_attention_heads = 0;
    int64_t num_key_value_heads = 0;  // must equal num_attention_heads: no model of the family groups its queries
    int64_t head_dim = 0;
    bool attention_bias = false;
    double softmax_scale = 0;
    RopePairing pairing = RopePairing::kHalves;
};

class Mha {
public:
    struct Saved {
        Tensor x;        // [n, hidden]
        Tensor q, k, v;  // [n, h, d], q and k rotated
        Tensor o;        // [n, h, d]
        Tensor lse;      // [n, h]
    };

    explicit Mha(const MhaConfig& config);
    void visit(const Names& names);
    [[nodiscard]] std::vector<CacheState> cache_states() const;

    // As Mla::forward; there is no absorbed form, both groups of the batch are computed alike.
    [[nodiscard]] Tensor forward(Context& cx, const Tensor& x, const Batch& batch, const LayerCache* cache, Saved* saved) const;
    [[nodiscard]] Tensor backward(Context& cx, const Tensor& dy, const Batch& batch, const Saved& saved) const;

private:
    MhaConfig config_;
    Linear wq_, wk_, wv_;  // [h d, hidden]
    Linear wo_;            // [hidden, h d]
};

}  // namespace fathom
