// The description of one model: Hugging Face's config.json, keys verbatim, for DeepSeek V1 to V3 and the models that reuse
// them.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ops/route_rule.h"

namespace fathom {

// Whether config.json may have this key: ModelConfig reads it, or released files of the family have it and it is carried along.
[[nodiscard]] bool is_config_key(std::string_view key);

[[nodiscard]] std::string_view name_of(ScoringFunc func);   // "softmax", "sigmoid"
[[nodiscard]] std::string_view name_of(TopkMethod method);  // "greedy", "group_limited_greedy", "noaux_tc"

// YaRN (rope_type "yarn"). Absent in a config means plain RoPE.
struct RopeScaling {
    double factor = 1;
    int64_t original_max_position_embeddings = 4096;
    double beta_fast = 32;
    double beta_slow = 1;
    double mscale = 1;
    double mscale_all_dim = 0;  // 0: the softmax scale is left alone

    bool operator==(const RopeScaling&) const = default;
};

// Matrices stored as whole numbers, one scale (and zero point) per group of columns.
struct IntegerGroups {
    int64_t bits = 4;        // 4 or 8
    int64_t group_size = 0;  // columns; 0: a whole row, a "channel"
    bool symmetric = true;
    std::vector<std::string> targets;  // compressed-tensors: modules, "Linear" for all, or "re:" and a pattern

    bool operator==(const IntegerGroups&) const = default;
};

// How a checkpoint stores its matrices where not as plain numbers.
struct QuantizationConfig {
    std::string quant_method = "fp8";  // fp8, gptq, awq or compressed-tensors
    // fp8: e4m3 codes and one f32 scale per block.
    std::array<int64_t, 2> weight_block_size{128, 128};
    // The others: gptq has checkpoint_format gptq (zero points less one) or gptq_v2, awq has version gemm, compressed-tensors
    // has format pack-quantized, int-quantized or mxfp4-pack-quantized.
    std::string format;
    std::vector<IntegerGroups> groups;  // one; compressed-tensors: one or more. The tensors' shapes say the same again
    std::vector<std::string> ignore;    // modules that stay plain

    [[nodiscard]] bool integers() const { return quant_method != "fp8"; }
    bool operator==(const QuantizationConfig&) const = default;
};

// One model of the family; V1, V2, V3, Moonlight and Kimi-K2 differ only in these fields. Default member values are what an
// absent or null key means, unless the comment gives a rule by model type. Sizes in elements.
class ModelConfig {
public:
    // Reads config.json text. A nested text_config (Kimi's multimodal files) is read instead of the outer object, when there is
    // one. Throws Error{kInput} naming the key, for what is missing, of the wrong type, out of range, contradictory or not
    // supported.
    [[nodiscard]] static ModelConfig parse(std::string_view json_text);
    // Reads directory/config.json; errors carry the path. Throws Error{kIo} when it is not there.
    [[nodiscard]] static ModelConfig load(const std::filesystem::path& directory);
    // The text this config was parsed from with only the changed fields replaced: unknown keys, order and spelling
    // (rope_scaling or rope_parameters, torch_dtype or dtype) stay, and without a change so does every byte. A config made from
    // scratch is written in the spelling of DeepSeek's releases.
    [[nodiscard]] std::string to_json() const;
    // Throws Error{kInput} naming the key for contradictions between fields. parse() has called it; call it after changing
    // fields.
    void validate() const;

    std::string model_type = "deepseek_v3";  // deepseek (V1), deepseek_v2, deepseek_v3, kimi_k2
    int64_t vocab_size = 0;
    int64_t hidden_size = 0;
    int64_t num_hidden_layers = 0;
    int64_t max_position_embeddings = 4096;  // absent with YaRN: factor * original_max_position_embeddings
    double rms_norm_eps = 1e-6;

    // Attention. MLA when kv_lora_rank > 0 (V2 on), else V1's MHA.
    int64_t num_attention_heads = 0;
    int64_t num_key_value_heads = 0;  // V1 only, absent: num_attention_heads; MLA ignores it
    int64_t q_lora_rank = 0;          // 0 (null in the file): one q_proj
    int64_t kv_lora_rank = 0;
    int64_t qk_nope_head_dim = 0;
    int64_t qk_rope_head_dim = 0;
    int64_t v_head_dim = 0;
    int64_t head_dim =
        0;  // V1 only, 0: hidden_size / num_attention_heads. Files of V2 on repeat qk_rope_head_dim here: not read
    // Adds `.bias` to self_attn.{q_a_proj, kv_a_proj_with_mqa, o_proj} (MLA; q_proj, q_b_proj and kv_b_proj never have one) or
    // to self_attn.{q_proj, k_proj, v_proj, o_proj} (V1): where transformers puts them. No other linear layer has a bias.
    bool attention_bias = false;

    // Position. rope_parameters {rope_theta, rope_type, ...} in files of transformers 5.
    double rope_theta = 10000;
    std::optional<RopeScaling> rope_scaling;
    bool rope_interleave = true;  // pairs (2i, 2i+1); false: halves (i, i + d/2). Absent: false for V1, else true

    // Feed-forward.
    int64_t intermediate_size = 0;      // dense layers
    int64_t moe_intermediate_size = 0;  // one routed expert
    int64_t n_routed_experts = 0;       // E; 0 (or null): every layer is dense
    int64_t n_shared_experts = 0;       // fused into one MLP of width n_shared_experts * moe_intermediate_size
    int64_t num_experts_per_tok = 0;    // K
    int64_t first_k_dense_replace = 0;  // leading dense layers
    int64_t moe_layer_freq = 1;         // of the others, those with index % moe_layer_freq == 0 are MoE

    // Router.
    ScoringFunc scoring_func = ScoringFunc::kSigmoid;  // absent: softmax for V1 and V2, sigmoid for V3 and Kimi-K2
    TopkMethod topk_method = TopkMethod::kNoauxTc;     // absent: greedy for V1 and V2, noaux_tc for V3 and Kimi-K2
    int64_t n_group = 1;
    int64_t topk_group = 1;
    bool norm_topk_prob = true;        // absent: false for V1 and V2, true for V3 and Kimi-K2
    double routed_scaling_factor = 1;  // required for V3 and Kimi-K2 with experts

    // Training only.
    int64_t num_nextn_predict_layers = 0;  // MTP modules
    double initializer_range = 0.02;       // standard deviation; the papers trained with 0.006
    bool seq_aux = true;                   // balance loss per sequence rather than per batch
    double aux_loss_alpha = 0;             // its weight

    // Tokens and storage.
    std::optional<int64_t> bos_token_id;
    std::vector<int64_t> eos_token_id;  // any of these ends a text; files hold a number or a list
    std::optional<int64_t> pad_token_id;
    bool tie_word_embeddings = false;  // lm_head is model.embed_tokens
    // Of a classifier (architectures: ["DeepseekV3ForSequenceClassification"]): rows of `score.weight`, which takes the place
    // of lm_head. A reward model has one. 0: a language model. Files count them in id2label or num_labels.
    int64_t num_labels = 0;
    std::string torch_dtype = "bfloat16";  // bfloat16, float16 or float32; `dtype` in files of transformers 5
    std::optional<QuantizationConfig> quantization_config;

    [[nodiscard]] bool mla() const { return kv_lora_rank > 0; }
    // Whether layer `index` is a mixture of experts; MTP modules are layers num_hidden_layers, num_hidden_layers + 1, ...
    [[nodiscard]] bool moe_layer(int64_t index) const;
    // Numbers that the head says of a state.
    [[nodiscard]] int64_t head_size() const { return num_labels > 0 ? num_labels : vocab_size; }
    [[nodiscard]] bool tied_head() const { return tie_word_embeddings && num_labels == 0; }
    // Whether routers hold mlp.gate.e_score_correction_bias.
    [[nodiscard]] bool correction_bias() const { return topk_method == TopkMethod::kNoauxTc; }
    // Per head: width of queries and keys, its rotated part (all of it in V1), width of values.
    [[nodiscard]] int64_t qk_head_dim() const;
    [[nodiscard]] int64_t rope_dim() const;
    [[nodiscard]] int64_t value_dim() const;
    // Numbers cached per token and layer: the latent and the shared rotated key (MLA), or keys and values of all heads (V1).
    [[nodiscard]] int64_t cache_dim() const;
    // Factor on q.k before the softmax: qk_head_dim^(-1/2) * m(factor, mscale_all_dim)^2, m(s, a) = 1 + 0.1 a ln s (YaRN,
    // V2 3.1.4).
    [[nodiscard]] double softmax_scale() const;
    // Factor on cos and sin: m(factor, mscale) / m(factor, mscale_all_dim), 1 for every released model.
    [[nodiscard]] double rope_magnitude() const;
    // Epsilon of q_a_layernorm and kv_a_layernorm: 1e-6 in the reference whatever rms_norm_eps says (Moonlight has 1e-5 there).
    [[nodiscard]] double latent_norm_eps() const { return 1e-6; }

private:
    std::string source_;  // the text parsed; empty for a config made from scratch
};

}  // namespace fathom
