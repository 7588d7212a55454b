#include "app/speculation.h"

#include <fmt/format.h>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

constexpr const char* kExample = R"({"method": "mtp", "num_speculative_tokens": 1})";

[[noreturn]] void refuse(const std::string& why) {
    throw Error(ErrorKind::kUsage, fmt::format("--speculative-config: {}; expected for example '{}', 1 or mtp", why, kExample));
}

int64_t number_in(const Json& value, const std::string& key, int64_t least, int64_t most) {
    if (!value.is_number_integer() || value < least || value > most) {
        refuse(fmt::format("{} is {}: it must be {} to {}", key, value.dump(), least, most));
    }
    return value.get<int64_t>();
}

// How many tokens; 0: not said.
int64_t read_object(const Json& config) {
    int64_t tokens = 0;
    for (const auto& [key, value] : config.items()) {
        if (key == "method") {
            if (value == "mtp" || value == "deepseek_mtp") continue;
            refuse(fmt::format("method {} is not known: only the model's own modules (mtp) draft here", value.dump()));
        } else if (key == "num_speculative_tokens") {
            tokens = number_in(value, key, 1, 64);
        } else {
            refuse(fmt::format("\"{}\" is not known", key));
        }
    }
    return tokens;
}

int64_t read(const std::string& config) {
    if (config == "mtp") return 0;
    int64_t count = 0;
    const char* const end = config.data() + config.size();
    const auto [stop, failure] = std::from_chars(config.data(), end, count);
    if (failure == std::errc() && stop == end) return number_in(count, "the number of tokens", 1, 64);
    const Json json = Json::parse(config, nullptr, false);
    if (!json.is_object()) refuse(fmt::format("\"{}\" is not a JSON object", config));
    return read_object(json);
}

}  // namespace

void SpeculationOptions::declare(CLI::App& verb) {
    verb.add_option(
            "--speculative-config", config,
            "the model's MTP modules guess tokens ahead, the next batch checks them: the same tokens, sooner. JSON with "
            "method (mtp) and num_speculative_tokens (one per module), or that number, or mtp; 0: off")
        ->type_name("CONFIG")
        ->group("Computing");
}

void SpeculationOptions::apply(const ModelConfig& model, EngineOptions& engine) const {
    if (!wanted()) return;
    const int64_t tokens = read(config);
    const int64_t modules = model.num_nextn_predict_layers;
    if (modules == 0) {
        throw Error(ErrorKind::kUsage,
                    "--speculative-config: the model has no MTP module (num_nextn_predict_layers is 0 or the files lack it)");
    }
    if (tokens > modules) {
        refuse(fmt::format("{} tokens are more than the model's {} MTP module{} can guess", tokens, modules,
                           modules == 1 ? "" : "s"));
    }
    engine.draft_tokens = tokens == 0 ? modules : tokens;
}

}  // namespace fathom
