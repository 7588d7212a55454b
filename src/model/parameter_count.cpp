#include "model/parameter_count.h"

namespace fathom {
namespace {

// Multi-head attention of V1: q, k, v, o.
int64_t mha_parameters(const ModelConfig& c) {
    const int64_t q = c.num_attention_heads * c.qk_head_dim(), kv = c.cache_dim() / 2;
    const int64_t biases = c.attention_bias ? q + 2 * kv + c.hidden_size : 0;
    return c.hidden_size * (q + 2 * kv) + q * c.hidden_size + biases;
}

int64_t mla_parameters(const ModelConfig& c) {
    const int64_t h = c.hidden_size, heads = c.num_attention_heads, latent = c.kv_lora_rank + c.qk_rope_head_dim;
    const int64_t q_rows = heads * c.qk_head_dim();
    const bool low_rank_q = c.q_lora_rank > 0;
    const int64_t q = low_rank_q ? c.q_lora_rank * h + c.q_lora_rank + q_rows * c.q_lora_rank : q_rows * h;
    const int64_t kv = latent * h + c.kv_lora_rank + heads * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank;
    const int64_t o = h * heads * c.v_head_dim;
    const int64_t biases = c.attention_bias ? c.q_lora_rank + latent + h : 0;
    return q + kv + o + biases;
}

// Gate, up and down projections of one SwiGLU.
int64_t mlp_parameters(const ModelConfig& c, int64_t width) { return 3 * c.hidden_size * width; }

void add_layer(ParameterCount& n, const ModelConfig& c, int64_t index) {
    n.attention += c.mla() ? mla_parameters(c) : mha_parameters(c);
    n.norms += 2 * c.hidden_size;
    if (!c.moe_layer(index)) {
        n.dense_mlp += mlp_parameters(c, c.intermediate_size);
        return;
    }
    const int64_t expert = mlp_parameters(c, c.moe_intermediate_size);
    n.router += c.n_routed_experts * (c.hidden_size + (c.correction_bias() ? 1 : 0));
    n.routed_experts += c.n_routed_experts * expert;
    n.inactive_experts += (c.n_routed_experts - c.num_experts_per_tok) * expert;
    n.shared_experts += mlp_parameters(c, c.n_shared_experts * c.moe_intermediate_size);
}

}  // namespace

ParameterCount count_parameters(const ModelConfig& c) {
    ParameterCount n;
    n.embedding = c.vocab_size * c.hidden_size;
    n.head = c.tied_head() ? 0 : c.head_size() * c.hidden_size;
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) add_layer(n, c, i);
    n.norms += c.hidden_size;
    for (int64_t k = 0; k < c.num_nextn_predict_layers; ++k) {
        ParameterCount layer;
        add_layer(layer, c, c.num_hidden_layers + k);
        n.mtp +=
            layer.total() + 2 * c.hidden_size * c.hidden_size + 3 * c.hidden_size;  // eh_proj; enorm, hnorm, shared_head.norm
    }
    return n;
}

}  // namespace fathom
