// ModelConfig from and to config.json text.
#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "model/config.h"
#include "model/config_fields.h"
#include "model/config_quantization.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxDepth = 64;  // of nesting; writing JSON recurses
constexpr std::string_view kClassifier = "ForSequenceClassification";
constexpr int64_t kMostLabels = 1 << 16;

[[noreturn]] void fail(std::string sentence) { throw Error(ErrorKind::kInput, std::move(sentence)); }

Json parse_object(std::string_view text) {
    const auto shallow = [](int depth, Json::parse_event_t, Json&) {
        if (depth > kMaxDepth) fail(fmt::format("config is nested more than {} levels deep", kMaxDepth));
        return true;
    };
    Json json;
    try {
        json = Json::parse(text, shallow);
    } catch (const Json::exception& e) {
        fail(fmt::format("config is not valid JSON ({}): download or copy it again", e.what()));
    }
    if (!json.is_object()) fail("config is not a JSON object: download or copy it again");
    return json;
}

// Where the language model's keys are: the outer object, or its text_config.
Json& text_model(Json& root) {
    const auto nested = root.find("text_config");
    return nested != root.end() && nested->is_object() ? *nested : root;
}

std::string excerpt(const Json& value) {
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 57) + "...";
    return text;
}

// Typed access to one object; an absent key and null read as nullopt, a wrong type throws.
class Reader {
public:
    explicit Reader(const Json& object, std::string prefix = "") : object_(object), prefix_(std::move(prefix)) {}

    [[nodiscard]] const Json* find(std::string_view key) const {
        const auto found = object_.find(std::string(key));
        return found == object_.end() || found->is_null() ? nullptr : &*found;
    }

    [[nodiscard]] std::optional<int64_t> integer(std::string_view key) const {
        const Json* value = find(key);
        if (value == nullptr) return std::nullopt;
        return to_integer(key, *value);
    }

    [[nodiscard]] std::optional<double> number(std::string_view key) const {
        const Json* value = find(key);
        if (value == nullptr) return std::nullopt;
        if (!value->is_number()) wrong_type(key, "a number", *value);
        return value->get<double>();
    }

    [[nodiscard]] std::optional<bool> flag(std::string_view key) const {
        const Json* value = find(key);
        if (value == nullptr) return std::nullopt;
        if (!value->is_boolean()) wrong_type(key, "true or false", *value);
        return value->get<bool>();
    }

    [[nodiscard]] std::optional<std::string> text(std::string_view key) const {
        const Json* value = find(key);
        if (value == nullptr) return std::nullopt;
        if (!value->is_string()) wrong_type(key, "a string", *value);
        return value->get<std::string>();
    }

    // A number or a list of numbers.
    [[nodiscard]] std::vector<int64_t> integers(std::string_view key) const {
        const Json* value = find(key);
        if (value == nullptr) return {};
        if (!value->is_array()) return {to_integer(key, *value)};
        std::vector<int64_t> list;
        for (const Json& item : *value) list.push_back(to_integer(key, item));
        return list;
    }

    [[nodiscard]] std::optional<Reader> object(std::string_view key) const {
        const Json* value = find(key);
        if (value == nullptr) return std::nullopt;
        if (!value->is_object()) wrong_type(key, "an object", *value);
        return Reader(*value, fmt::format("{}{}.", prefix_, key));
    }

    [[noreturn]] void missing(std::string_view key) const { fail(fmt::format("{}{} is missing", prefix_, key)); }

    [[noreturn]] void wrong_type(std::string_view key, std::string_view wanted, const Json& found) const {
        fail(fmt::format("{}{} must be {}, not {}", prefix_, key, wanted, excerpt(found)));
    }

private:
    // Some writers spell integers 4096.0.
    [[nodiscard]] int64_t to_integer(std::string_view key, const Json& value) const {
        if (value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()})
            return value.get<int64_t>();
        if (value.is_number_integer() && !value.is_number_unsigned()) return value.get<int64_t>();
        if (value.is_number_float() && std::abs(value.get<double>()) < 0x1p53 &&
            std::trunc(value.get<double>()) == value.get<double>())
            return static_cast<int64_t>(value.get<double>());
        wrong_type(key, "an integer", value);
    }

    const Json& object_;
    std::string prefix_;
};

ScoringFunc scoring_func_from(std::string_view name) {
    for (const auto func : {ScoringFunc::kSoftmax, ScoringFunc::kSigmoid})
        if (name == name_of(func)) return func;
    fail(fmt::format("scoring_func \"{}\" is not supported: softmax and sigmoid are", name));
}

TopkMethod topk_method_from(std::string_view name) {
    for (const auto method : {TopkMethod::kGreedy, TopkMethod::kGroupLimitedGreedy, TopkMethod::kNoauxTc})
        if (name == name_of(method)) return method;
    fail(fmt::format("topk_method \"{}\" is not supported: greedy, group_limited_greedy and noaux_tc are", name));
}

// The rules by model type for absent keys.
void set_defaults(ModelConfig& c) {
    c.rope_interleave = !is_v1(c);
    if (!is_v1(c) && !is_v2(c)) return;
    c.scoring_func = ScoringFunc::kSoftmax;
    c.topk_method = TopkMethod::kGreedy;
    c.norm_topk_prob = false;
}

void read_tables(ModelConfig& c, const Reader& in) {
    c.n_routed_experts = in.integer("n_routed_experts").value_or(0);  // decides which other keys apply
    for (const IntegerKey& key : kIntegerKeys) {
        if (!applies(key.use, c)) continue;
        const std::optional<int64_t> value = in.integer(key.name);
        if (!value && key.required) in.missing(key.name);
        if (value) c.*key.member = *value;
    }
    for (const NumberKey& key : kNumberKeys)
        if (applies(key.use, c)) c.*key.member = in.number(key.name).value_or(c.*key.member);
    for (const FlagKey& key : kFlagKeys)
        if (applies(key.use, c)) c.*key.member = in.flag(key.name).value_or(c.*key.member);
    if (c.num_key_value_heads == 0 || !is_v1(c)) c.num_key_value_heads = c.num_attention_heads;
}

void read_router(ModelConfig& c, const Reader& in) {
    if (c.n_routed_experts == 0) return;
    if (const auto name = in.text("scoring_func")) c.scoring_func = scoring_func_from(*name);
    if (const auto name = in.text("topk_method")) c.topk_method = topk_method_from(*name);
    // transformers takes 2.5 and DeepSeek's own code 1 when it is absent: guessing would change the logits.
    if (!is_v1(c) && !is_v2(c) && in.find("routed_scaling_factor") == nullptr) in.missing("routed_scaling_factor");
}

std::optional<RopeScaling> read_yarn(const Reader& in) {
    auto type = in.text("rope_type");
    if (!type) type = in.text("type");
    if (!type || *type == "default") return std::nullopt;
    if (*type != "yarn") fail(fmt::format("rope_scaling type \"{}\" is not supported: yarn and default are", *type));
    if (in.find("attention_factor") != nullptr || !in.flag("truncate").value_or(true))
        fail("rope_scaling with attention_factor or truncate is not supported: no released model of this family has them");
    RopeScaling s;
    const auto factor = in.number("factor");
    const auto original = in.integer("original_max_position_embeddings");
    if (!factor) in.missing("factor");
    if (!original) in.missing("original_max_position_embeddings");
    s.factor = *factor;
    s.original_max_position_embeddings = *original;
    s.beta_fast = in.number("beta_fast").value_or(s.beta_fast);
    s.beta_slow = in.number("beta_slow").value_or(s.beta_slow);
    s.mscale = in.number("mscale").value_or(s.mscale);
    s.mscale_all_dim = in.number("mscale_all_dim").value_or(s.mscale_all_dim);
    return s;
}

void read_rope(ModelConfig& c, const Reader& in) {
    c.rope_theta = in.number("rope_theta").value_or(c.rope_theta);
    if (const auto parameters = in.object("rope_parameters")) {
        c.rope_theta = parameters->number("rope_theta").value_or(c.rope_theta);
        c.rope_scaling = read_yarn(*parameters);
    } else if (const auto scaling = in.object("rope_scaling")) {
        c.rope_scaling = read_yarn(*scaling);
    }
    if (in.find("max_position_embeddings") == nullptr && c.rope_scaling) {
        const double length = c.rope_scaling->factor * static_cast<double>(c.rope_scaling->original_max_position_embeddings);
        c.max_position_embeddings = static_cast<int64_t>(std::clamp(length, 1.0, 0x1p30));
    }
}

void read_storage(ModelConfig& c, const Reader& in) {
    auto dtype = in.text("dtype");
    if (!dtype) dtype = in.text("torch_dtype");
    if (dtype) c.torch_dtype = *dtype;
    if (const Json* quantization = in.find("quantization_config")) c.quantization_config = read_quantization(*quantization);
}

void read_tokens(ModelConfig& c, const Reader& in) {
    c.bos_token_id = in.integer("bos_token_id");
    c.eos_token_id = in.integers("eos_token_id");
    c.pad_token_id = in.integer("pad_token_id");
    if (c.pad_token_id == -1) c.pad_token_id.reset();  // an older way to say none
}

// A head of labels in the place of the vocabulary's. Where the file does not count them, transformers takes two.
void read_labels(ModelConfig& c, const Reader& in) {
    const Json* architectures = in.find("architectures");
    if (architectures == nullptr || !architectures->is_array()) return;
    const bool classifier = std::ranges::any_of(
        *architectures, [](const Json& name) { return name.is_string() && name.get<std::string>().ends_with(kClassifier); });
    if (!classifier) return;
    const Json* names = in.find("id2label");
    c.num_labels = names != nullptr && names->is_object() ? std::ssize(*names) : in.integer("num_labels").value_or(2);
    if (c.num_labels < 1 || c.num_labels > kMostLabels)
        fail(fmt::format("num_labels must be 1 to {}, not {}", kMostLabels, c.num_labels));
}

// Writes the fields in which `now` differs from `before`; all that apply when there is no before.
class Writer {
public:
    Writer(Json& object, const ModelConfig& now, const ModelConfig* before) : object_(object), now_(now), before_(before) {}

    bool write() {
        write_names();
        write_tables();
        write_rope();
        write_tokens();
        write_storage();
        if (changed_ && now_.n_routed_experts > 0 && !object_.contains("routed_scaling_factor"))
            set("routed_scaling_factor", now_.routed_scaling_factor);
        return changed_;
    }

private:
    template <class Member>
    [[nodiscard]] bool differs(Member ModelConfig::*member) const {
        return before_ == nullptr || before_->*member != now_.*member;
    }

    void set(std::string_view key, Json value) {
        object_[std::string(key)] = std::move(value);
        changed_ = true;
    }

    void write_names() {
        if (before_ == nullptr || differs(&ModelConfig::num_labels)) {
            const std::string_view family = is_v1(now_) ? "Deepseek" : is_v2(now_) ? "DeepseekV2" : "DeepseekV3";
            set("architectures", Json::array({fmt::format("{}{}", family, now_.num_labels > 0 ? kClassifier : "ForCausalLM")}));
        }
        if (before_ == nullptr) set("hidden_act", "silu");
        if (differs(&ModelConfig::model_type)) set("model_type", now_.model_type);
        if (differs(&ModelConfig::num_labels)) write_labels();
    }

    // As transformers does: the names' number is what counts.
    void write_labels() {
        for (const char* key : {"num_labels", "id2label", "label2id"}) object_.erase(key);
        if (now_.num_labels == 0) return;
        Json names = Json::object(), ids = Json::object();
        for (int64_t i = 0; i < now_.num_labels; ++i) {
            const std::string name = fmt::format("LABEL_{}", i);
            names[std::to_string(i)] = name;
            ids[name] = i;
        }
        set("num_labels", now_.num_labels);
        set("id2label", std::move(names));
        set("label2id", std::move(ids));
    }

    void write_tables() {
        for (const IntegerKey& key : kIntegerKeys) {
            const int64_t value = now_.*key.member;
            if (!applies(key.use, now_) || !differs(key.member)) continue;
            if (key.use == KeyUse::kMha && value == 0) continue;  // head_dim: derived
            set(key.name, key.zero_is_null && value == 0 ? Json(nullptr) : Json(value));
        }
        for (const NumberKey& key : kNumberKeys)
            if (applies(key.use, now_) && differs(key.member)) set(key.name, now_.*key.member);
        for (const FlagKey& key : kFlagKeys)
            if (applies(key.use, now_) && (retyped() || differs(key.member)) && !implied(key)) set(key.name, now_.*key.member);
        if (now_.n_routed_experts == 0) return;
        if (retyped() || differs(&ModelConfig::scoring_func)) set("scoring_func", name_of(now_.scoring_func));
        if (retyped() || differs(&ModelConfig::topk_method)) set("topk_method", name_of(now_.topk_method));
    }

    // With another model_type, absent keys would mean something else.
    [[nodiscard]] bool retyped() const { return differs(&ModelConfig::model_type); }

    // Releases leave rope_interleave to the model type.
    [[nodiscard]] bool implied(const FlagKey& key) const {
        return before_ == nullptr && key.name == "rope_interleave" && now_.rope_interleave == !is_v1(now_);
    }

    // Every spelling that the file has is kept up to date; a file with none gets the released one.
    void write_rope() {
        const bool theta = differs(&ModelConfig::rope_theta), scaling = differs(&ModelConfig::rope_scaling);
        if (!theta && !scaling) return;
        changed_ = true;
        if (!object_.contains("max_position_embeddings"))  // an absent one would follow the new scaling
            set("max_position_embeddings", now_.max_position_embeddings);
        const bool parameters = object_.contains("rope_parameters") && object_["rope_parameters"].is_object();
        if (parameters) {
            Json& target = object_["rope_parameters"];
            if (theta) target["rope_theta"] = now_.rope_theta;
            if (scaling) write_yarn(target, "rope_type");
        }
        if (theta && (!parameters || object_.contains("rope_theta"))) set("rope_theta", now_.rope_theta);
        if (!scaling || (parameters && !object_.contains("rope_scaling"))) return;
        Json& target = object_["rope_scaling"];
        if (!now_.rope_scaling) {
            target = nullptr;
        } else {
            if (!target.is_object()) target = Json::object();
            write_yarn(target, target.contains("rope_type") ? "rope_type" : "type");
        }
    }

    void write_yarn(Json& target, const char* type_key) const {
        if (!now_.rope_scaling) {
            for (const char* key :
                 {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"})
                target.erase(key);
            target[type_key] = "default";
            return;
        }
        const RopeScaling& now = *now_.rope_scaling;
        const RopeScaling* before = before_ != nullptr && before_->rope_scaling ? &*before_->rope_scaling : nullptr;
        const auto update = [&](const char* key, auto member) {
            if (before == nullptr || before->*member != now.*member) target[key] = now.*member;
        };
        if (before == nullptr) target[type_key] = "yarn";
        update("factor", &RopeScaling::factor);
        update("original_max_position_embeddings", &RopeScaling::original_max_position_embeddings);
        update("beta_fast", &RopeScaling::beta_fast);
        update("beta_slow", &RopeScaling::beta_slow);
        update("mscale", &RopeScaling::mscale);
        update("mscale_all_dim", &RopeScaling::mscale_all_dim);
    }

    void write_tokens() {
        const auto write_id = [this](std::string_view key, std::optional<int64_t> ModelConfig::*member) {
            if (before_ == nullptr && !(now_.*member)) return;
            if (differs(member)) set(key, now_.*member ? Json(*(now_.*member)) : Json(nullptr));
        };
        write_id("bos_token_id", &ModelConfig::bos_token_id);
        write_id("pad_token_id", &ModelConfig::pad_token_id);
        const std::vector<int64_t>& eos = now_.eos_token_id;
        if ((before_ == nullptr && eos.empty()) || !differs(&ModelConfig::eos_token_id)) return;
        set("eos_token_id", eos.empty() ? Json(nullptr) : eos.size() == 1 ? Json(eos[0]) : Json(eos));
    }

    void write_storage() {
        if (differs(&ModelConfig::torch_dtype)) {
            const bool newer = object_.contains("dtype");
            if (newer) set("dtype", now_.torch_dtype);
            if (!newer || object_.contains("torch_dtype")) set("torch_dtype", now_.torch_dtype);
        }
        if (!differs(&ModelConfig::quantization_config)) return;
        if (!now_.quantization_config) {
            changed_ |= object_.erase("quantization_config") > 0;
        } else {
            set("quantization_config", write_quantization(*now_.quantization_config));
        }
    }

    Json& object_;
    const ModelConfig& now_;
    const ModelConfig* before_;
    bool changed_ = false;
};

}  // namespace

bool is_config_key(std::string_view key) {
    constexpr std::array<std::string_view, 13> kRead{
        "model_type",   "scoring_func", "topk_method", "rope_theta", "rope_scaling",        "rope_parameters", "bos_token_id",
        "eos_token_id", "pad_token_id", "torch_dtype", "dtype",      "quantization_config", "hidden_act"};
    constexpr std::array<std::string_view, 14> kCarried{"architectures",
                                                        "attention_dropout",
                                                        "auto_map",
                                                        "ep_size",
                                                        "mlp_bias",
                                                        "mlp_layer_types",
                                                        "_name_or_path",
                                                        "output_router_logits",
                                                        "pretraining_tp",
                                                        "qk_head_dim",
                                                        "router_aux_loss_coef",
                                                        "router_jitter_noise",
                                                        "transformers_version",
                                                        "use_cache"};
    const auto named = [key](const auto& table) {
        return std::ranges::any_of(table, [key](const auto& k) { return k.name == key; });
    };
    return named(kIntegerKeys) || named(kNumberKeys) || named(kFlagKeys) || std::ranges::count(kRead, key) > 0 ||
           std::ranges::count(kCarried, key) > 0;
}

ModelConfig ModelConfig::parse(std::string_view json_text) {
    Json root = parse_object(json_text);
    const Reader outer(root), in(text_model(root));
    ModelConfig c;
    auto type = in.text("model_type");
    if (!type) type = outer.text("model_type");
    if (!type) in.missing("model_type");
    c.model_type = *type;
    if (is_v1(c) || is_v2(c) || c.model_type == "deepseek_v3" || c.model_type == "kimi_k2") {
        set_defaults(c);
        read_tables(c, in);
        read_router(c, in);
        read_rope(c, in);
        read_tokens(c, in);
        read_labels(c, in);
        read_storage(c, in);
        if (const auto act = in.text("hidden_act"); act.value_or("silu") != "silu")
            fail(fmt::format("hidden_act \"{}\" is not supported: only silu is", *act));
        if (in.flag("mlp_bias").value_or(false)) fail("mlp_bias is not supported: no released model of this family has it");
    }
    c.validate();
    c.source_ = json_text;
    return c;
}

ModelConfig ModelConfig::load(const std::filesystem::path& directory) {
    if (std::filesystem::exists(directory) && !std::filesystem::is_directory(directory))
        throw Error(
            ErrorKind::kInput,
            fmt::format("{}: neither a model folder (with config.json and *.safetensors) nor a GGUF file", directory.string()));
    const std::filesystem::path path = directory / "config.json";
    const std::string text = read_text(path);
    try {
        return parse(text);
    } catch (const Error& e) {
        throw e.within(path.string());
    }
}

namespace {

// With what transformers wants to read where this code does not.
ModelConfig as_written(ModelConfig config) {
    if (config.num_key_value_heads == 0 || config.mla()) config.num_key_value_heads = config.num_attention_heads;
    return config;
}

}  // namespace

std::string complete_config(std::string_view json_text) {
    const ModelConfig config = as_written(ModelConfig::parse(json_text));
    Json root = Json::object();
    Writer(root, config, nullptr).write();
    const Json given = parse_object(json_text);
    for (const auto& [key, value] : given.get_ref<const Json::object_t&>())
        if (!root.contains(key)) root[key] = value;
    return root.dump(2) + "\n";
}

std::string ModelConfig::to_json() const {
    const ModelConfig now = as_written(*this);
    std::optional<ModelConfig> before;
    if (!source_.empty()) before = parse(source_);
    Json root = before ? parse_object(source_) : Json::object();
    const bool changed = Writer(text_model(root), now, before ? &*before : nullptr).write();
    return changed ? root.dump(2) + "\n" : source_;
}

}  // namespace fathom
