// Anthropic's /v1/messages.
#include <fmt/format.h>
#include <algorithm>

#include "serve/protocols.h"
#include "serve/structured_output.h"

namespace fathom {
namespace {

std::string_view stop_reason(const AnswerDelta& last) {
    if (last.finish == "length") return "max_tokens";
    if (last.finish == "tool_calls") return "tool_use";
    return last.stop.empty() ? "end_turn" : "stop_sequence";
}

Json stop_sequence(const AnswerDelta& last) { return last.stop.empty() ? Json() : Json(last.stop); }

Json anthropic_usage(const Usage& usage) {
    return with_reduced_top_k({{"input_tokens", usage.prompt_tokens - usage.cached_tokens},
                               {"cache_creation_input_tokens", 0},
                               {"cache_read_input_tokens", usage.cached_tokens},
                               {"output_tokens", usage.answer_tokens}},
                              usage);
}

class MessagesProtocol final : public Protocol {
public:
    MessagesProtocol(const ServedModel& model, int64_t prompt_tokens) : model_(model), prompt_tokens_(prompt_tokens) {}

    Json whole(const std::vector<Answer>& answers, const Usage& usage) override {
        const AnswerDelta& all = answers.front().all;
        Json content = Json::array();
        if (!all.reply.reasoning.empty())
            content.push_back({{"type", "thinking"}, {"thinking", all.reply.reasoning}, {"signature", ""}});
        if (!all.reply.content.empty()) content.push_back({{"type", "text"}, {"text", all.reply.content}});
        for (const ToolCallDelta& call : all.reply.calls) {
            Json input = Json::parse(call.arguments, nullptr, false);
            if (!input.is_object()) input = {{"raw", call.arguments}};  // what the model wrote is no JSON: the client decides
            content.push_back(
                {{"type", "tool_use"}, {"id", new_id("toolu_")}, {"name", call.name}, {"input", std::move(input)}});
        }
        Json message = envelope();
        message["content"] = std::move(content);
        message["stop_reason"] = stop_reason(all);
        message["stop_sequence"] = stop_sequence(all);
        message["usage"] = anthropic_usage(usage);
        return message;
    }

    std::string begin() override {
        Json message = envelope();
        message["content"] = Json::array();
        message["stop_reason"] = message["stop_sequence"] = nullptr;
        message["usage"] = anthropic_usage({prompt_tokens_, 0, 0, 0});
        return event("message_start", {{"message", std::move(message)}}) + event("ping", Json::object());
    }

    std::string delta(int64_t, const AnswerDelta& answer, const std::vector<TokenLogprobs>&, const Usage&) override {
        std::string text;
        const ReplyDelta& reply = answer.reply;
        if (!reply.reasoning.empty()) {
            text += open("thinking", {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}});
            text += block_delta({{"type", "thinking_delta"}, {"thinking", reply.reasoning}});
        }
        if (!reply.content.empty()) {
            text += open("text", {{"type", "text"}, {"text", ""}});
            text += block_delta({{"type", "text_delta"}, {"text", reply.content}});
        }
        for (const ToolCallDelta& call : reply.calls) {
            text += open(fmt::format("call {}", call.index),
                         {{"type", "tool_use"}, {"id", new_id("toolu_")}, {"name", call.name}, {"input", Json::object()}});
            if (!call.arguments.empty()) text += block_delta({{"type", "input_json_delta"}, {"partial_json", call.arguments}});
        }
        if (!answer.finish.empty()) last_ = answer;
        return text;
    }

    std::string end(const Usage& usage) override {
        return close() +
               event("message_delta",
                     {{"delta", {{"stop_reason", stop_reason(last_)}, {"stop_sequence", stop_sequence(last_)}}},
                      {"usage", anthropic_usage(usage)}}) +
               event("message_stop", Json::object());
    }

    Json error(const ApiError& failure) const override { return anthropic_error(failure); }
    std::string stream_error(const ApiError& failure) const override { return sse(error(failure), "error"); }

private:
    const ServedModel& model_;
    int64_t prompt_tokens_;
    std::string id_ = new_id("msg_");
    std::string block_;  // the open one
    int64_t index_ = -1;
    AnswerDelta last_;

    [[nodiscard]] Json envelope() const {
        return {{"id", id_}, {"type", "message"}, {"role", "assistant"}, {"model", model_.names.front()}};
    }
    static std::string event(std::string_view type, Json rest) {
        Json data{{"type", type}};
        data.update(rest);
        return sse(data, type);
    }
    std::string open(const std::string& block, Json content_block) {
        if (block == block_) return {};
        std::string text = close();
        block_ = block;
        return text + event("content_block_start", {{"index", ++index_}, {"content_block", std::move(content_block)}});
    }
    std::string block_delta(Json delta) const {
        return event("content_block_delta", {{"index", index_}, {"delta", std::move(delta)}});
    }
    std::string close() {
        if (block_.empty()) return {};
        std::string text;
        if (block_ == "thinking") text = block_delta({{"type", "signature_delta"}, {"signature", ""}});
        block_.clear();
        return text + event("content_block_stop", {{"index", index_}});
    }
};

// Tool results stand in a user's message, before what the user says.
void read_block(Fields& block, ChatMessage& message, std::vector<ChatMessage>& results) {
    const std::string type = block.required_string("type");
    if (type == "text") {
        message.content += block.required_string("text");
    } else if (type == "thinking") {
        message.reasoning += block.required_string("thinking");
    } else if (type == "tool_use") {
        const Json* input = block.find("input");
        message.tool_calls.push_back({block.required_string("name"), input == nullptr ? "{}" : dump(*input)});
    } else if (type == "tool_result") {
        const Json* content = block.find("content");
        results.push_back({Role::kTool, content == nullptr ? "" : read_text(*content, block.name_of("content"))});
    } else if (type != "redacted_thinking") {
        block.fail("type", fmt::format("\"{}\" is not supported: this model reads text only", type));
    }
}

void read_message(const Json& json, const std::string& name, std::vector<ChatMessage>& messages) {
    Fields fields(json, name);
    const std::string role = fields.required_string("role");
    if (role != "user" && role != "assistant") fields.fail("role", fmt::format("\"{}\" is neither user nor assistant", role));
    ChatMessage message{role == "user" ? Role::kUser : Role::kAssistant, {}};
    std::vector<ChatMessage> results;
    const Json& content = fields.require("content");
    if (content.is_array()) {
        for (size_t i = 0; i < content.size(); ++i) {
            Fields block(content[i], fmt::format("{}.content[{}]", name, i));
            read_block(block, message, results);
        }
    } else {
        message.content = read_text(content, fields.name_of("content"));
    }
    const bool only_results = !results.empty() && message.content.empty();
    for (ChatMessage& result : results) messages.push_back(std::move(result));
    if (!only_results) messages.push_back(std::move(message));
}

void read_tools(Fields& fields, ChatRequest& chat) {
    if (const Json* list = fields.find("tools")) {
        if (!list->is_array()) fields.fail("tools", "must be an array");
        for (size_t i = 0; i < list->size(); ++i) {
            Fields item((*list)[i], fmt::format("tools[{}]", i));
            Tool tool{item.required_string("name"), item.string("description").value_or("")};
            if (const auto schema = item.object("input_schema")) tool.parameters = schema->json();
            chat.tools.push_back(std::move(tool));
        }
    }
    if (auto choice = fields.object("tool_choice")) {
        const std::string type = choice->required_string("type");
        if (type == "none") chat.tool_choice = ToolChoice::kNone;
        if (type == "any") chat.tool_choice = ToolChoice::kRequired;
        if (type == "tool") {
            chat.tool_choice = ToolChoice::kNamed;
            chat.chosen_tool = choice->required_string("name");
        }
    }
}

ChatRequest read_anthropic_chat(Fields& fields) {
    ChatRequest chat;
    if (const Json* system = fields.find("system")) chat.messages.push_back({Role::kSystem, read_text(*system, "system")});
    const Json& messages = fields.require("messages");
    if (!messages.is_array() || messages.empty()) fields.fail("messages", "must be an array of at least one message");
    for (size_t i = 0; i < messages.size(); ++i) read_message(messages[i], fmt::format("messages[{}]", i), chat.messages);
    read_tools(fields, chat);
    if (auto thinking = fields.object("thinking")) chat.thinking = thinking->required_string("type") != "disabled";
    return chat;
}

}  // namespace

Exchange read_messages(Fields& fields, const ServedModel& model) {
    const ChatRequest chat = read_anthropic_chat(fields);
    const std::vector<int32_t> prompt = chat.prompt(model, "messages");
    (void)fields.require("max_tokens");
    Request request = read_sampling(fields, model, 1);
    if (request.max_new_tokens == 0) fields.fail("max_tokens", "must be 1 or more");
    Exchange exchange;
    exchange.job.stream = fields.flag("stream");
    exchange.job.prompt_tokens = std::ssize(prompt);
    exchange.job.max_tokens = request.max_new_tokens;
    exchange.job.format = read_chat_format(fields, chat, model);
    for (std::string& stop : fields.strings("stop_sequences")) exchange.job.format.stops.push_back(std::move(stop));
    exchange.job.requests = repeat(request, {prompt}, 1);
    constrain(read_structured_output(fields, model, &chat), model, exchange.job.requests, exchange.job.format);
    exchange.protocol = std::make_unique<MessagesProtocol>(model, exchange.job.prompt_tokens);
    return exchange;
}

Json count_message_tokens(Fields& fields, const ServedModel& model) {
    return {{"input_tokens", read_anthropic_chat(fields).prompt(model, "messages").size()}};
}

}  // namespace fathom
