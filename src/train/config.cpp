#include "train/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>
#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "base/file.h"

namespace fathom {
namespace {

constexpr std::string_view kBareKey = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
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

[[noreturn]] void fail(const std::string& key, const std::string& what) {
    throw Error(ErrorKind::kInput, fmt::format("{}: {}", key, what));
}

// One table of the file. Every key that is read is ticked off, and written back as it was understood: defaults where it is
// missing, absolute paths. So the table becomes the effective one. finish() complains about keys that nobody read.
class Section {
public:
    Section(std::string name, toml::table& table) : name_(std::move(name)), table_(&table) {}
    [[nodiscard]] static Section of(toml::table& root, const std::string& name) {
        root.insert(name, toml::table{});
        toml::table* table = root.get(name)->as_table();
        if (table == nullptr) fail(name, "must be a table, as in [" + name + "]");
        return {name, *table};
    }

    void number(std::string_view key, double& value, double low, double high) {
        if (const toml::node* node = take(key)) {
            const auto found = node->value<double>();
            if (!found) fail(full(key), "must be a number");
            check_range(key, *found, low, high);
            value = *found;
        }
        table_->insert_or_assign(key, value);
    }
    void integer(std::string_view key, int64_t& value, int64_t low, int64_t high = int64_t{1} << 40) {
        if (const toml::node* node = take(key)) {
            const auto found = node->value_exact<int64_t>();
            if (!found) fail(full(key), "must be an integer");
            check_range(key, *found, low, high);
            value = *found;
        }
        table_->insert_or_assign(key, value);
    }
    void boolean(std::string_view key, bool& value) {
        if (const toml::node* node = take(key)) {
            const auto found = node->value_exact<bool>();
            if (!found) fail(full(key), "must be true or false");
            value = *found;
        }
        table_->insert_or_assign(key, value);
    }
    // Empty when the key is missing, and only then.
    [[nodiscard]] std::string text(std::string_view key) {
        const toml::node* node = take(key);
        return node == nullptr ? std::string() : text_of(key, *node);
    }
    [[nodiscard]] std::filesystem::path path(std::string_view key, const std::filesystem::path& base) {
        const std::string found = text(key);
        if (found.empty()) return {};
        const std::filesystem::path result = (base / found).lexically_normal();
        table_->insert_or_assign(key, result.string());
        return result;
    }
    // One or a list.
    [[nodiscard]] std::vector<std::filesystem::path> paths(std::string_view key, const std::filesystem::path& base) {
        const toml::node* node = take(key);
        if (node == nullptr) return {};
        toml::array single;
        const toml::array* list = node->as_array();
        if (list == nullptr) {
            single.push_back(text_of(key, *node));
            list = &single;
        }
        std::vector<std::filesystem::path> result;
        toml::array written;
        for (const toml::node& item : *list) {
            result.push_back((base / text_of(key, item)).lexically_normal());
            written.push_back(result.back().string());
        }
        table_->insert_or_assign(key, std::move(written));
        return result;
    }
    void fractions(std::string_view key, std::vector<double>& values) {
        if (const toml::node* node = take(key)) {
            const toml::array* list = node->as_array();
            if (list == nullptr) fail(full(key), "must be a list of numbers");
            values.clear();
            for (const toml::node& item : *list) {
                const auto found = item.value<double>();
                if (!found) fail(full(key), "must be a list of numbers");
                check_range(key, *found, 0.0, 1.0);
                values.push_back(*found);
            }
        }
        toml::array written;
        for (const double value : values) written.push_back(value);
        table_->insert_or_assign(key, std::move(written));
    }
    template <class E, size_t N>
    void choice(std::string_view key, E& value, const std::array<std::pair<std::string_view, E>, N>& spellings) {
        const std::string found = text(key);
        std::string known;
        for (const auto& [spelling, meaning] : spellings) {
            if (spelling == found) value = meaning;
            if (found.empty() && meaning == value) table_->insert_or_assign(key, std::string(spelling));
            if (spelling == found) return;
            known += (known.empty() ? "" : ", ") + std::string(spelling);
        }
        if (!found.empty()) fail(full(key), fmt::format("\"{}\" is not one of {}", found, known));
    }
    [[nodiscard]] toml::node* take(std::string_view key) {
        seen_.insert(std::string(key));
        return table_->get(key);
    }
    [[nodiscard]] std::string full(std::string_view key) const { return name_ + "." + std::string(key); }
    // Keys nobody asked for.
    [[nodiscard]] std::vector<std::string> rest() const {
        std::vector<std::string> keys;
        for (const auto& [key, value] : *table_) {
            if (!seen_.contains(std::string(key.str()))) keys.emplace_back(key.str());
        }
        return keys;
    }
    void finish() const {
        const auto unknown = rest();
        if (!unknown.empty())
            fail(full(unknown.front()), fmt::format("is not a known key; the known ones are {}", fmt::join(seen_, ", ")));
    }

private:
    std::string name_;
    toml::table* table_;
    std::set<std::string> seen_;

    template <class T>
    void check_range(std::string_view key, T value, T low, T high) const {
        if (!(value >= low && value <= high)) fail(full(key), fmt::format("{} is not between {} and {}", value, low, high));
    }
    [[nodiscard]] std::string text_of(std::string_view key, const toml::node& node) const {
        const auto found = node.value_exact<std::string>();
        if (!found || found->empty()) fail(full(key), "must be a text in quotes");
        return *found;
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
    if (const auto* list = node.as_array()) {
        nlohmann::ordered_json array = nlohmann::ordered_json::array();
        for (const toml::node& item : *list) array.push_back(to_json(item, key));
        return array;
    }
    fail(key, "has a type that config.json does not know");
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
    Section section = Section::of(root, "model");
    std::filesystem::path file = section.path("config", base);
    config.model.tokenizer = section.path("tokenizer", base);
    config.model.init_from = section.path("init_from", base);
    section.number("init_std", config.model.init_std, 0, 10);
    if (file.empty() && !config.model.init_from.empty()) file = config.model.init_from / "config.json";
    nlohmann::ordered_json json = file.empty() ? nlohmann::ordered_json::object() : read_json_object(file);
    for (const std::string& key : section.rest()) json[key] = to_json(*section.take(key), section.full(key));
    if (json.empty()) fail("model", "needs `config = \"config.json\"`, `init_from`, or the keys of a config.json");
    try {
        config.model.config = ModelConfig::parse(json.dump(2));
    } catch (const nlohmann::json::exception&) {  // dump: texts from the command line may be anything
        fail("model", "holds text that is not UTF-8");
    } catch (const Error& error) {
        throw error.within("[model]");
    }
}

void read_training(toml::table& root, TrainConfig& config) {
    Section training = Section::of(root, "training");
    auto& t = config.training;
    if (training.take("steps") == nullptr) fail("training.steps", "is required");
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

    Section schedule = Section::of(root, "lr_scheduler");
    schedule.choice("type", config.lr_scheduler.kind, kSchedules);
    schedule.integer("warmup_steps", config.lr_scheduler.warmup_steps, 0);
    schedule.number("min_ratio", config.lr_scheduler.min_ratio, 0, 1);
    schedule.number("decay_fraction", config.lr_scheduler.decay_fraction, 1e-9, 1);
    schedule.number("decay_factor", config.lr_scheduler.decay_factor, 0, 1);
    schedule.fractions("decay_at", config.lr_scheduler.decay_at);
    schedule.finish();

    Section optimizer = Section::of(root, "optimizer");
    optimizer.number("lr", config.optimizer.lr, 0, 10);
    optimizer.number("beta1", config.optimizer.beta1, 0, 0.999999);
    optimizer.number("beta2", config.optimizer.beta2, 0, 0.999999999);
    optimizer.number("epsilon", config.optimizer.epsilon, 0, 1);
    optimizer.number("weight_decay", config.optimizer.weight_decay, 0, 10);
    optimizer.finish();
}

void read_balance(toml::table& root, TrainConfig& config) {
    Section section = Section::of(root, "balance");
    section.number("bias_update_speed", config.balance.bias_update_speed, 0, 1);
    section.number("bias_update_until", config.balance.bias_update_until, 0, 1);
    if (toml::node* node = section.take("loss")) {
        toml::array* list = node->as_array();
        if (list == nullptr) fail("balance.loss", "must be written as [[balance.loss]] tables");
        for (toml::node& item : *list) {
            if (item.as_table() == nullptr) fail("balance.loss", "must be written as [[balance.loss]] tables");
            Section entry("balance.loss", *item.as_table());
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

void read_rest(toml::table& root, const std::filesystem::path& base, TrainConfig& config) {
    Section job = Section::of(root, "job");
    config.job.dir = job.text("dir");
    (void)job.path("dir", std::filesystem::current_path());
    int64_t seed = 0;
    job.integer("seed", seed, 0);
    config.job.seed = static_cast<uint64_t>(seed);
    job.finish();
    if (config.job.dir.empty()) fail("job.dir", "is required: the folder of the run");

    Section data = Section::of(root, "data");
    config.data.train = data.paths("train", base);
    config.data.valid = data.paths("valid", base);
    int64_t& length = config.data.sequence_length;
    length = std::min(length, config.model.config.max_position_embeddings);
    data.integer("sequence_length", length, 2, config.model.config.max_position_embeddings);
    if (length > std::numeric_limits<int32_t>::max() / config.training.rows_per_batch)
        fail("data.sequence_length",
             "times training.rows_per_batch are more than 2^31 tokens; use training.gradient_accumulation");
    data.finish();
    if (config.data.train.empty()) fail("data.train", "is required: a folder of token shards, or text files");

    Section checkpoint = Section::of(root, "checkpoint");
    checkpoint.integer("every", config.checkpoint.every, 0);
    checkpoint.integer("keep", config.checkpoint.keep, 1);
    checkpoint.finish();

    Section metrics = Section::of(root, "metrics");
    metrics.integer("every", config.metrics.every, 1);
    metrics.integer("valid_every", config.metrics.valid_every, 0);
    metrics.integer("valid_batches", config.metrics.valid_batches, 0);
    metrics.integer("expert_load_every", config.metrics.expert_load_every, 1);
    metrics.finish();
}

// Values on one line, numbers as short as they stay exact (toml++ writes 0.1 with 17 digits).
std::string to_toml(const toml::node& node) {
    const auto quoted = [](std::string_view text) { return nlohmann::json(text).dump(); };  // JSON's escapes are TOML's
    if (const auto* value = node.as_string()) return quoted(value->get());
    if (const auto* value = node.as_boolean()) return fmt::format("{}", value->get());
    if (const auto* value = node.as_integer()) return fmt::format("{}", value->get());
    if (const auto* value = node.as_floating_point()) {
        const std::string digits = fmt::format("{}", value->get());
        return digits.find_first_not_of("-0123456789") == std::string::npos ? digits + ".0" : digits;
    }
    std::string items;
    const auto append = [&](const std::string& item) { items += (items.empty() ? "" : ", ") + item; };
    if (const auto* list = node.as_array()) {
        for (const toml::node& item : *list) append(to_toml(item));
        return "[" + items + "]";
    }
    check(node.as_table() != nullptr, "dates are refused when read");
    for (const auto& [key, item] : *node.as_table()) append(quoted(key.str()) + " = " + to_toml(item));
    return "{" + items + "}";
}

// A table per section; those of a list in one line each.
std::string effective_text(const toml::table& root) {
    std::string text;
    for (const auto& [name, section] : root) {
        text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", name.str());
        for (const auto& [key, value] : *section.as_table()) {
            const bool bare = key.str().find_first_not_of(kBareKey) == std::string_view::npos && !key.str().empty();
            text += fmt::format("{} = {}\n", bare ? std::string(key.str()) : nlohmann::json(key.str()).dump(), to_toml(value));
        }
    }
    return text;
}

// "a.b.c=value": the value as TOML writes it, or a bare text.
void apply_override(toml::table& root, const std::string& text) {
    const size_t equals = text.find('=');
    std::vector<std::string> path;
    std::istringstream parts(text.substr(0, equals) + ".");  // getline would not see an empty last part
    for (std::string part; std::getline(parts, part, '.');) path.push_back(part);
    if (equals == std::string::npos || path.size() < 2 || std::ranges::find(path, "") != path.end()) {
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
    config.model.config.quantization_config.reset();  // as checkpoints of this run will be
    try {
        config.text = effective_text(root);
    } catch (const nlohmann::json::exception&) {  // texts from the command line may be anything
        throw Error(ErrorKind::kInput, "a setting holds text that is not UTF-8");
    }
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
