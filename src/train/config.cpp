#include "train/config.h"

#include <fmt/format.h>
#include <toml++/toml.h>
#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/file.h"
#include "model/config_fields.h"

namespace fathom {
namespace {

constexpr int64_t kMaxSteps = 99'999'999;  // names of checkpoints have eight digits

constexpr std::array<std::pair<std::string_view, ScheduleKind>, 5> kSchedules{{{"constant", ScheduleKind::kConstant},
                                                                               {"cosine", ScheduleKind::kCosine},
                                                                               {"wsd", ScheduleKind::kWsd},
                                                                               {"step", ScheduleKind::kStep},
                                                                               {"v3", ScheduleKind::kV3}}};
constexpr std::array<std::pair<std::string_view, BalanceLossKind>, 6> kBalanceKinds{
    {{"expert", BalanceLossKind::kExpert},
     {"device", BalanceLossKind::kDevice},
     {"communication", BalanceLossKind::kCommunication},
     {"switch", BalanceLossKind::kSwitch},
     {"gshard", BalanceLossKind::kGshard},
     {"squared", BalanceLossKind::kSquared}}};
constexpr std::array<std::pair<std::string_view, DType>, 2> kDTypes{{{"bf16", DType::kBF16}, {"f32", DType::kF32}}};

nlohmann::ordered_json to_json(const toml::node& node, const std::string& key) {
    if (const auto* value = node.as_boolean()) return value->get();
    if (const auto* value = node.as_integer()) return value->get();
    if (const auto* value = node.as_floating_point()) return value->get();
    if (const auto* value = node.as_string()) return value->get();
    if (const auto* table = node.as_table()) {
        nlohmann::ordered_json object = nlohmann::ordered_json::object();
        for (const auto& [name, item] : *table)
            object[std::string(name.str())] = to_json(item, key + "." + std::string(name.str()));
        return object;
    }
    if (const auto* list = node.as_array()) {
        nlohmann::ordered_json array = nlohmann::ordered_json::array();
        for (const toml::node& item : *list) array.push_back(to_json(item, key));
        return array;
    }
    fail_setting(key, "has a type that config.json does not know");
}

nlohmann::ordered_json read_json_object(const std::filesystem::path& file) {
    try {
        auto json = nlohmann::ordered_json::parse(read_text(file));
        if (json.is_object()) return json;
    } catch (const nlohmann::json::exception&) {  // said below
    }
    throw Error(ErrorKind::kInput, file.string() + ": not a JSON object");
}

// model.config names a config.json, and so does init_from; all further keys of [model] are config.json's own.
void read_model(toml::table& root, const std::filesystem::path& base, TrainConfig& config) {
    TomlSection section = TomlSection::of(root, "model");
    std::filesystem::path file = section.path("config", base);
    config.model.tokenizer = section.path("tokenizer", base);
    config.model.init_from = section.path("init_from", base);
    section.number("init_std", config.model.init_std, 0, 10);
    if (config.model.tokenizer.empty() && std::filesystem::exists(config.model.init_from / "tokenizer.json")) {
        config.model.tokenizer = config.model.init_from;
        section.set("tokenizer", config.model.tokenizer.string());
    }
    if (file.empty() && !config.model.init_from.empty()) file = config.model.init_from / "config.json";
    nlohmann::ordered_json json = file.empty() ? nlohmann::ordered_json::object() : read_json_object(file);
    for (const std::string& key : section.rest()) {
        if (!json.contains(key) && !is_config_key(key))
            fail_setting(section.full(key),
                         "is not a known key; known are config, init_from, tokenizer, init_std and those of config.json "
                         "(further ones are carried along from the file that model.config names)");
        json[key] = to_json(*section.take(key), section.full(key));
    }
    if (json.empty()) fail_setting("model", "needs `config = \"config.json\"`, `init_from`, or the keys of a config.json");
    try {
        const std::string text = json.dump(2);
        config.model.config = ModelConfig::parse(file.empty() ? complete_config(text) : text);
    } catch (const nlohmann::json::exception&) {  // dump: texts from the command line may be anything
        fail_setting("model", "holds text that is not UTF-8");
    } catch (const Error& error) {
        throw error.within("[model]");
    }
}

void read_training(toml::table& root, TrainConfig& config) {
    TomlSection training = TomlSection::of(root, "training");
    auto& t = config.training;
    if (training.take("steps") == nullptr) fail_setting("training.steps", "is required");
    training.integer("steps", t.steps, 1, kMaxSteps);
    training.integer("rows_per_batch", t.rows_per_batch, 1, 1 << 20);
    training.integer("gradient_accumulation", t.gradient_accumulation, 1, 1 << 20);
    training.number("clip", t.clip, 0, 1e9);
    training.choice("dtype", t.dtype, kDTypes);
    training.boolean("recompute", t.recompute);
    training.number("mtp_lambda", t.mtp_lambda, 0, 100);
    t.mtp_lambda_final = std::min(t.mtp_lambda_final, t.mtp_lambda);
    training.number("mtp_lambda_final", t.mtp_lambda_final, 0, 100);
    training.number("mtp_lambda_switch", t.mtp_lambda_switch, 0, 1);
    training.finish();

    TomlSection schedule = TomlSection::of(root, "lr_scheduler");
    schedule.choice("type", config.lr_scheduler.kind, kSchedules);
    schedule.integer("warmup_steps", config.lr_scheduler.warmup_steps, 0);
    schedule.number("min_ratio", config.lr_scheduler.min_ratio, 0, 1);
    schedule.number("decay_fraction", config.lr_scheduler.decay_fraction, 1e-9, 1);
    schedule.number("decay_factor", config.lr_scheduler.decay_factor, 0, 1);
    schedule.numbers("decay_at", config.lr_scheduler.decay_at, 0, 1);
    schedule.finish();

    TomlSection optimizer = TomlSection::of(root, "optimizer");
    optimizer.number("lr", config.optimizer.lr, 0, 10);
    optimizer.number("beta1", config.optimizer.beta1, 0, 0.999999);
    optimizer.number("beta2", config.optimizer.beta2, 0, 0.999999999);
    optimizer.number("epsilon", config.optimizer.epsilon, 0, 1);
    optimizer.number("weight_decay", config.optimizer.weight_decay, 0, 10);
    optimizer.choice("moments", config.optimizer.moments, kDTypes);
    // A change of less than half a unit in the last of 8 bits is lost: v would never become smaller.
    if (config.optimizer.moments == DType::kBF16 && config.optimizer.beta2 > 0.99)
        fail_setting("optimizer.moments",
                     "\"bf16\" is too coarse for a beta2 above 0.99: lower optimizer.beta2, or keep \"f32\"");
    optimizer.finish();
}

void read_balance(toml::table& root, TrainConfig& config) {
    TomlSection section = TomlSection::of(root, "balance");
    section.number("bias_update_speed", config.balance.bias_update_speed, 0, 1);
    section.number("bias_update_until", config.balance.bias_update_until, 0, 1);
    if (toml::node* node = section.take("loss")) {
        toml::array* list = node->as_array();
        if (list == nullptr) fail_setting("balance.loss", "must be written as [[balance.loss]] tables");
        for (toml::node& item : *list) {
            if (item.as_table() == nullptr) fail_setting("balance.loss", "must be written as [[balance.loss]] tables");
            TomlSection entry("balance.loss", *item.as_table());
            BalanceLoss loss;
            entry.choice("kind", loss.kind, kBalanceKinds);
            entry.number("alpha", loss.alpha, 0, 1e6);
            entry.boolean("per_sequence", loss.per_sequence);
            entry.integer("devices", loss.devices, 1, config.model.config.n_routed_experts);
            entry.integer("device_limit", loss.device_limit, 1, loss.devices);
            entry.finish();
            if (config.model.config.n_routed_experts % loss.devices != 0)
                fail_setting("balance.loss.devices", "must divide n_routed_experts");
            config.balance.losses.push_back(loss);
        }
    }
    section.finish();
}

void read_rest(toml::table& root, const std::filesystem::path& base, TrainConfig& config) {
    TomlSection job = TomlSection::of(root, "job");
    config.job.dir = job.text("dir");
    (void)job.path("dir", std::filesystem::current_path());
    int64_t seed = 0;
    job.integer("seed", seed, 0);
    config.job.seed = static_cast<uint64_t>(seed);
    job.finish();
    if (config.job.dir.empty()) fail_setting("job.dir", "is required: the folder of the run");

    TomlSection data = TomlSection::of(root, "data");
    config.data.train = data.paths("train", base);
    config.data.valid = data.paths("valid", base);
    int64_t& length = config.data.sequence_length;
    length = std::min(length, config.model.config.max_position_embeddings);
    data.integer("sequence_length", length, 2, config.model.config.max_position_embeddings);
    if (length > std::numeric_limits<int32_t>::max() / config.training.rows_per_batch)
        fail_setting("data.sequence_length",
                     "times training.rows_per_batch are more than 2^31 tokens; use training.gradient_accumulation");
    data.finish();
    if (config.data.train.empty()) fail_setting("data.train", "is required: a folder of token shards, or text files");

    TomlSection checkpoint = TomlSection::of(root, "checkpoint");
    checkpoint.integer("every", config.checkpoint.every, 0);
    checkpoint.integer("keep", config.checkpoint.keep, 1);
    checkpoint.finish();

    TomlSection metrics = TomlSection::of(root, "metrics");
    metrics.integer("every", config.metrics.every, 1);
    metrics.integer("valid_every", config.metrics.valid_every, 0);
    metrics.integer("valid_batches", config.metrics.valid_batches, 0);
    metrics.integer("expert_load_every", config.metrics.expert_load_every, 1);
    metrics.finish();
}

}  // namespace

TrainConfig TrainConfig::parse(std::string_view text, std::span<const std::string> overrides, const std::filesystem::path& base,
                               const SectionReaders& more) {
    toml::table root;
    try {
        root = toml::parse(text);
    } catch (const toml::parse_error& error) {
        throw Error(ErrorKind::kInput, fmt::format("line {}: {}", error.source().begin.line, error.description()));
    }
    for (const std::string& setting : overrides) apply_override(root, setting);
    constexpr std::array kSections{"job",      "model",   "data",       "optimizer", "lr_scheduler",
                                   "training", "balance", "checkpoint", "metrics"};
    for (const auto& [key, value] : root) {
        const std::string name(key.str());
        if (std::ranges::find(kSections, name) == kSections.end() && !more.contains(name))
            fail_setting(name, "is not a known section");
    }
    TrainConfig config;
    read_model(root, base, config);
    read_training(root, config);
    read_balance(root, config);
    read_rest(root, base, config);
    for (const auto& [name, read] : more) {
        TomlSection section = TomlSection::of(root, name);
        read(section, base);
        section.finish();
    }
    config.model.config.torch_dtype = config.training.dtype == DType::kF32 ? "float32" : "bfloat16";
    config.model.config.quantization_config.reset();  // as checkpoints of this run will be
    try {
        config.text = to_toml_text(root);
    } catch (const nlohmann::json::exception&) {  // texts from the command line may be anything
        throw Error(ErrorKind::kInput, "a setting holds text that is not UTF-8");
    }
    return config;
}

TrainConfig TrainConfig::load(const std::filesystem::path& file, std::span<const std::string> overrides,
                              const SectionReaders& more) {
    const std::string text = read_text(file);
    try {
        return parse(text, overrides, std::filesystem::absolute(file).parent_path(), more);
    } catch (const Error& error) {
        throw error.within(file.string());
    }
}

}  // namespace fathom
