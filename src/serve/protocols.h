// The APIs that the server speaks: what a request asks for, and the words of the reply.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "serve/generation.h"
#include "serve/request_fields.h"

namespace fathom {

struct Exchange {  // what a reader makes of a request
    Job job;
    std::unique_ptr<Protocol> protocol;
};

// All throw ApiError.
[[nodiscard]] Exchange read_completion(Fields& fields, const ServedModel& model);       // OpenAI's /completions
[[nodiscard]] Exchange read_chat_completion(Fields& fields, const ServedModel& model);  // OpenAI's /chat/completions
[[nodiscard]] Exchange read_response(Fields& fields, const ServedModel& model);         // OpenAI's /responses
[[nodiscard]] Exchange read_messages(Fields& fields, const ServedModel& model);         // Anthropic's /messages
[[nodiscard]] Json count_message_tokens(Fields& fields, const ServedModel& model);

// "chatcmpl-" and 24 random letters.
[[nodiscard]] std::string new_id(std::string_view prefix);
[[nodiscard]] int64_t unix_time();
[[nodiscard]] Json openai_usage(const Usage& usage);
// Adds how many tokens fewer experts read (--overload-top-k), if there were some: to every API's usage.
[[nodiscard]] Json with_reduced_top_k(Json result, const Usage& usage);
// llama.cpp's object beside the usage.
[[nodiscard]] Json timings(const Usage& usage);
// A token as JSON text: its characters, or "bytes:\xe2\x82" when it is part of one.
[[nodiscard]] std::string token_text(const Tokenizer& tokenizer, int32_t id);
// JSON knows no infinity.
[[nodiscard]] inline double json_logprob(float logprob) { return std::max(static_cast<double>(logprob), -9999.0); }

// Events of one choice each. What they have in common is written once: a stream has an event for every token.
class StreamChunk {
public:
    // An object with fields.
    explicit StreamChunk(const Json& common) : head_("data: " + dump(common)) { head_.pop_back(); }
    // usage: JSON text; empty: none.
    [[nodiscard]] std::string text(const Json& choice, const std::string& usage) const {
        return head_ + ",\"choices\":[" + dump(choice) + (usage.empty() ? "]}\n\n" : "],\"usage\":" + usage + "}\n\n");
    }

private:
    std::string head_;
};

// What a stream ends with, under stream_options.
struct StreamOptions {
    bool include_usage = false, continuous_usage = false;
};
[[nodiscard]] StreamOptions read_stream_options(Fields& fields);

}  // namespace fathom
