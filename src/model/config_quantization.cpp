// The spellings: DeepSeek's FP8 releases; AutoAWQ; AutoGPTQ and GPTQModel; the package compressed-tensors.
#include "model/config_quantization.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kMxfp4 = "mxfp4-pack-quantized";

[[noreturn]] void fail(std::string_view key, std::string_view sentence) {
    throw Error(ErrorKind::kInput, fmt::format("quantization_config.{} {}", key, sentence));
}

// A member, or nullptr when it is absent or null.
const Json* find(const Json& object, std::string_view key) {
    const auto found = object.find(std::string(key));
    return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string text(const Json& object, std::string_view key, std::string_view otherwise) {
    const Json* value = find(object, key);
    if (value == nullptr) return std::string(otherwise);
    if (!value->is_string()) fail(key, "must be a string");
    return value->get<std::string>();
}

bool flag(const Json& object, std::string_view key, bool otherwise) {
    const Json* value = find(object, key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) fail(key, "must be true or false");
    return value->get<bool>();
}

std::optional<int64_t> integer(const Json& object, std::string_view key) {
    const Json* value = find(object, key);
    if (value == nullptr) return std::nullopt;
    const bool fits = value->is_number_unsigned() ? value->get<uint64_t>() <= (uint64_t{1} << 40) : value->is_number_integer();
    if (!fits) fail(key, "must be an integer");
    return value->get<int64_t>();
}

std::vector<std::string> texts(const Json& object, std::string_view key) {
    const Json* value = find(object, key);
    std::vector<std::string> result;
    if (value == nullptr) return result;
    if (!value->is_array()) fail(key, "must be a list of strings");
    for (const Json& item : *value) {
        if (!item.is_string()) fail(key, "must be a list of strings");
        result.push_back(item.get<std::string>());
    }
    return result;
}

QuantizationConfig read_fp8(const Json& object) {
    if (text(object, "fmt", "e4m3") != "e4m3") fail("fmt", "is not supported: only e4m3 is");
    const Json* block = find(object, "weight_block_size");
    const auto is_size = [](const Json& size) { return size.is_number_integer() && size >= 1 && size <= 1 << 20; };
    if (block == nullptr || !block->is_array() || block->size() != 2 || !is_size((*block)[0]) || !is_size((*block)[1]))
        fail("weight_block_size", "must be a list of two integers");
    QuantizationConfig q;
    q.weight_block_size = {(*block)[0].get<int64_t>(), (*block)[1].get<int64_t>()};
    return q;
}

// bits, group_size (-1: whole rows) and whether there are zero points, as AWQ and GPTQ say it.
IntegerGroups read_flat(const Json& object, bool symmetric) {
    IntegerGroups groups;
    const auto bits = integer(object, "bits"), size = integer(object, "group_size");
    if (!bits) fail("bits", "is missing");
    if (!size) fail("group_size", "is missing");
    groups.bits = *bits;
    groups.group_size = *size == -1 ? 0 : *size;
    if (*size == 0 || *size < -1) fail("group_size", "must be positive, or -1 for whole rows");
    groups.symmetric = symmetric;
    return groups;
}

IntegerGroups read_group(const Json& scheme, const std::string& format) {
    if (!scheme.is_object()) fail("config_groups", "must hold objects");
    const Json* weights = find(scheme, "weights");
    if (weights == nullptr || !weights->is_object()) fail("config_groups", "has a group without weights");
    const char* const type = format == kMxfp4 ? "float" : "int";
    if (text(*weights, "type", type) != type)
        fail("config_groups.weights.type", fmt::format("is not supported: {} has {} only", format, type));
    IntegerGroups groups;
    groups.bits = integer(*weights, "num_bits").value_or(0);
    groups.symmetric = flag(*weights, "symmetric", true);
    groups.targets = texts(scheme, "targets");
    const auto size = integer(*weights, "group_size");
    const std::string strategy = text(*weights, "strategy", size.value_or(-1) > 0 ? "group" : "channel");
    if (strategy != "group" && strategy != "channel")
        fail("config_groups.weights.strategy", fmt::format("\"{}\" is not supported: group and channel are", strategy));
    if (strategy == "group" && size.value_or(0) < 1) fail("config_groups.weights.group_size", "is missing");
    groups.group_size = strategy == "group" ? *size : 0;
    return groups;
}

QuantizationConfig read_compressed(const Json& object) {
    if (const Json* sparsity = find(object, "sparsity_config"); sparsity != nullptr && !sparsity->empty()) {
        if (!sparsity->is_object() || text(*sparsity, "format", "dense") != "dense")
            fail("sparsity_config", "is not supported: only dense weights are");
    }
    QuantizationConfig q;
    q.format = text(object, "format", "pack-quantized");
    q.ignore = texts(object, "ignore");
    const Json* groups = find(object, "config_groups");
    if (groups == nullptr || !groups->is_object()) fail("config_groups", "is missing");
    for (const auto& [name, scheme] : groups->items()) q.groups.push_back(read_group(scheme, q.format));
    return q;
}

Json write_group(const IntegerGroups& g, const std::string& format) {
    Json weights{{"actorder", nullptr}, {"block_structure", nullptr}, {"dynamic", false}};
    weights["group_size"] = g.group_size > 0 ? Json(g.group_size) : Json(nullptr);
    weights["num_bits"] = g.bits;
    weights["observer"] = "minmax";
    weights["observer_kwargs"] = Json::object();
    weights["strategy"] = g.group_size > 0 ? "group" : "channel";
    weights["symmetric"] = g.symmetric;
    weights["type"] = format == kMxfp4 ? "float" : "int";
    if (format == kMxfp4) weights["scale_dtype"] = weights["zp_dtype"] = "torch.uint8";
    return {{"input_activations", nullptr},
            {"output_activations", nullptr},
            {"targets", g.targets.empty() ? std::vector<std::string>{"Linear"} : g.targets},
            {"weights", std::move(weights)}};
}

Json write_compressed(const QuantizationConfig& q) {
    Json groups = Json::object();
    for (size_t i = 0; i < q.groups.size(); ++i) groups[fmt::format("group_{}", i)] = write_group(q.groups[i], q.format);
    return {{"config_groups", std::move(groups)},  {"format", q.format},
            {"global_compression_ratio", nullptr}, {"ignore", q.ignore},
            {"kv_cache_scheme", nullptr},          {"quant_method", q.quant_method},
            {"quantization_status", "compressed"}};
}

Json write_awq(const QuantizationConfig& q) {
    const IntegerGroups& g = q.groups.at(0);
    return {{"backend", "autoawq"},
            {"bits", g.bits},
            {"do_fuse", false},
            {"exllama_config", nullptr},
            {"fuse_max_seq_len", nullptr},
            {"group_size", g.group_size > 0 ? g.group_size : -1},
            {"modules_to_fuse", nullptr},
            {"modules_to_not_convert", q.ignore.empty() ? Json(nullptr) : Json(q.ignore)},
            {"quant_method", q.quant_method},
            {"version", q.format},
            {"zero_point", !g.symmetric}};
}

// GPTQModel names modules left alone in `dynamic`, as patterns behind "-:".
Json write_gptq(const QuantizationConfig& q) {
    const IntegerGroups& g = q.groups.at(0);
    Json json{{"bits", g.bits},
              {"checkpoint_format", q.format},
              {"damp_percent", 0.01},
              {"desc_act", false},
              {"group_size", g.group_size > 0 ? g.group_size : -1},
              {"lm_head", false},
              {"pack_dtype", "int32"},
              {"quant_method", q.quant_method},
              {"sym", g.symmetric},
              {"true_sequential", true}};
    if (q.ignore.empty()) return json;
    Json dynamic = Json::object();
    for (const std::string& module : q.ignore) dynamic["-:" + module] = Json::object();
    json["dynamic"] = std::move(dynamic);
    return json;
}

}  // namespace

QuantizationConfig read_quantization(const Json& value) {
    if (!value.is_object()) throw Error(ErrorKind::kInput, "quantization_config must be an object");
    const std::string method = text(value, "quant_method", "");
    QuantizationConfig q;
    if (method == "fp8") {
        q = read_fp8(value);
    } else if (method == "awq") {
        q.format = text(value, "version", "gemm");
        q.groups = {read_flat(value, !flag(value, "zero_point", true))};
        q.ignore = texts(value, "modules_to_not_convert");
    } else if (method == "gptq") {
        q.format = text(value, "checkpoint_format", "gptq");
        q.groups = {read_flat(value, flag(value, "sym", true))};
        if (const Json* dynamic = find(value, "dynamic"); dynamic != nullptr && dynamic->is_object()) {
            for (const auto& [pattern, scheme] : dynamic->items())
                if (pattern.starts_with("-:")) q.ignore.push_back(pattern.substr(2));
        }
    } else if (method == "compressed-tensors") {
        q = read_compressed(value);
    }
    q.quant_method = method;
    return q;
}

Json write_quantization(const QuantizationConfig& config) {
    if (config.quant_method == "awq") return write_awq(config);
    if (config.quant_method == "gptq") return write_gptq(config);
    if (config.quant_method == "compressed-tensors") return write_compressed(config);
    return {{"activation_scheme", "dynamic"},
            {"fmt", "e4m3"},
            {"quant_method", config.quant_method},
            {"weight_block_size", config.weight_block_size}};
}

}  // namespace fathom
