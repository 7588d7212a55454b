#include "serve/protocols.h"

#include <fmt/format.h>
#include <chrono>
#include <random>

namespace fathom {

std::string new_id(std::string_view prefix) {
    static constexpr std::string_view kLetters = "0123456789abcdefghijklmnopqrstuv";
    std::random_device device;
    std::string id(prefix);
    for (int word = 0; word < 4; ++word) {
        uint32_t bits = device();
        for (int i = 0; i < 6; ++i, bits >>= 5) id += kLetters[bits & 31];
    }
    return id;
}

int64_t unix_time() {
    return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// DeepSeek's two fields beside OpenAI's.
Json openai_usage(const Usage& usage) {
    Json result{{"prompt_tokens", usage.prompt_tokens},
                {"completion_tokens", usage.answer_tokens},
                {"total_tokens", usage.prompt_tokens + usage.answer_tokens},
                {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
                {"completion_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}},
                {"prompt_cache_hit_tokens", usage.cached_tokens},
                {"prompt_cache_miss_tokens", usage.prompt_tokens - usage.cached_tokens}};
    return with_reduced_top_k(std::move(result), usage);
}

Json with_reduced_top_k(Json result, const Usage& usage) {
    if (usage.reduced_tokens > 0) result["reduced_top_k_tokens"] = usage.reduced_tokens;
    return result;
}

Json timings(const Usage& usage) {
    const auto rate = [](int64_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0; };
    const int64_t prompt = usage.prompt_tokens - usage.cached_tokens, further = std::max<int64_t>(usage.answer_tokens - 1, 0);
    Json result{{"cache_n", usage.cached_tokens},
                {"prompt_n", prompt},
                {"prompt_ms", 1e3 * usage.prompt_seconds},
                {"prompt_per_second", rate(prompt, usage.prompt_seconds)},
                {"predicted_n", usage.answer_tokens},
                {"predicted_ms", 1e3 * usage.answer_seconds},
                {"predicted_per_second", rate(further, usage.answer_seconds)}};
    if (usage.drafted == 0) return result;
    result["draft_n"] = usage.drafted;
    result["draft_n_accepted"] = usage.accepted;
    return result;
}

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
    const std::string bytes(tokenizer.token_bytes(id));
    if (replace_invalid_utf8(bytes) == bytes) return bytes;
    std::string text = "bytes:";
    for (const char c : bytes) text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    return text;
}

StreamOptions read_stream_options(Fields& fields) {
    StreamOptions options;
    if (auto object = fields.object("stream_options")) {
        options.include_usage = object->flag("include_usage");
        options.continuous_usage = object->flag("continuous_usage_stats");
    }
    return options;
}

}  // namespace fathom
