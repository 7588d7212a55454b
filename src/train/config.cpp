#include "train/config.h"

#include <fmt/format.h>
#include <toml++/toml.h>
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "base/file.h"

namespace fathom {
namespace {

template <class E>
using Spellings = std::span<const std::pair<std::string_view, E>>;

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

[[noreturn]] void fail(const std::string& key, const std::string& what) {
    throw Error(ErrorKind::kInput, fmt::format("{}: {}", key, what));
}

// One table of the file. Every key that is read is ticked off; finish() complains about the rest.
class Section {
public:
    Section(const toml::table& root, std::string name) : name_(std::move(name)) {
        if (const toml::node* node = root.get(name_)) {
            table_ = node->as_table();
            if (table_ == nullptr) fail(name_, "must be a table, as in [" + name_ + "]");
        }
    }
    Section(const toml::table& table, std::string name, std::nullptr_t) : name_(std::move(name)), table_(&table) {}

    void number(std::string_view key, double& value, double low, double high) {
        const toml::node* node = take(key);
        if (node == nullptr) return;
        const auto found = node->value<double>();
        if (!found) fail(full(key), "must be a number");
        if (!(*found >= low && *found <= high)) fail(full(key), fmt::format("{} is not between {} and {}", *found, low, high));
        value = *found;
    }
    void integer(std::string_view key, int64_t& value, int64_t low, int64_t high = int64_t{1} << 40) {
        const toml::node* node = take(key);
        if (node == nullptr) return;
        const auto found = node->value_exact<int64_t>();
        if (!found) fail(full(key), "must be an integer");
        if (*found < low || *found > high) fail(full(key), fmt::format("{} is not between {} and {}", *found, low, high));
        value = *found;
    }
    void boolean(std::string_view key, bool& value) {
        const toml::node* node = take(key);
        if (node == nullptr) return;
        const auto found = node->value_exact<bool>();
        if (!found) fail(full(key), "must be true or false");
        value = *found;
    }
    [[nodiscard]] std::string text(std::string_view key) {
        const toml::node* node = take(key);
        if (node == nullptr) return {};
        const auto found = node->value_exact<std::string>();
        if (!found) fail(full(key), "must be a text in quotes");
        return *found;
    }
    // A text or a list of texts.
    [[nodiscard]] std::vector<std::string> texts(std::string_view key) {
        const toml::node* node = take(key);
        if (node == nullptr) return {};
        if (const auto one = node->value_exact<std::string>()) return {*one};
        std::vector<std::string> result;
        const toml::array* list = node->as_array();
        if (list == nullptr) fail(full(key), "must be a text or a list of texts");
        for (const toml::node& item : *list) {
            const auto found = item.value_exact<std::string>();
            if (!found) fail(full(key), "must be a list of texts");
            result.push_back(*found);
        }
        return result;
    }
    void numbers(std::string_view key, std::vector<double>& values) {
        const toml::node* node = take(key);
        if (node == nullptr) return;
        const toml::array* list = node->as_array();
        if (list == nullptr) fail(full(key), "must be a list of numbers");
        values.clear();
        for (const toml::node& item : *list) {
            const auto found = item.value<double>();
            if (!found) fail(full(key), "must be a list of numbers");
            values.push_back(*found);
        }
    }
    template <class E, size_t N>
    void choice(std::string_view key, E& value, const std::array<std::pair<std::string_view, E>, N>& spellings) {
        const std::string found = text(key);
        if (found.empty()) return;
        std::string known;
        for (const auto& [spelling, meaning] : spellings) {
            if (spelling == found) {
                value = meaning;
                return;
            }
            known += (known.empty() ? "" : ", ") + std::string(spelling);
        }
        fail(full(key), fmt::format("\"{}\" is not one of {}", found, known));
    }
    [[nodiscard]] const toml::node* take(std::string_view key) {
        seen_.insert(std::string(key));
        return table_ == nullptr ? nullptr : table_->get(key);
    }
    [[nodiscard]] std::string full(std::string_view key) const { return name_ + "." + std::string(key); }
    // Keys nobody asked for.
    [[nodiscard]] std::vector<std::string> rest() const {
        std::vector<std::string> keys;
        if (table_ == nullptr) return keys;
        for (const auto& [key, value] : *table_) {
            if (!seen_.contains(std::string(key.str()))) keys.emplace_back(key.str());
        }
        return keys;
    }
    void finish() const {
        const auto unknown = rest();
        if (!unknown.empty())
            fail(full(unknown.front()), "is not a known key; the known ones are " + fmt::format("{}", join(seen_)));
    }

private:
    std::string name_;
    const toml::table* table_ = nullptr;
    std::set<std::string> seen_;

    static std::string join(const std::set<std::string>& keys) {
        std::string result;
        for (const std::string& key : keys) result += (result.empty() ? "" : ", ") + key;
        return result;
    }
};

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
    fail(key, "has a type that config.json does not know");
}

// model.config names a config.json; all further keys of [model] are config.json's own.
void read_model(const toml::table& root, const std::filesystem::path& base, TrainConfig& config) {
    Section section(root, "model");
    const auto path = [&](const std::string& text) { return text.empty() ? std::filesystem::path() : base / text; };
    const std::filesystem::path file = path(section.text("config"));
    config.model.tokenizer = path(section.text("tokenizer"));
    config.model.init_from = path(section.text("init_from"));
    section.number("init_std", config.model.init_std, 0, 10);
    nlohmann::ordered_json json = nlohmann::ordered_json::object();
    if (!config.model.init_from.empty())
        json = nlohmann::ordered_json::parse(read_text(config.model.init_from / "config.json"));
    if (!file.empty()) {
        try {
            json = nlohmann::ordered_json::parse(read_text(file));
        } catch (const nlohmann::json::exception& error) {
            throw Error(ErrorKind::kInput, fmt::format("{}: not JSON: {}", file.string(), error.what()));
        }
    }
    for (const std::string& key : section.rest()) json[key] = to_json(*section.take(key), section.full(key));
    if (json.empty()) fail("model", "needs `config = \"config.json\"`, `init_from`, or the keys of a config.json");
    try {
        config.model.config = ModelConfig::parse(json.dump(2));
    } catch (const Error& error) {
        throw error.within("[model]");
    }
}

void read_training(const toml::table& root, TrainConfig& config) {
    Section training(root, "training");
    auto& t = config.training;
    training.integer("steps", t.steps, 1);
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
    if (t.steps == 0) fail("training.steps", "is required");

    Section schedule(root, "lr_scheduler");
    schedule.choice("type", config.lr_scheduler.kind, kSchedules);
    schedule.integer("warmup_steps", config.lr_scheduler.warmup_steps, 0);
    schedule.number("min_ratio", config.lr_scheduler.min_ratio, 0, 1);
    schedule.number("decay_fraction", config.lr_scheduler.decay_fraction, 1e-9, 1);
    schedule.number("decay_factor", config.lr_scheduler.decay_factor, 0, 1);
    schedule.numbers("decay_at", config.lr_scheduler.decay_at);
    schedule.finish();

    Section optimizer(root, "optimizer");
    optimizer.number("lr", config.optimizer.lr, 0, 10);
    optimizer.number("beta1", config.optimizer.beta1, 0, 0.999999);
    optimizer.number("beta2", config.optimizer.beta2, 0, 0.999999999);
    optimizer.number("epsilon", config.optimizer.epsilon, 0, 1);
    optimizer.number("weight_decay", config.optimizer.weight_decay, 0, 10);
    optimizer.finish();
}

void read_balance(const toml::table& root, TrainConfig& config) {
    Section section(root, "balance");
    section.number("bias_update_speed", config.balance.bias_update_speed, 0, 1);
    section.number("bias_update_until", config.balance.bias_update_until, 0, 1);
    if (const toml::node* node = section.take("loss")) {
        const toml::array* list = node->as_array();
        if (list == nullptr) fail("balance.loss", "must be written as [[balance.loss]] tables");
        for (const toml::node& item : *list) {
            if (item.as_table() == nullptr) fail("balance.loss", "must be written as [[balance.loss]] tables");
            Section entry(*item.as_table(), "balance.loss", nullptr);
            BalanceLoss loss;
            entry.choice("kind", loss.kind, kBalanceKinds);
            entry.number("alpha", loss.alpha, 0, 1e6);
            entry.boolean("per_sequence", loss.per_sequence);
            entry.integer("devices", loss.devices, 1, config.model.config.n_routed_experts);
            entry.integer("device_limit", loss.device_limit, 1, loss.devices);
            entry.finish();
            if (config.model.config.n_routed_experts % loss.devices != 0)
                fail("balance.loss.devices", "must divide n_routed_experts");
            config.balance.losses.push_back(loss);
        }
    }
    section.finish();
}

void read_rest(const toml::table& root, const std::filesystem::path& base, TrainConfig& config) {
    Section job(root, "job");
    config.job.dir = job.text("dir");
    int64_t seed = 0;
    job.integer("seed", seed, 0);
    config.job.seed = static_cast<uint64_t>(seed);
    job.finish();
    if (config.job.dir.empty()) fail("job.dir", "is required: the folder of the run");

    Section data(root, "data");
    for (const std::string& text : data.texts("train")) config.data.train.push_back(base / text);
    for (const std::string& text : data.texts("valid")) config.data.valid.push_back(base / text);
    data.integer("sequence_length", config.data.sequence_length, 2, config.model.config.max_position_embeddings);
    data.finish();
    if (config.data.train.empty()) fail("data.train", "is required: a folder of token shards, or text files");

    Section checkpoint(root, "checkpoint");
    checkpoint.integer("every", config.checkpoint.every, 0);
    checkpoint.integer("keep", config.checkpoint.keep, 1);
    checkpoint.finish();

    Section metrics(root, "metrics");
    metrics.integer("every", config.metrics.every, 1);
    metrics.integer("valid_every", config.metrics.valid_every, 0);
    metrics.integer("valid_batches", config.metrics.valid_batches, 0);
    metrics.integer("expert_load_every", config.metrics.expert_load_every, 1);
    metrics.finish();
}

// "a.b.c=value": the value as TOML writes it, or a bare text.
void apply_override(toml::table& root, const std::string& text) {
    const size_t equals = text.find('=');
    const std::string key = text.substr(0, equals);
    if (equals == std::string::npos || key.find('.') == std::string::npos) {
        throw Error(ErrorKind::kUsage,
                    fmt::format("\"{}\": settings are given as section.key=value, e.g. training.steps=100", text));
    }
    toml::table parsed;
    try {
        parsed = toml::parse("value = " + text.substr(equals + 1));
    } catch (const toml::parse_error&) {
        parsed.insert("value", text.substr(equals + 1));
    }
    toml::table* table = &root;
    std::istringstream parts(key);
    std::vector<std::string> path;
    for (std::string part; std::getline(parts, part, '.');) path.push_back(part);
    for (size_t i = 0; i + 1 < path.size(); ++i) {
        table->insert(path[i], toml::table{});
        table = table->get(path[i])->as_table();
        if (table == nullptr) throw Error(ErrorKind::kUsage, fmt::format("{}: {} is not a table", text, path[i]));
    }
    table->insert_or_assign(path.back(), std::move(*parsed.get("value")));
}

}  // namespace

TrainConfig TrainConfig::parse(std::string_view text, std::span<const std::string> overrides,
                               const std::filesystem::path& base) {
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
        if (std::ranges::find(kSections, key.str()) == kSections.end()) fail(std::string(key.str()), "is not a known section");
    }
    TrainConfig config;
    read_model(root, base, config);
    read_training(root, config);
    read_balance(root, config);
    read_rest(root, base, config);
    config.model.config.torch_dtype = config.training.dtype == DType::kF32 ? "float32" : "bfloat16";
    std::ostringstream effective;
    effective << root << "\n";
    config.text = effective.str();
    return config;
}

TrainConfig TrainConfig::load(const std::filesystem::path& file, std::span<const std::string> overrides) {
    const std::string text = read_text(file);
    try {
        return parse(text, overrides, std::filesystem::absolute(file).parent_path());
    } catch (const Error& error) {
        throw error.within(file.string());
    }
}

}  // namespace fathom
