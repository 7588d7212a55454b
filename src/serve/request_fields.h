// What clients may ask for, in OpenAI's and vLLM's words, read into engine requests.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "infer/engine.h"
#include "io/chat_format.h"
#include "io/tokenizer.h"
#include "serve/answer_reader.h"
#include "serve/fields.h"

namespace fathom {

class GrammarCache;

// What a server knows about its model.
struct ServedModel {
    std::vector<std::string> names;  // the first is the one told to clients
    const Tokenizer* tokenizer = nullptr;
    std::optional<ChatFormat> format;  // absent: a base model, whose chats are texts that it continues
    SamplingParams defaults;           // for what a request leaves open
    std::vector<int32_t> stop_ids;
    std::optional<int32_t> bos;  // put in front of text prompts that lack it
    int64_t max_length = 0;      // prompt and answer
    int64_t created = 0;         // Unix time
    std::shared_ptr<GrammarCache> grammars;

    [[nodiscard]] ChatStyle style() const { return format ? format->style() : ChatStyle::kV2; }
    // Text to ids, with BOS in front where the model wants it.
    [[nodiscard]] std::vector<int32_t> encode(const std::string& text, bool add_bos = true) const;
};

// The fields that all APIs share: sampling, stops, seeds, limits. `default_max_tokens`: for requests without any.
[[nodiscard]] Request read_sampling(Fields& fields, const ServedModel& model, int64_t default_max_tokens);
// Stop strings and what is to be shown.
[[nodiscard]] AnswerFormat read_answer_format(Fields& fields);
// One request per prompt and answer, each with its own stream of random numbers.
[[nodiscard]] std::vector<Request> repeat(const Request& request, const std::vector<std::vector<int32_t>>& prompts, int64_t n);
// A prompt that leaves no room for an answer: throws ApiError{400, context_length_exceeded}.
void check_length(const std::vector<int32_t>& prompt, const ServedModel& model, const std::string& param);

struct Tool {
    std::string name, description;
    Json parameters = Json::object();
    bool strict = false;
};

enum class ToolChoice : uint8_t { kNone, kAuto, kRequired, kNamed };

// A conversation in any API's words.
struct ChatRequest {
    std::vector<ChatMessage> messages;
    std::vector<Tool> tools;
    ToolChoice tool_choice = ToolChoice::kAuto;
    std::string chosen_tool;
    std::optional<bool> thinking;

    // What the model reads. Throws ApiError.
    [[nodiscard]] std::vector<int32_t> prompt(const ServedModel& model, const std::string& param) const;
    [[nodiscard]] bool thinks(const ServedModel& model) const;
};

[[nodiscard]] ChatRequest read_chat(Fields& fields);
// read_answer_format for the reply to a conversation.
[[nodiscard]] AnswerFormat read_chat_format(Fields& fields, const ChatRequest& chat, const ServedModel& model);
[[nodiscard]] std::vector<Tool> read_openai_tools(Fields& fields);
void read_tool_choice(Fields& fields, ChatRequest& chat);  // after the tools
// Plain text of a string or of an array of text parts. Throws ApiError for pictures and sound.
[[nodiscard]] std::string read_text(const Json& content, const std::string& name);
// How tools are told to the model, in the words DeepSeek publishes with V3.1.
[[nodiscard]] std::string tool_instructions(const std::vector<Tool>& tools, ChatStyle style);

}  // namespace fathom
