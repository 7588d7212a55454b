#include "model/flop_count.h"

namespace fathom {
namespace {

// Multiply-adds of one token in the projections of one layer.
int64_t attention_products(const ModelConfig& c) {
    const int64_t d = c.hidden_size, h = c.num_attention_heads, q = h * c.qk_head_dim();
    if (!c.mla()) return d * (q + c.cache_dim()) + q * d;
    const int64_t queries = c.q_lora_rank > 0 ? c.q_lora_rank * (d + q) : d * q;
    return queries + d * (c.kv_lora_rank + c.qk_rope_head_dim) + c.kv_lora_rank * h * (c.qk_nope_head_dim + c.v_head_dim) +
           h * c.v_head_dim * d;
}

int64_t feed_forward_products(const ModelConfig& c, int64_t layer) {
    if (!c.moe_layer(layer)) return 3 * c.hidden_size * c.intermediate_size;
    return 3 * c.hidden_size * c.moe_intermediate_size * (c.num_experts_per_tok + c.n_shared_experts) +
           c.hidden_size * c.n_routed_experts;
}

double layer_flops(const ModelConfig& c, int64_t layer) {
    return 2 * static_cast<double>(attention_products(c) + feed_forward_products(c, layer));
}

double attention_flops(const ModelConfig& c, double keys, AttentionForm form) {
    const bool absorbed = c.mla() && form == AttentionForm::kAbsorbed;
    const int64_t width = absorbed ? 2 * c.kv_lora_rank + c.qk_rope_head_dim : c.qk_head_dim() + c.value_dim();
    return 2 * keys * static_cast<double>(c.num_attention_heads * width);
}

}  // namespace

FlopCount count_flops(const ModelConfig& c, double keys, AttentionForm form) {
    FlopCount n;
    const double attention = attention_flops(c, keys, form);
    n.head = 2 * static_cast<double>(c.hidden_size * c.head_size());
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
        n.layers += layer_flops(c, i);
        n.attention += attention;
    }
    for (int64_t k = 0; k < c.num_nextn_predict_layers; ++k) {
        const double joining = 2 * static_cast<double>(2 * c.hidden_size * c.hidden_size);  // eh_proj [d, 2 d]
        n.mtp += layer_flops(c, c.num_hidden_layers + k) + attention + joining + n.head;
    }
    return n;
}

}  // namespace fathom
