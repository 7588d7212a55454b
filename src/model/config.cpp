#include "model/config.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/config_fields.h"

namespace fathom {
namespace {

constexpr int64_t kMaxTokenId = int64_t{1} << 31;

// Throws unless `holds`.
void require(bool holds, const std::string& sentence) {
    if (!holds) throw Error(ErrorKind::kInput, sentence);
}

void require_model_type(const std::string& type) {
    constexpr std::array kSupported{"deepseek", "deepseek_v2", "deepseek_v3", "kimi_k2"};
    if (std::ranges::find(kSupported, type) != kSupported.end()) return;
    constexpr std::string_view kList = "deepseek (V1), deepseek_v2, deepseek_v3 (V3, R1, V3.1, Moonlight) and kimi_k2";
    constexpr std::array kRecognised{"deepseek_v32", "deepseek_v4", "deepseek_v41"};
    if (std::ranges::find(kRecognised, type) != kRecognised.end())
        throw Error(ErrorKind::kInput,
                    fmt::format("model_type \"{}\" is recognised but not supported yet; supported are {}", type, kList));
    throw Error(ErrorKind::kInput, fmt::format("model_type \"{}\" is not known; supported are {}", type, kList));
}

void require_ranges(const ModelConfig& c) {
    for (const IntegerKey& key : kIntegerKeys) {
        const int64_t value = c.*key.member;
        require(!applies(key.use, c) || (value >= key.low && value <= key.high),
                fmt::format("{} is {}, but must be from {} to {}", key.name, value, key.low, key.high));
    }
    for (const NumberKey& key : kNumberKeys) {
        const double value = c.*key.member;
        require(!applies(key.use, c) || (value >= key.low && value <= key.high),
                fmt::format("{} is {}, but must be from {} to {}", key.name, value, key.low, key.high));
    }
    require(c.rope_theta > 1 && c.rope_theta <= 1e15,
            fmt::format("rope_theta is {}, but must be above 1 and at most 1e15", c.rope_theta));
}

void require_attention(const ModelConfig& c) {
    if (is_v1(c)) {
        require(!c.mla(), "kv_lora_rank is given, but model_type \"deepseek\" (V1) has no latent attention");
        require(c.head_dim > 0 || c.hidden_size % c.num_attention_heads == 0,
                fmt::format("num_attention_heads {} does not divide hidden_size {}, and head_dim is not given",
                            c.num_attention_heads, c.hidden_size));
        require(c.num_key_value_heads == 0 || c.num_key_value_heads == c.num_attention_heads,
                fmt::format("num_key_value_heads {} differs from num_attention_heads {}: no model of this family shares keys "
                            "among query heads",
                            c.num_key_value_heads, c.num_attention_heads));
    }
    require(c.rope_dim() > 0 && c.rope_dim() % 2 == 0, fmt::format("{} is {}, but must be even: RoPE rotates pairs",
                                                                   is_v1(c) ? "head_dim" : "qk_rope_head_dim", c.rope_dim()));
}

void require_rope_scaling(const RopeScaling& s) {
    const auto within = [](std::string_view key, double value, double low, double high) {
        require(value >= low && value <= high,
                fmt::format("rope_scaling.{} is {}, but must be from {} to {}", key, value, low, high));
    };
    within("factor", s.factor, 1, 1e6);
    within("original_max_position_embeddings", static_cast<double>(s.original_max_position_embeddings), 1, 1 << 30);
    within("beta_fast", s.beta_fast, 1e-3, 1e6);
    within("beta_slow", s.beta_slow, 1e-3, s.beta_fast);
    within("mscale", s.mscale, 0, 100);
    within("mscale_all_dim", s.mscale_all_dim, 0, 100);
}

void require_router(const ModelConfig& c) {
    const int64_t experts = c.n_routed_experts, chosen = c.num_experts_per_tok;
    require(chosen <= experts, fmt::format("num_experts_per_tok {} is more than n_routed_experts {}", chosen, experts));
    require(experts % c.n_group == 0, fmt::format("n_group {} does not divide n_routed_experts {}", c.n_group, experts));
    require(c.topk_group <= c.n_group, fmt::format("topk_group {} is more than n_group {}", c.topk_group, c.n_group));
    if (c.topk_method == TopkMethod::kGreedy || c.n_group == 1) return;
    const int64_t group = experts / c.n_group;
    require(chosen <= c.topk_group * group,
            fmt::format("num_experts_per_tok {} is more than the {} experts of topk_group {} groups", chosen,
                        c.topk_group * group, c.topk_group));
    require(c.topk_method != TopkMethod::kNoauxTc || group >= 2,
            fmt::format("topk_method noaux_tc scores a group by its two best experts, but n_group {} leaves one per group",
                        c.n_group));
}

void require_tokens(const ModelConfig& c) {
    const auto is_id = [](std::string_view key, int64_t id) {
        require(id >= 0 && id < kMaxTokenId, fmt::format("{} is {}, which is no token id", key, id));
    };
    if (c.bos_token_id) is_id("bos_token_id", *c.bos_token_id);
    if (c.pad_token_id) is_id("pad_token_id", *c.pad_token_id);
    for (const int64_t id : c.eos_token_id) is_id("eos_token_id", id);
}

void require_integer_groups(const QuantizationConfig& q) {
    const bool awq = q.quant_method == "awq", gptq = q.quant_method == "gptq";
    require(awq || gptq || q.quant_method == "compressed-tensors",
            fmt::format("quantization_config.quant_method \"{}\" is not supported: fp8, awq, gptq and compressed-tensors are",
                        q.quant_method));
    const bool mxfp4 = q.format == "mxfp4-pack-quantized";
    const bool known = awq    ? q.format == "gemm"
                       : gptq ? q.format == "gptq" || q.format == "gptq_v2"
                              : q.format == "pack-quantized" || q.format == "int-quantized" || mxfp4;
    require(known, fmt::format("quantization_config: {} \"{}\" of {} is not supported: {}",
                               awq    ? "version"
                               : gptq ? "checkpoint_format"
                                      : "format",
                               q.format, q.quant_method,
                               awq    ? "gemm is"
                               : gptq ? "gptq and gptq_v2 are"
                                      : "pack-quantized, int-quantized and mxfp4-pack-quantized are"));
    require(!q.groups.empty(), "quantization_config says of no weights how they are stored");
    for (const IntegerGroups& g : q.groups) {
        require(g.bits == 4 || (g.bits == 8 && !awq), fmt::format("quantization_config: {} bits of {} are not supported: {}",
                                                                  g.bits, q.quant_method, awq ? "4 are" : "4 and 8 are"));
        require(!mxfp4 || (g.bits == 4 && g.group_size == 32 && g.symmetric),
                "quantization_config: mxfp4-pack-quantized has 4 bits, groups of 32 and no zero points");
        require(g.group_size >= 0 && g.group_size <= (int64_t{1} << 24),
                fmt::format("quantization_config.group_size {} is out of range", g.group_size));
    }
}

void require_storage(const ModelConfig& c) {
    constexpr std::array kDtypes{"bfloat16", "float16", "float32"};
    require(std::ranges::find(kDtypes, c.torch_dtype) != kDtypes.end(),
            fmt::format("torch_dtype \"{}\" is not supported: use bfloat16, float16 or float32", c.torch_dtype));
    if (!c.quantization_config) return;
    const QuantizationConfig& q = *c.quantization_config;
    if (q.integers()) return require_integer_groups(q);
    require(q.weight_block_size == std::array<int64_t, 2>{128, 128},
            fmt::format("quantization_config.weight_block_size [{}, {}] is not supported: only [128, 128] is",
                        q.weight_block_size[0], q.weight_block_size[1]));
}

// YaRN's m(s, a).
double yarn_mscale(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1; }

}  // namespace

std::string_view name_of(ScoringFunc func) { return func == ScoringFunc::kSoftmax ? "softmax" : "sigmoid"; }

std::string_view name_of(TopkMethod method) {
    switch (method) {
        case TopkMethod::kGreedy:
            return "greedy";
        case TopkMethod::kGroupLimitedGreedy:
            return "group_limited_greedy";
        default:
            return "noaux_tc";
    }
}

void ModelConfig::validate() const {
    require_model_type(model_type);
    require_ranges(*this);
    require_attention(*this);
    if (rope_scaling) require_rope_scaling(*rope_scaling);
    if (n_routed_experts > 0) require_router(*this);
    require_tokens(*this);
    require_storage(*this);
}

bool ModelConfig::moe_layer(int64_t index) const {
    return n_routed_experts > 0 && index >= first_k_dense_replace && index % moe_layer_freq == 0;
}

int64_t ModelConfig::qk_head_dim() const { return mla() ? qk_nope_head_dim + qk_rope_head_dim : rope_dim(); }

int64_t ModelConfig::rope_dim() const {
    if (mla()) return qk_rope_head_dim;
    return head_dim > 0 ? head_dim : hidden_size / num_attention_heads;
}

int64_t ModelConfig::value_dim() const { return mla() ? v_head_dim : rope_dim(); }

int64_t ModelConfig::cache_dim() const {
    if (mla()) return kv_lora_rank + qk_rope_head_dim;
    return 2 * rope_dim() * (num_key_value_heads > 0 ? num_key_value_heads : num_attention_heads);
}

double ModelConfig::softmax_scale() const {
    const double m = rope_scaling ? yarn_mscale(rope_scaling->factor, rope_scaling->mscale_all_dim) : 1;
    return m * m / std::sqrt(static_cast<double>(qk_head_dim()));
}

double ModelConfig::rope_magnitude() const {
    if (!rope_scaling) return 1;
    return yarn_mscale(rope_scaling->factor, rope_scaling->mscale) /
           yarn_mscale(rope_scaling->factor, rope_scaling->mscale_all_dim);
}

}  // namespace fathom
