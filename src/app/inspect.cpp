// fathom inspect: what a model folder holds, without loading its weights.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "app/table.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/file.h"
#include "checkpoint/gguf_names.h"
#include "io/safetensors.h"
#include "model/config.h"
#include "model/parameter_count.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
    std::string model;
    bool tensors = false;
};

std::string_view architecture(const ModelConfig& c) {
    if (c.model_type == "deepseek") return "DeepSeekMoE (V1)";
    if (c.model_type == "deepseek_v2") return "DeepSeek-V2";
    if (c.model_type == "kimi_k2") return "Kimi-K2";
    return "DeepSeek-V3";
}

std::string attention(const ModelConfig& c) {
    if (!c.mla()) return fmt::format("MHA, {} heads of {}", c.num_attention_heads, c.qk_head_dim());
    return fmt::format("MLA, {} heads, latent {} + {}, query latent {}, head {} + {} / {}", c.num_attention_heads,
                       c.kv_lora_rank, c.qk_rope_head_dim, c.q_lora_rank > 0 ? std::to_string(c.q_lora_rank) : "none",
                       c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim);
}

std::string experts(const ModelConfig& c) {
    if (c.n_routed_experts == 0) return "none";
    std::string text =
        fmt::format("{} of {} routed, {} shared, width {}; {} gate, {}", c.num_experts_per_tok, c.n_routed_experts,
                    c.n_shared_experts, c.moe_intermediate_size, name_of(c.scoring_func), name_of(c.topk_method));
    if (c.n_group > 1) text += fmt::format(", {} of {} groups", c.topk_group, c.n_group);
    return text;
}

std::string positions(const ModelConfig& c) {
    std::string text = fmt::format("{}, RoPE theta {:g}", c.max_position_embeddings, c.rope_theta);
    if (!c.rope_scaling) return text;
    return text + fmt::format(", YaRN x{:g} from {}", c.rope_scaling->factor, c.rope_scaling->original_max_position_embeddings);
}

int64_t moe_layers(const ModelConfig& c) {
    int64_t count = 0;
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) count += c.moe_layer(i) ? 1 : 0;
    return count;
}

struct Stored {
    int64_t files = 0, tensors = 0, bytes = 0, numbers = 0;
    std::map<std::string, int64_t> bytes_by_dtype;
};

struct Weights {
    Stored stored;
    Table list{{{"tensor", "name"}, {"type", "dtype"}, {"shape", "shape"}, {"size", "bytes", true}}};
};

Weights weights_of(const GgufView& file) {
    Weights weights;
    weights.stored.files = 1;
    for (const GgufTensor& tensor : file.tensors()) {
        ++weights.stored.tensors;
        weights.stored.bytes += tensor.bytes;
        weights.stored.numbers += tensor.rows() * tensor.columns();
        weights.stored.bytes_by_dtype[std::string(tensor.type_name())] += tensor.bytes;
        weights.list.add({tensor.name, std::string(tensor.type_name()), fmt::format("[{}]", fmt::join(tensor.shape, ", ")),
                          Cell(tensor.bytes, human_bytes(static_cast<double>(tensor.bytes)))});
    }
    return weights;
}

Stored count(const SafetensorsFolder& folder) {
    Stored stored;
    stored.files = static_cast<int64_t>(folder.files().size());
    for (const SafetensorsFile& file : folder.files()) {
        for (const NamedTensor& entry : file.tensors()) {
            ++stored.tensors;
            stored.bytes += entry.tensor.bytes();
            stored.numbers += entry.tensor.size();
            stored.bytes_by_dtype[std::string(name_of(entry.tensor.dtype))] += entry.tensor.bytes();
        }
    }
    return stored;
}

Table components(const ParameterCount& n) {
    Table table({{"component", "component"}, {"parameters", "parameters", true}, {"share", "share", true}});
    const auto add = [&](const char* name, int64_t parameters) {
        if (parameters == 0) return;
        const double share = static_cast<double>(parameters) / static_cast<double>(n.total());
        table.add({name, parameters, Cell(share, fmt::format("{:.1f} %", 100 * share))});
    };
    add("embedding", n.embedding);
    add("head", n.head);
    add("attention", n.attention);
    add("dense MLP", n.dense_mlp);
    add("router", n.router);
    add("routed experts", n.routed_experts);
    add("shared experts", n.shared_experts);
    add("norms", n.norms);
    table.add({"total", n.total(), Cell(1.0, "100.0 %")});
    const double active = static_cast<double>(n.active()) / static_cast<double>(n.total());
    table.add({"active per token", n.active(), Cell(active, fmt::format("{:.1f} %", 100 * active))});
    if (n.mtp > 0) table.add({"MTP modules (besides)", n.mtp, Cell(0.0, "")});
    return table;
}

Table tensor_list(const SafetensorsFolder& folder) {
    Table table({{"tensor", "name"}, {"type", "dtype"}, {"shape", "shape"}, {"size", "bytes", true}});
    for (const SafetensorsFile& file : folder.files()) {
        for (const NamedTensor& entry : file.tensors()) {
            const Tensor& t = entry.tensor;
            const std::string description = t.describe();
            table.add({entry.name, std::string(name_of(t.dtype)), description.substr(description.find('[')),
                       Cell(t.bytes(), human_bytes(static_cast<double>(t.bytes())))});
        }
    }
    return table;
}

void print_text(const ModelConfig& c, const ParameterCount& n, const std::optional<Weights>& weights, bool tensors) {
    const auto line = [](const char* name, const std::string& value) { fmt::print("{:<18}{}\n", name, value); };
    line("architecture", fmt::format("{} ({})", architecture(c), c.model_type));
    line("layers", fmt::format("{}, of them {} with experts{}", c.num_hidden_layers, moe_layers(c),
                               c.num_nextn_predict_layers > 0 ? fmt::format("; {} MTP", c.num_nextn_predict_layers) : ""));
    line("hidden size", std::to_string(c.hidden_size));
    line("attention", attention(c));
    line("dense MLP", fmt::format("width {}", c.intermediate_size));
    line("experts", experts(c));
    line("vocabulary", fmt::format("{}{}", c.vocab_size, c.tie_word_embeddings ? ", tied" : ""));
    line("positions", positions(c));
    const int64_t cached = c.cache_dim() * c.num_hidden_layers;
    line("cache", fmt::format("{} numbers a token and layer; {} a token in bf16, {} in f32", c.cache_dim(),
                              human_bytes(static_cast<double>(2 * cached)), human_bytes(static_cast<double>(4 * cached))));
    if (weights) {
        const Stored& stored = weights->stored;
        std::string dtypes;
        for (const auto& [name, bytes] : stored.bytes_by_dtype) {
            dtypes += fmt::format("{}{} {}", dtypes.empty() ? "" : ", ", name, human_bytes(static_cast<double>(bytes)));
        }
        line("files", fmt::format("{} in {} file{}, {} tensors: {}", human_bytes(static_cast<double>(stored.bytes)),
                                  stored.files, stored.files == 1 ? "" : "s", stored.tensors, dtypes));
    } else {
        line("files", "no weights in this folder");
    }
    fmt::print("\n");
    components(n).print(false);
    if (!tensors || !weights) return;
    fmt::print("\n");
    weights->list.print(false);
}

void print_json(const ModelConfig& c, const ParameterCount& n, const std::optional<Weights>& weights, bool tensors) {
    const int64_t cached = c.cache_dim() * c.num_hidden_layers;
    Json object{{"architecture", architecture(c)},
                {"model_type", c.model_type},
                {"layers", c.num_hidden_layers},
                {"moe_layers", moe_layers(c)},
                {"hidden_size", c.hidden_size},
                {"vocab_size", c.vocab_size},
                {"max_position_embeddings", c.max_position_embeddings},
                {"parameters", n.total()},
                {"active_parameters", n.active()},
                {"mtp_parameters", n.mtp},
                {"components", Json::parse(components(n).json())},
                {"cache_numbers_per_token_and_layer", c.cache_dim()},
                {"cache_bytes_per_token", {{"bf16", 2 * cached}, {"f32", 4 * cached}}},
                {"config", Json::parse(c.to_json())}};
    if (weights) {
        const Stored& stored = weights->stored;
        object["files"] = {{"files", stored.files},
                           {"tensors", stored.tensors},
                           {"bytes", stored.bytes},
                           {"bytes_by_dtype", stored.bytes_by_dtype}};
        if (tensors) object["tensors"] = Json::parse(weights->list.json());
    }
    fmt::print("{}\n", object.dump(2));
}

// A GGUF file, a config.json, or a folder; `weights` stays empty where there are none.
ModelConfig read_model(const fs::path& path, std::optional<Weights>& weights) {
    if (is_gguf(path)) {
        const GgufFile file(path);
        weights = weights_of(file.view());
        try {
            return config_of_gguf(file.view());
        } catch (const Error& error) {
            throw error.within(path.string());
        }
    }
    if (fs::is_regular_file(path)) return ModelConfig::parse(read_text(path));
    if (fs::exists(path / "model.safetensors") || fs::exists(path / "model.safetensors.index.json")) {
        const SafetensorsFolder folder(path);
        weights = Weights{count(folder), tensor_list(folder)};
    }
    return ModelConfig::load(path);
}

void inspect(const Options& options, const Globals& globals) {
    const fs::path path(options.model);
    std::optional<Weights> weights;
    const ModelConfig config = read_model(path, weights);
    if (options.tensors && !weights) throw Error(ErrorKind::kInput, fmt::format("{}: no weights there to list", options.model));
    const ParameterCount parameters = count_parameters(config);
    if (globals.json) {
        print_json(config, parameters, weights, options.tensors);
    } else {
        print_text(config, parameters, weights, options.tensors);
    }
}

}  // namespace

void add_inspect(CLI::App& app, Globals& globals) {
    CLI::App* verb = app.add_subcommand("inspect", "show a model's architecture, sizes and tensors, without loading it");
    verb->footer(
        "Examples:\n"
        "  fathom inspect models/stories\n"
        "  fathom inspect MODEL --tensors\n"
        "  fathom inspect config.json --json");
    auto options = std::make_shared<Options>();
    verb->add_option("model", options->model, "a model folder, a GGUF file, or a config.json")->required()->type_name("MODEL");
    verb->add_flag("--tensors", options->tensors, "list every tensor with its type and shape");
    verb->callback([options, &globals] { inspect(*options, globals); });
}

}  // namespace fathom
