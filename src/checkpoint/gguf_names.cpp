#include "checkpoint/gguf_names.h"

#include <fmt/format.h>
#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>

#include "base/error.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kArchitecture = "deepseek2";
constexpr int64_t kMostOfAnything = int64_t{1} << 40;  // of sizes and counts

struct Pair {
    std::string_view name, gguf;
};

constexpr std::array<Pair, 3> kWhole{{{"model.embed_tokens.weight", "token_embd.weight"},
                                      {"model.norm.weight", "output_norm.weight"},
                                      {"lm_head.weight", "output.weight"}}};

// Inside a layer. k_b_proj and v_b_proj are the two halves of kv_b_proj (Mla::split_kv_b).
constexpr std::array<Pair, 27> kLayer{{{"input_layernorm.weight", "attn_norm.weight"},
                                       {"post_attention_layernorm.weight", "ffn_norm.weight"},
                                       {"self_attn.q_proj.weight", "attn_q.weight"},
                                       {"self_attn.q_a_proj.weight", "attn_q_a.weight"},
                                       {"self_attn.q_a_proj.bias", "attn_q_a.bias"},
                                       {"self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"},
                                       {"self_attn.q_b_proj.weight", "attn_q_b.weight"},
                                       {"self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"},
                                       {"self_attn.kv_a_proj_with_mqa.bias", "attn_kv_a_mqa.bias"},
                                       {"self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"},
                                       {"self_attn.kv_b_proj.weight", "attn_kv_b.weight"},
                                       {"self_attn.k_b_proj.weight", "attn_k_b.weight"},
                                       {"self_attn.v_b_proj.weight", "attn_v_b.weight"},
                                       {"self_attn.o_proj.weight", "attn_output.weight"},
                                       {"self_attn.o_proj.bias", "attn_output.bias"},
                                       {"mlp.gate_proj.weight", "ffn_gate.weight"},
                                       {"mlp.up_proj.weight", "ffn_up.weight"},
                                       {"mlp.down_proj.weight", "ffn_down.weight"},
                                       {"mlp.gate.weight", "ffn_gate_inp.weight"},
                                       {"mlp.gate.e_score_correction_bias", "exp_probs_b.bias"},
                                       {"mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight"},
                                       {"mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight"},
                                       {"mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight"},
                                       // Of MTP modules, which are further layers.
                                       {"enorm.weight", "nextn.enorm.weight"},
                                       {"hnorm.weight", "nextn.hnorm.weight"},
                                       {"eh_proj.weight", "nextn.eh_proj.weight"},
                                       {"shared_head.norm.weight", "nextn.shared_head_norm.weight"}}};

constexpr std::array<Pair, 3> kExpert{{{"gate_proj.weight", "ffn_gate_exps.weight"},
                                       {"up_proj.weight", "ffn_up_exps.weight"},
                                       {"down_proj.weight", "ffn_down_exps.weight"}}};

std::optional<std::string_view> look_up(std::span<const Pair> pairs, std::string_view name) {
    for (const Pair& pair : pairs)
        if (pair.name == name) return pair.gguf;
    return std::nullopt;
}

// Takes "<prefix><number>." off the front of `name`.
std::optional<int64_t> take_index(std::string_view& name, std::string_view prefix) {
    if (!name.starts_with(prefix)) return std::nullopt;
    int64_t index = -1;
    const char* const begin = name.data() + prefix.size();
    const auto [end, failure] = std::from_chars(begin, name.data() + name.size(), index);
    if (failure != std::errc() || end == name.data() + name.size() || *end != '.' || index < 0) return std::nullopt;
    name.remove_prefix(static_cast<size_t>(end + 1 - name.data()));
    return index;
}

// The keys of one file under its architecture's prefix.
class Keys {
public:
    explicit Keys(const GgufView& file) : file_(file) {}

    [[nodiscard]] static std::string full(std::string_view key) { return fmt::format("{}.{}", kArchitecture, key); }
    [[nodiscard]] std::optional<int64_t> integer(std::string_view key) const {
        // expert_feed_forward_length may be a list with one number per layer, all equal.
        const auto found = file_.metadata().find(full(key));
        std::optional<int64_t> value;
        const auto* list = found == file_.metadata().end() ? nullptr : std::get_if<std::vector<int64_t>>(&found->second);
        if (list == nullptr)
            value = file_.integer(full(key));
        else if (!list->empty())
            value = list->back();
        if (value && (*value < 0 || *value > kMostOfAnything))
            throw Error(ErrorKind::kInput, fmt::format("key {}: {} is out of range", full(key), *value));
        return value;
    }
    [[nodiscard]] int64_t required(std::string_view key) const {
        if (const auto value = integer(key)) return *value;
        throw Error(ErrorKind::kInput, fmt::format("key {} is missing: the file describes no complete model", full(key)));
    }
    // Files hold f32; the shortest decimal that rounds to it is what the model's config.json said: 1e-6, not 9.99999997e-7.
    [[nodiscard]] std::optional<double> number(std::string_view key) const {
        const auto value = file_.number(full(key));
        return value ? std::optional(std::stod(fmt::format("{}", static_cast<float>(*value)))) : std::nullopt;
    }
    [[nodiscard]] std::optional<bool> boolean(std::string_view key) const { return file_.boolean(full(key)); }
    [[nodiscard]] std::optional<std::string> text(std::string_view key) const { return file_.text(full(key)); }

private:
    const GgufView& file_;
};

void read_attention(const Keys& keys, Json& c) {
    const int64_t rope = keys.required("rope.dimension_count"), latent = keys.required("attention.kv_lora_rank");
    c["num_attention_heads"] = keys.required("attention.head_count");
    c["num_key_value_heads"] = c["num_attention_heads"];
    c["q_lora_rank"] = nullptr;
    if (const auto rank = keys.integer("attention.q_lora_rank"); rank.value_or(0) > 0) c["q_lora_rank"] = *rank;
    c["kv_lora_rank"] = latent;
    c["qk_rope_head_dim"] = rope;
    // Files from before May 2025 give the expanded widths as key_length and value_length.
    const auto key = keys.integer("attention.key_length_mla"), value = keys.integer("attention.value_length_mla");
    c["qk_nope_head_dim"] = key.value_or(keys.required("attention.key_length")) - rope;
    c["v_head_dim"] = value.value_or(keys.required("attention.value_length"));
    c["rope_theta"] = keys.number("rope.freq_base").value_or(10000);
    if (keys.text("rope.scaling.type").value_or("none") != "yarn") return;
    // yarn_log_multiplier is 0.1 mscale_all_dim; without it llama.cpp scales cos and sin as YaRN's paper does.
    const double all_dim = std::round(1e7 * keys.number("rope.scaling.yarn_log_multiplier").value_or(0)) / 1e6;
    c["rope_scaling"] = {{"type", "yarn"},
                         {"factor", keys.number("rope.scaling.factor").value_or(1)},
                         {"original_max_position_embeddings", keys.required("rope.scaling.original_context_length")},
                         {"beta_fast", keys.number("rope.scaling.yarn_beta_fast").value_or(32)},
                         {"beta_slow", keys.number("rope.scaling.yarn_beta_slow").value_or(1)},
                         {"mscale", all_dim > 0 ? all_dim : 1.0},
                         {"mscale_all_dim", all_dim}};
}

void read_experts(const GgufView& file, const Keys& keys, Json& c) {
    const int64_t experts = keys.integer("expert_count").value_or(0);
    const bool sigmoid = keys.integer("expert_gating_func").value_or(1) == 2;
    c["model_type"] = sigmoid ? "deepseek_v3" : "deepseek_v2";
    c["n_routed_experts"] = nullptr;
    if (experts == 0) return;
    const int64_t groups = keys.integer("expert_group_count").value_or(1);
    const int64_t dense = keys.integer("leading_dense_block_count").value_or(0);
    c["n_routed_experts"] = experts;
    c["num_experts_per_tok"] = keys.required("expert_used_count");
    c["moe_intermediate_size"] = keys.required("expert_feed_forward_length");
    c["n_shared_experts"] = keys.integer("expert_shared_count").value_or(0);
    c["first_k_dense_replace"] = dense;
    c["moe_layer_freq"] = 1;
    c["n_group"] = std::max<int64_t>(groups, 1);
    c["topk_group"] = std::max<int64_t>(keys.integer("expert_group_used_count").value_or(1), 1);
    c["scoring_func"] = sigmoid ? "sigmoid" : "softmax";
    const bool bias = file.find(fmt::format("blk.{}.exp_probs_b.bias", dense)) != nullptr;
    c["topk_method"] = bias ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy";
    c["norm_topk_prob"] = keys.boolean("expert_weights_norm").value_or(false);
    const double scale = keys.number("expert_weights_scale").value_or(1);
    c["routed_scaling_factor"] = scale == 0 ? 1 : scale;
}

int64_t vocabulary(const GgufView& file, const Keys& keys) {
    if (const GgufTensor* table = file.find("token_embd.weight")) return table->rows();
    return keys.required("vocab_size");
}

}  // namespace

std::optional<GgufPlace> gguf_place(std::string_view name) {
    if (const auto whole = look_up(kWhole, name)) return GgufPlace{std::string(*whole)};
    const auto layer = take_index(name, "model.layers.");
    if (!layer) return std::nullopt;
    if (const auto expert = take_index(name, "mlp.experts.")) {
        const auto found = look_up(kExpert, name);
        if (!found) return std::nullopt;
        return GgufPlace{fmt::format("blk.{}.{}", *layer, *found), *expert};
    }
    const auto found = look_up(kLayer, name);
    if (!found) return std::nullopt;
    return GgufPlace{fmt::format("blk.{}.{}", *layer, *found)};
}

ModelConfig config_of_gguf(const GgufView& file) {
    const std::string architecture = file.text("general.architecture").value_or("none");
    if (architecture != kArchitecture) {
        throw Error(ErrorKind::kInput, fmt::format("its architecture is {}; fathom runs DeepSeek models with latent attention "
                                                   "(V2, V3, R1, Moonlight, Kimi-K2), which GGUF calls {}",
                                                   architecture, kArchitecture));
    }
    const Keys keys(file);
    Json c;
    read_experts(file, keys, c);
    c["vocab_size"] = vocabulary(file, keys);
    c["hidden_size"] = keys.required("embedding_length");
    c["intermediate_size"] = keys.required("feed_forward_length");
    c["num_hidden_layers"] = keys.required("block_count");
    c["max_position_embeddings"] = keys.required("context_length");
    c["rms_norm_eps"] = keys.number("attention.layer_norm_rms_epsilon").value_or(1e-6);
    read_attention(keys, c);
    c["attention_bias"] = file.find("blk.0.attn_output.bias") != nullptr;
    c["tie_word_embeddings"] = file.find("output.weight") == nullptr;
    if (const auto id = file.integer("tokenizer.ggml.bos_token_id")) c["bos_token_id"] = *id;
    if (const auto id = file.integer("tokenizer.ggml.eos_token_id")) c["eos_token_id"] = *id;
    c["torch_dtype"] = "bfloat16";
    if (const int64_t ahead = keys.integer("nextn_predict_layers").value_or(0); ahead > 0) {
        const int64_t layers = keys.required("block_count") - ahead;
        c["num_hidden_layers"] = layers;  // a file without the modules' tensors still counts them
        if (file.find(fmt::format("blk.{}.nextn.eh_proj.weight", layers)) != nullptr) c["num_nextn_predict_layers"] = ahead;
    }
    return ModelConfig::parse(c.dump());
}

std::vector<std::pair<std::string, GgufValue>> gguf_metadata(const ModelConfig& c, const std::string& name) {
    if (!c.mla() || c.attention_bias || c.moe_layer_freq != 1) {
        throw Error(ErrorKind::kInput, fmt::format("GGUF's architecture {} has no place for {}", kArchitecture,
                                                   !c.mla()           ? "V1's attention"
                                                   : c.attention_bias ? "attention_bias"
                                                                      : "moe_layer_freq above 1"));
    }
    std::vector<std::pair<std::string, GgufValue>> m{{"general.architecture", std::string(kArchitecture)},
                                                     {"general.type", std::string("model")},
                                                     {"general.name", name},
                                                     {"general.quantization_version", int64_t{2}}};
    const auto add = [&](std::string_view key, GgufValue value) { m.emplace_back(Keys::full(key), std::move(value)); };
    const int64_t experts = c.n_routed_experts;
    add("block_count", c.num_hidden_layers + c.num_nextn_predict_layers);
    if (c.num_nextn_predict_layers > 0) add("nextn_predict_layers", c.num_nextn_predict_layers);
    add("context_length", c.max_position_embeddings);
    add("embedding_length", c.hidden_size);
    add("feed_forward_length", c.intermediate_size);
    add("attention.head_count", c.num_attention_heads);
    add("attention.head_count_kv", int64_t{1});
    add("rope.freq_base", c.rope_theta);
    add("attention.layer_norm_rms_epsilon", c.rms_norm_eps);
    add("vocab_size", c.vocab_size);
    add("leading_dense_block_count", experts > 0 ? c.first_k_dense_replace : c.num_hidden_layers);
    // llama.cpp wants the key for all but the layer counts it knows as "lite".
    add("attention.q_lora_rank", c.q_lora_rank);
    add("attention.kv_lora_rank", c.kv_lora_rank);
    add("attention.key_length", c.kv_lora_rank + c.qk_rope_head_dim);
    add("attention.value_length", c.kv_lora_rank);
    add("attention.key_length_mla", c.qk_nope_head_dim + c.qk_rope_head_dim);
    add("attention.value_length_mla", c.v_head_dim);
    add("rope.dimension_count", c.qk_rope_head_dim);
    add("expert_feed_forward_length", experts > 0 ? c.moe_intermediate_size : c.intermediate_size);
    add("expert_shared_count", c.n_shared_experts);
    if (experts > 0) {
        add("expert_count", experts);
        add("expert_used_count", c.num_experts_per_tok);
        add("expert_weights_scale", c.routed_scaling_factor);
        add("expert_weights_norm", c.norm_topk_prob);
        add("expert_gating_func", int64_t{c.scoring_func == ScoringFunc::kSigmoid ? 2 : 1});
        if (c.n_group > 1) {
            add("expert_group_count", c.n_group);
            add("expert_group_used_count", c.topk_group);
        }
    }
    if (c.rope_scaling) {
        add("rope.scaling.type", std::string("yarn"));
        add("rope.scaling.factor", c.rope_scaling->factor);
        add("rope.scaling.original_context_length", c.rope_scaling->original_max_position_embeddings);
        add("rope.scaling.yarn_beta_fast", c.rope_scaling->beta_fast);
        add("rope.scaling.yarn_beta_slow", c.rope_scaling->beta_slow);
        add("rope.scaling.yarn_log_multiplier", 0.1 * c.rope_scaling->mscale_all_dim);
    }
    return m;
}

}  // namespace fathom
