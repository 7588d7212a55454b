#include "app/generate_model.h"

#include <fmt/format.h>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "app/config_file.h"
#include "app/paged_experts.h"
#include "app/random_weights.h"
#include "base/error.h"
#include "base/file.h"
#include "io/gguf_tokenizer.h"
#include "model/memory_plan.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

DType parse_dtype(const std::string& name) { return name == "bf16" ? DType::kBF16 : DType::kF32; }

// An optional JSON file of a model folder; an empty object when it is not there.
Json read_settings(const fs::path& path) {
    if (!fs::exists(path)) return Json::object();
    Json json = Json::parse(read_text(path), nullptr, false);
    if (!json.is_object()) throw Error(ErrorKind::kInput, fmt::format("{}: not a JSON object", path.string()));
    return json;
}

// Settings that a GGUF file keeps itself, in the form that folders have them.
Json tokenizer_settings(const LoadedModel& loaded, const fs::path& folder) {
    if (!loaded.gguf) return read_settings(folder / "tokenizer_config.json");
    const auto add = loaded.gguf->view().boolean("tokenizer.ggml.add_bos_token");
    return add ? Json{{"add_bos_token", *add}} : Json::object();
}

LoadedModel open_model(const ModelOptions& options, Ops& ops) {
    const bool drafts = options.with_mtp || options.speculation.wanted();
    if (options.model.empty() == options.random_config.empty()) {
        throw Error(ErrorKind::kUsage, "give either a MODEL or --random-config FILE");
    }
    if (options.random_config.empty()) {
        return load_model(options.model, ops,
                          {.dtype = options.weights_dtype(),
                           .with_mtp = drafts,
                           .pack = options.pack,
                           .page_experts = options.ram > 0,
                           .pack_plain = options.pack && options.forward_only,
                           .repack_cache = options.repack_cache});
    }
    if (options.tokenizer.empty()) {
        throw Error(ErrorKind::kUsage,
                    "--random-config has no tokenizer of its own: give --tokenizer DIR, e.g. models/stories");
    }
    if (options.ram > 0) throw Error(ErrorKind::kUsage, "--ram reads experts from a file: --random-config has none");
    LoadedModel loaded;
    loaded.config = read_config_file(options.random_config).model;
    if (!drafts) loaded.config.num_nextn_predict_layers = 0;
    loaded.model = std::make_unique<DeepSeek>(loaded.config);
    draw_weights(loaded, options.dtype == "auto" ? "bf16" : options.dtype, ops);
    if (options.pack && options.forward_only) pack_plain(loaded, ops);
    return loaded;
}

// Whether a model's weights are F32: then nothing that it computes is rounded to bf16 (docs/decisions/014), so that an F32 file
// says here what it says elsewhere.
bool in_f32(const ModelOptions& options) {
    if (options.dtype != "auto" || options.model.empty()) return options.dtype == "f32";
    if (is_gguf(options.model)) return GgufFile(options.model).view().integer("general.file_type") == 0;
    return fs::is_directory(options.model) && ModelConfig::load(options.model).torch_dtype == "float32";
}

bool has_tokenizer(const fs::path& folder) {
    return fs::exists(folder / "tokenizer.json") || fs::exists(folder / "tiktoken.model");
}

}  // namespace

void ModelOptions::declare_memory(CLI::App& verb) {
    verb.add_option("--ram", ram,
                    "memory to use, as in 8G: routed experts that do not fit are read from the file when needed (CPU)")
        ->type_name("SIZE")
        ->transform(CLI::AsSizeValue(false))
        ->group("Computing");
    verb.add_option("--repack-cache", repack_cache,
                    "of a GGUF file on a CPU: keep its packed weights in this folder, so that later starts need not pack them")
        ->type_name("DIR")
        ->envname("FATHOM_REPACK_CACHE")
        ->group("Computing");
}

void ModelOptions::declare_random(CLI::App& verb) {
    verb.get_option("model")->required(false);
    verb.add_option("--random-config", random_config,
                    "instead of MODEL: config.json or a training configuration; weights are drawn at random, to measure with")
        ->type_name("FILE");
    verb.add_option("--tokenizer", tokenizer, "a folder whose tokenizer, chat template and defaults are used, not the model's")
        ->type_name("DIR");
}

CLI::Option* add_cache_type(CLI::App& verb, std::string& cache_type) {
    return verb.add_option("--cache-type", cache_type, "hold the cache as f32, bf16, f16, fp8, int8 or int4")
        ->type_name("TYPE")
        ->check(CLI::IsMember(std::vector<std::string>(kCacheTypeNames.begin(), kCacheTypeNames.end())));
}

void ModelOptions::declare(CLI::App& verb) {
    verb.add_option("model", model, "a Hugging Face model folder, or a GGUF file")->required()->type_name("MODEL");
    verb.add_option("--dtype", dtype, "hold the weights as f32 or bf16; auto: as stored")
        ->type_name("TYPE")
        ->check(CLI::IsMember({"auto", "f32", "bf16"}));
    add_cache_type(verb, cache_type);
}

std::optional<DType> ModelOptions::weights_dtype() const {
    return dtype == "auto" ? std::nullopt : std::optional(parse_dtype(dtype));
}

CacheType ModelOptions::held_as() const { return *cache_type_from_name(cache_type); }

void SamplingOptions::declare(CLI::App& verb) {
    const auto add = [&](const char* name, auto& value, const char* text, const char* type) {
        verb.add_option(name, value, text)->type_name(type)->group("Sampling");
    };
    add("--temperature", temperature,
        "0: always the most probable token; else logits are divided by it "
        "(default of this and the next four: the model's generation_config.json, else 1)",
        "T");
    add("--top-p", top_p, "sample from the most probable tokens that make up this share", "P");
    add("--top-k", top_k, "sample from the k most probable tokens; 0: all", "K");
    add("--min-p", min_p, "drop tokens less probable than this times the most probable one", "P");
    add("--repetition-penalty", repetition_penalty, "above 1: tokens of prompt and answer become less likely", "R");
    add("--frequency-penalty", frequency_penalty, "taken off a token's logit for each time the answer holds it", "F");
    add("--presence-penalty", presence_penalty, "taken off a token's logit once the answer holds it", "F");
    add("--seed", seed, "of the random numbers: the same seed gives the same text", "N");
}

SamplingParams SamplingOptions::resolve(const std::string& model_folder) const {
    const Json model = read_settings(fs::path(model_folder) / "generation_config.json");
    const auto number = [&](const char* key, const auto& given, auto fallback) {
        if (given) return static_cast<decltype(fallback)>(*given);
        const auto found = model.find(key);
        return found != model.end() && found->is_number() ? found->get<decltype(fallback)>() : fallback;
    };
    SamplingParams params;
    params.temperature = number("temperature", temperature, 1.0);
    params.top_p = number("top_p", top_p, 1.0);
    params.top_k = number("top_k", top_k, int64_t{0});
    params.min_p = number("min_p", min_p, 0.0);
    params.repetition_penalty = number("repetition_penalty", repetition_penalty, 1.0);
    params.frequency_penalty = frequency_penalty;
    params.presence_penalty = presence_penalty;
    params.seed = seed;
    params.validate();
    return params;
}

OpenModel::OpenModel(const ModelOptions& options, const Globals& globals, Text text)
    : options_(options),
      deterministic_(globals.deterministic),
      device_(globals, in_f32(options)),
      loaded_(open_model(options, device_.ops())) {
    if (text == Text::kNo) return;
    const std::string& folder = options.text_folder();
    if (loaded_.gguf && options.tokenizer.empty()) {
        const TokenizerFiles files = tokenizer_files_of_gguf(loaded_.gguf->view());
        tokenizer_ = Tokenizer::from_json(files.tokenizer_json, files.tokenizer_config);
    } else if (!has_tokenizer(folder)) {
        if (text == Text::kWanted) return;
        throw Error(ErrorKind::kInput,
                    fmt::format("{}: no tokenizer.json or tiktoken.model there: put the model's tokenizer into the folder, or "
                                "give token ids with fathom generate --prompt-ids",
                                folder));
    }
    if (!tokenizer_) tokenizer_ = Tokenizer::load(folder);
    check_vocabulary();
    bos_ = find_bos();
}

OpenModel::~OpenModel() = default;

void OpenModel::check_vocabulary() const {
    if (tokenizer_->vocab_size() <= config().vocab_size) return;
    throw Error(ErrorKind::kInput,
                fmt::format("{}: the tokenizer has ids up to {}, the model's vocab_size is {}: they do not belong together",
                            options_.text_folder(), tokenizer_->vocab_size() - 1, config().vocab_size));
}

std::optional<int32_t> OpenModel::find_bos() const {
    const Json settings = tokenizer_settings(loaded_, options_.text_folder());
    const auto key = settings.find("add_bos_token");
    const bool add = key != settings.end() && key->is_boolean() ? key->get<bool>() : config().bos_token_id.has_value();
    if (!add) return std::nullopt;
    if (tokenizer_->bos_id()) return tokenizer_->bos_id();
    const auto id = config().bos_token_id;
    return id ? std::optional(static_cast<int32_t>(*id)) : std::nullopt;
}

std::vector<int32_t> OpenModel::encode_prompt(std::string_view text) const {
    check(tokenizer_.has_value(), "OpenModel::encode_prompt: no tokenizer");
    std::vector<int32_t> ids = tokenizer_->encode(text);
    if (bos_ && (ids.empty() || ids.front() != *bos_)) ids.insert(ids.begin(), *bos_);
    return ids;
}

std::vector<int32_t> OpenModel::stop_ids() const {
    std::vector<int32_t> ids;
    for (const int64_t id : config().eos_token_id) ids.push_back(static_cast<int32_t>(id));
    if (tokenizer_) {
        ids.insert(ids.end(), tokenizer_->stop_ids().begin(), tokenizer_->stop_ids().end());
        return ids;
    }
    const Json eos = read_settings(fs::path(options_.text_folder()) / "generation_config.json").value("eos_token_id", Json());
    for (const Json& id : eos.is_array() ? eos : Json::array({eos})) {
        if (id.is_number_integer()) ids.push_back(id.get<int32_t>());
    }
    return ids;
}

ExpertSource* OpenModel::page_experts(int64_t cache_tokens) {
    if (options_.ram == 0) return nullptr;
    if (options_.weights_dtype())
        throw Error(ErrorKind::kUsage, "--ram computes with the weights as they are stored: leave --dtype out");
    if (!paged_) {
        const int64_t cache = cache_tokens * cache_bytes_per_token(config(), options_.held_as());
        paged_ = std::make_unique<PagedExperts>(loaded_, ops(), options_.ram, cache);
    }
    return &paged_->cache();
}

EngineOptions OpenModel::engine_options(int64_t cache_tokens) {
    EngineOptions options;
    options.experts = page_experts(cache_tokens);
    options.threads = &device_.threads();
    options.max_batch_rows = options.prefill_chunk = prompt_batch_rows(ops());
    options.cache_tokens = cache_tokens;
    options.cache_type = options_.held_as();
    options.deterministic = deterministic_;
    options_.speculation.apply(config(), options);
    options.vocab_limit = tokenizer_ ? tokenizer_->vocab_size() : config().vocab_size;
    return options;
}

namespace {

// A model tuned to chat says how, in tokenizer_config.json or in a file beside it. A base model may come with a template for
// its future; "chat": false in its generation_config.json says that it does not know it yet.
bool chats(const fs::path& folder) {
    const Json settings = read_settings(folder / "generation_config.json");
    if (settings.contains("chat")) return settings["chat"] == true;
    if (fs::exists(folder / "chat_template.jinja")) return true;
    const Json tokenizer = read_settings(folder / "tokenizer_config.json");
    return tokenizer.contains("chat_template") && !tokenizer["chat_template"].is_null();
}

}  // namespace

std::optional<ChatFormat> choose_chat_format(const OpenModel& model, const std::string& folder, std::string_view name) {
    if (name == "none" || (name == "auto" && !chats(folder))) return std::nullopt;
    const std::string known_as =
        name == "auto" ? fs::weakly_canonical(folder).filename().string() : std::string(name == "v2" ? "" : name);
    return ChatFormat::choose(*model.tokenizer(), name == "v2" ? "deepseek" : model.config().model_type, known_as);
}

std::vector<int32_t> parse_ids(std::string_view text) {
    std::vector<int32_t> ids;
    constexpr std::string_view kBetween = ", \t\r\n[]";
    for (size_t at = text.find_first_not_of(kBetween); at < text.size(); at = text.find_first_not_of(kBetween, at)) {
        const std::string_view word = text.substr(at, text.find_first_of(kBetween, at) - at);
        int32_t id = -1;
        const auto [end, failure] = std::from_chars(word.data(), word.data() + word.size(), id);
        if (failure != std::errc() || end != word.data() + word.size() || id < 0) {
            throw Error(ErrorKind::kUsage, fmt::format("\"{}\" is not a token id; expected whole numbers as in 1,2,3", word));
        }
        ids.push_back(id);
        at += word.size();
    }
    return ids;
}

}  // namespace fathom
