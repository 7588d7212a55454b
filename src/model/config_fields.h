// The simple keys of a config, as tables: reading, checking and writing walk the same rows.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "model/config.h"

namespace fathom {

// Which models a key means something for.
enum class KeyUse : uint8_t { kAll, kMla, kMha, kMoe };

struct IntegerKey {
    std::string_view name;
    int64_t ModelConfig::*member;
    int64_t low, high;
    KeyUse use = KeyUse::kAll;
    bool required = false;
    bool zero_is_null = false;  // how a file says "none"
};

struct NumberKey {
    std::string_view name;
    double ModelConfig::*member;
    double low, high;
    KeyUse use = KeyUse::kAll;
};

struct FlagKey {
    std::string_view name;
    bool ModelConfig::*member;
    KeyUse use = KeyUse::kAll;
};

// The upper bounds are far above any model of this family and low enough that no count of parameters, bytes or FLOPs per token
// overflows int64.
inline constexpr std::array kIntegerKeys{
    IntegerKey{"vocab_size", &ModelConfig::vocab_size, 1, 1 << 24, KeyUse::kAll, true},
    IntegerKey{"hidden_size", &ModelConfig::hidden_size, 1, 1 << 16, KeyUse::kAll, true},
    IntegerKey{"intermediate_size", &ModelConfig::intermediate_size, 1, 1 << 20, KeyUse::kAll, true},
    IntegerKey{"num_hidden_layers", &ModelConfig::num_hidden_layers, 1, 1 << 10, KeyUse::kAll, true},
    IntegerKey{"num_attention_heads", &ModelConfig::num_attention_heads, 1, 1 << 12, KeyUse::kAll, true},
    IntegerKey{"num_key_value_heads", &ModelConfig::num_key_value_heads, 0, 1 << 12},
    IntegerKey{"head_dim", &ModelConfig::head_dim, 0, 1 << 12, KeyUse::kMha},
    IntegerKey{"q_lora_rank", &ModelConfig::q_lora_rank, 0, 1 << 16, KeyUse::kMla, false, true},
    IntegerKey{"kv_lora_rank", &ModelConfig::kv_lora_rank, 1, 1 << 16, KeyUse::kMla, true},
    IntegerKey{"qk_nope_head_dim", &ModelConfig::qk_nope_head_dim, 1, 1 << 12, KeyUse::kMla, true},
    IntegerKey{"qk_rope_head_dim", &ModelConfig::qk_rope_head_dim, 2, 1 << 12, KeyUse::kMla, true},
    IntegerKey{"v_head_dim", &ModelConfig::v_head_dim, 1, 1 << 12, KeyUse::kMla, true},
    IntegerKey{"n_routed_experts", &ModelConfig::n_routed_experts, 0, 1 << 13, KeyUse::kAll, false, true},
    IntegerKey{"n_shared_experts", &ModelConfig::n_shared_experts, 0, 1 << 8, KeyUse::kMoe, false, true},
    IntegerKey{"moe_intermediate_size", &ModelConfig::moe_intermediate_size, 1, 1 << 17, KeyUse::kMoe, true},
    IntegerKey{"num_experts_per_tok", &ModelConfig::num_experts_per_tok, 1, 1 << 13, KeyUse::kMoe, true},
    IntegerKey{"first_k_dense_replace", &ModelConfig::first_k_dense_replace, 0, 1 << 10, KeyUse::kMoe},
    IntegerKey{"moe_layer_freq", &ModelConfig::moe_layer_freq, 1, 1 << 10, KeyUse::kMoe},
    IntegerKey{"n_group", &ModelConfig::n_group, 1, 1 << 13, KeyUse::kMoe},
    IntegerKey{"topk_group", &ModelConfig::topk_group, 1, 1 << 13, KeyUse::kMoe},
    IntegerKey{"num_nextn_predict_layers", &ModelConfig::num_nextn_predict_layers, 0, 64},
    IntegerKey{"max_position_embeddings", &ModelConfig::max_position_embeddings, 1, 1 << 30},
};

inline constexpr std::array kNumberKeys{
    NumberKey{"routed_scaling_factor", &ModelConfig::routed_scaling_factor, 1e-6, 1e6, KeyUse::kMoe},
    NumberKey{"rms_norm_eps", &ModelConfig::rms_norm_eps, 1e-30, 0.1},
    NumberKey{"initializer_range", &ModelConfig::initializer_range, 0, 100},
    NumberKey{"aux_loss_alpha", &ModelConfig::aux_loss_alpha, 0, 1e6, KeyUse::kMoe},
};

inline constexpr std::array kFlagKeys{
    FlagKey{"norm_topk_prob", &ModelConfig::norm_topk_prob, KeyUse::kMoe},
    FlagKey{"seq_aux", &ModelConfig::seq_aux, KeyUse::kMoe},
    FlagKey{"attention_bias", &ModelConfig::attention_bias},
    FlagKey{"rope_interleave", &ModelConfig::rope_interleave},
    FlagKey{"tie_word_embeddings", &ModelConfig::tie_word_embeddings},
};

// The same model with every key that applies, and whatever else the text says, as a config.json of its own: transformers takes
// absent keys from V3's config (num_key_value_heads = 128), and a query latent of no channels from q_lora_rank = 0. Errors as
// ModelConfig::parse().
[[nodiscard]] std::string complete_config(std::string_view json_text);

// DeepSeekMoE-16B: softmax routing, multi-head attention, halves rotated.
[[nodiscard]] inline bool is_v1(const ModelConfig& config) { return config.model_type == "deepseek"; }
[[nodiscard]] inline bool is_v2(const ModelConfig& config) { return config.model_type == "deepseek_v2"; }

[[nodiscard]] inline bool applies(KeyUse use, const ModelConfig& config) {
    switch (use) {
        case KeyUse::kMla:
            return !is_v1(config);
        case KeyUse::kMha:
            return is_v1(config);
        case KeyUse::kMoe:
            return config.n_routed_experts > 0;
        default:
            return true;
    }
}

}  // namespace fathom
