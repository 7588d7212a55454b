#include "serve/openapi.h"

#include <string_view>
#include <vector>

namespace fathom {
namespace {

// A schema as JSON text: the shortest way to write one down.
Json schema(std::string_view text) { return Json::parse(text); }

Json sampling() {
    return schema(R"({
        "model": {"type": "string"}, "stream": {"type": "boolean"},
        "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}, "continuous_usage_stats": {"type": "boolean"}}},
        "max_tokens": {"type": "integer", "minimum": 1}, "min_tokens": {"type": "integer", "minimum": 0},
        "temperature": {"type": "number", "minimum": 0, "maximum": 100}, "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "top_k": {"type": "integer", "minimum": -1}, "min_p": {"type": "number", "minimum": 0, "maximum": 1},
        "repetition_penalty": {"type": "number", "minimum": 0.01, "maximum": 100},
        "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2}, "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
        "seed": {"type": "integer"}, "stop": {"oneOf": [{"type": "string"}, {"type": "array", "maxItems": 64, "items": {"type": "string"}}]},
        "stop_token_ids": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2147483647}},
        "include_stop_str_in_output": {"type": "boolean"}, "ignore_eos": {"type": "boolean"}, "skip_special_tokens": {"type": "boolean"},
        "logit_bias": {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
        "allowed_token_ids": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2147483647}},
        "bad_words": {"type": "array", "items": {"type": "string"}}, "priority": {"type": "integer"}, "cache_salt": {"type": "string"}})");
}

Json object_of(Json properties, std::vector<std::string> required) {
    Json result{{"type", "object"}, {"properties", std::move(properties)}};
    if (!required.empty()) result["required"] = std::move(required);
    return result;
}

Json with_sampling(std::string_view own, std::vector<std::string> required) {
    Json properties = sampling();
    properties.update(schema(own));
    return object_of(std::move(properties), std::move(required));
}

Json completion() {
    return with_sampling(
        R"({"prompt": {"oneOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}},
            {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
            {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}}]},
        "n": {"type": "integer", "minimum": 1, "maximum": 128}, "echo": {"type": "boolean"}, "suffix": {"type": "string"},
        "logprobs": {"type": "integer", "minimum": 0, "maximum": 100}, "prompt_logprobs": {"type": "integer", "minimum": 0, "maximum": 100}})",
        {"prompt"});
}

Json chat() {
    return with_sampling(
        R"({"messages": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role", "content"], "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]}, "content": {"type": "string"}, "reasoning_content": {"type": "string"}}}},
        "n": {"type": "integer", "minimum": 1, "maximum": 128}, "logprobs": {"type": "boolean"}, "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
        "tools": {"type": "array", "items": {"type": "object", "required": ["function"], "properties": {"type": {"const": "function"}, "function":
            {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "description": {"type": "string"}, "parameters": {"type": "object"}}}}}},
        "response_format": {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}}}})",
        {"messages"});
}

Json messages(bool count) {
    return with_sampling(
        R"({"messages": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role", "content"], "properties": {
            "role": {"enum": ["user", "assistant"]}, "content": {"type": "string"}}}},
        "system": {"type": "string"}, "stop_sequences": {"type": "array", "items": {"type": "string"}}})",
        count ? std::vector<std::string>{"messages"} : std::vector<std::string>{"messages", "max_tokens"});
}

Json response() {
    return with_sampling(
        R"({"input": {"type": "string"}, "instructions": {"type": "string"}, "max_output_tokens": {"type": "integer", "minimum": 1}})",
        {"input"});
}

Json error_reply() {
    return schema(
        R"({"description": "what is wrong, and with which field", "content": {"application/json": {"schema": {"type": "object"}}}})");
}

Json operation(std::string_view summary, const Json& body, std::string_view reply_type, bool open) {
    Json result{{"summary", summary}};
    if (!body.is_null()) result["requestBody"] = {{"required", true}, {"content", {{"application/json", {{"schema", body}}}}}};
    Json content = Json::object();
    content[std::string(reply_type)] = Json::object();
    if (reply_type == "application/json" && !body.is_null()) content["text/event-stream"] = Json::object();
    result["responses"]["200"] = {{"description", "the reply"}, {"content", std::move(content)}};
    if (!body.is_null()) {
        for (const char* status : {"400", "404", "413", "429", "503"}) result["responses"][status] = error_reply();
    }
    if (!open) result["responses"]["401"] = error_reply();
    result["responses"]["405"] = error_reply();
    return result;
}

}  // namespace

Json openapi_document(const std::string& version) {
    constexpr std::string_view kJson = "application/json", kText = "text/plain", kHtml = "text/html";
    Json paths = Json::object();
    const auto post = [&](const char* path, std::string_view summary, const Json& body) {
        paths[path]["post"] = operation(summary, body, kJson, false);
    };
    const auto get = [&](const char* path, std::string_view summary, std::string_view type, bool open) {
        paths[path]["get"] = operation(summary, Json(), type, open);
    };
    post("/v1/completions", "continue a text or token ids", completion());
    post("/v1/chat/completions", "answer a conversation", chat());
    post("/v1/responses", "OpenAI's Responses API, stateless", response());
    post("/v1/messages", "Anthropic's messages", messages(false));
    post("/v1/messages/count_tokens", "tokens of a conversation", messages(true));
    post("/tokenize", "text to token ids",
         object_of(schema(R"({"prompt": {"type": "string"}, "add_special_tokens": {"type": "boolean"}})"), {"prompt"}));
    post(
        "/detokenize", "token ids to text",
        object_of(schema(R"({"tokens": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2147483647}}})"),
                  {"tokens"}));
    get("/v1/models", "the model that is served", kJson, false);
    get("/tokenizer_info", "special tokens and sizes", kJson, false);
    get("/load", "requests that run and wait", kJson, false);
    get("/health", "the server lives", kJson, true);
    get("/version", "of the server", kJson, true);
    get("/metrics", "Prometheus", kText, true);
    get("/", "chat page", kHtml, true);
    get("/dash", "dashboard", kHtml, true);
    return {{"openapi", "3.1.0"}, {"info", {{"title", "fathom"}, {"version", version}}}, {"paths", std::move(paths)}};
}

}  // namespace fathom
