// OpenAI's /v1/responses, stateless: nothing is stored, so nothing can be referred to.
#include <fmt/format.h>
#include <algorithm>

#include "serve/protocols.h"
#include "serve/structured_output.h"

namespace fathom {
namespace {

Json responses_usage(const Usage& usage) {
    return with_reduced_top_k({{"input_tokens", usage.prompt_tokens},
                               {"input_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
                               {"output_tokens", usage.answer_tokens},
                               {"output_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}},
                               {"total_tokens", usage.prompt_tokens + usage.answer_tokens}},
                              usage);
}

// The reply is a list of items: thinking, a message, calls. In a stream each is announced, filled and closed.
class ResponsesProtocol final : public Protocol {
public:
    ResponsesProtocol(const ServedModel& model, Json echoed) : echoed_(std::move(echoed)) {
        echoed_["model"] = model.names.front();
    }

    Json whole(const std::vector<Answer>& answers, const Usage& usage) override {
        (void)delta(0, answers.front().all, {}, usage);
        (void)close();
        return response(status(), responses_usage(usage));
    }
    std::string begin() override {
        const std::string created = event("response.created", {{"response", response("in_progress", nullptr)}});
        return created + event("response.in_progress", {{"response", response("in_progress", nullptr)}});
    }
    std::string delta(int64_t, const AnswerDelta& answer, const std::vector<TokenLogprobs>&, const Usage&) override {
        std::string text;
        const ReplyDelta& reply = answer.reply;
        if (!reply.reasoning.empty()) text += add("reasoning", reply.reasoning, {});
        if (!reply.content.empty()) text += add("message", reply.content, {});
        for (const ToolCallDelta& call : reply.calls)
            text += add(fmt::format("function_call {}", call.index), call.arguments, call.name);
        if (!answer.finish.empty()) finish_ = answer.finish;
        return text;
    }
    std::string end(const Usage& usage) override {
        const std::string text = close();
        return text + event("response." + status(), {{"response", response(status(), responses_usage(usage))}});
    }
    std::string stream_error(const ApiError& failure) const override {
        return sse({{"type", "error"},
                    {"code", "server_error"},
                    {"message", failure.what()},
                    {"param", nullptr},
                    {"sequence_number", sequence_}},
                   "error");
    }

private:
    Json echoed_;  // fields of the request that a response repeats
    std::string id_ = new_id("resp_"), item_, finish_;
    int64_t created_ = unix_time(), sequence_ = 0;
    std::string open_, text_;  // the item under way: its kind, and what it says so far
    Json output_ = Json::array();

    [[nodiscard]] std::string status() const { return finish_ == "length" ? "incomplete" : "completed"; }
    [[nodiscard]] Json response(const std::string& status, Json usage) const {
        Json result{{"id", id_},        {"object", "response"}, {"created_at", created_},
                    {"status", status}, {"background", false},  {"error", nullptr}};
        result["incomplete_details"] = status == "incomplete" ? Json{{"reason", "max_output_tokens"}} : Json();
        result["output"] = output_;
        result["usage"] = std::move(usage);
        result.update(echoed_);
        return result;
    }
    std::string event(const std::string& type, Json rest) {
        Json data{{"type", type}, {"sequence_number", sequence_++}};
        data.update(rest);
        return sse(data, type);
    }
    [[nodiscard]] Json place() const { return {{"item_id", item_}, {"output_index", output_.size() - 1}}; }
    [[nodiscard]] Json part_place() const {
        Json result = place();
        result["content_index"] = 0;
        return result;
    }
    static Json with(Json json, Json more) {
        json.update(more);
        return json;
    }
    [[nodiscard]] Json part() const {
        if (open_ == "reasoning") return {{"type", "reasoning_text"}, {"text", text_}};
        return {{"type", "output_text"}, {"text", text_}, {"annotations", Json::array()}, {"logprobs", Json::array()}};
    }

    std::string add(const std::string& kind, const std::string& piece, const std::string& name) {
        std::string text;
        if (kind != open_) {
            text = close();
            open_ = kind;
            text += announce(name);
        }
        text_ += piece;
        if (piece.empty()) return text;
        if (open_ == "message")
            return text +
                   event("response.output_text.delta", with(part_place(), {{"delta", piece}, {"logprobs", Json::array()}}));
        if (open_ == "reasoning") return text + event("response.reasoning_text.delta", with(part_place(), {{"delta", piece}}));
        return text + event("response.function_call_arguments.delta", with(place(), {{"delta", piece}}));
    }
    std::string announce(const std::string& name) {
        Json item;
        if (open_ == "message") {
            item = {{"type", "message"},
                    {"id", item_ = new_id("msg_")},
                    {"status", "in_progress"},
                    {"role", "assistant"},
                    {"content", Json::array()}};
        } else if (open_ == "reasoning") {
            item = {{"type", "reasoning"},
                    {"id", item_ = new_id("rs_")},
                    {"status", "in_progress"},
                    {"summary", Json::array()},
                    {"content", Json::array()}};
        } else {
            item = {{"type", "function_call"},
                    {"id", item_ = new_id("fc_")},
                    {"status", "in_progress"},
                    {"call_id", new_id("call_")},
                    {"name", name},
                    {"arguments", ""}};
        }
        output_.push_back(item);
        std::string text =
            event("response.output_item.added", {{"output_index", output_.size() - 1}, {"item", std::move(item)}});
        if (open_ == "message" || open_ == "reasoning")
            text += event("response.content_part.added", with(part_place(), {{"part", part()}}));
        return text;
    }
    std::string close() {
        if (open_.empty()) return {};
        std::string text;
        Json& item = output_.back();
        item["status"] = status();
        if (open_ == "message" || open_ == "reasoning") {
            const std::string name = open_ == "message" ? "response.output_text.done" : "response.reasoning_text.done";
            Json done = with(part_place(), {{"text", text_}});
            if (open_ == "message") done["logprobs"] = Json::array();
            text = event(name, std::move(done));
            text += event("response.content_part.done", with(part_place(), {{"part", part()}}));
            item["content"] = Json::array({part()});
        } else {
            item["arguments"] = text_;
            text =
                event("response.function_call_arguments.done", with(place(), {{"arguments", text_}, {"name", item["name"]}}));
        }
        text += event("response.output_item.done", {{"output_index", output_.size() - 1}, {"item", item}});
        open_.clear();
        text_.clear();
        return text;
    }
};

void read_item(const Json& json, const std::string& name, std::vector<ChatMessage>& messages) {
    Fields item(json, name);
    const std::string type = item.string("type").value_or("message");
    if (type == "function_call") {
        ToolCall call{item.required_string("name"), item.string("arguments").value_or("{}")};
        if (messages.empty() || messages.back().role != Role::kAssistant) messages.push_back({Role::kAssistant, {}});
        messages.back().tool_calls.push_back(std::move(call));
    } else if (type == "function_call_output") {
        messages.push_back({Role::kTool, read_text(item.require("output"), item.name_of("output"))});
    } else if (type == "message") {
        const std::string role = item.required_string("role");
        const bool system = role == "system" || role == "developer";
        if (!system && role != "user" && role != "assistant")
            item.fail("role", fmt::format("\"{}\" is none of system, developer, user, assistant", role));
        const Role who = system ? Role::kSystem : role == "user" ? Role::kUser : Role::kAssistant;
        messages.push_back({who, read_text(item.require("content"), item.name_of("content"))});
    } else if (type != "reasoning") {  // past thinking is not prompted with
        item.fail("type", fmt::format("\"{}\" is not supported", type));
    }
}

ChatRequest read_input(Fields& fields) {
    ChatRequest chat;
    if (const auto instructions = fields.string("instructions")) chat.messages.push_back({Role::kSystem, *instructions});
    const Json& input = fields.require("input");
    if (input.is_string()) {
        chat.messages.push_back({Role::kUser, input.get<std::string>()});
    } else {
        if (!input.is_array() || input.empty()) fields.fail("input", "must be a string or an array of items, not empty");
        for (size_t i = 0; i < input.size(); ++i) read_item(input[i], fmt::format("input[{}]", i), chat.messages);
    }
    chat.tools = read_openai_tools(fields);
    read_tool_choice(fields, chat);
    if (auto reasoning = fields.object("reasoning")) {
        if (const auto effort = reasoning->string("effort")) chat.thinking = *effort != "none";
    }
    return chat;
}

Json echoed_fields(Fields& fields, const Request& request) {
    const auto given = [&](const char* key, const Json& otherwise) {
        const Json* value = fields.find(key);
        return value == nullptr ? otherwise : *value;
    };
    return {{"instructions", given("instructions", nullptr)},
            {"max_output_tokens", given("max_output_tokens", nullptr)},
            {"metadata", given("metadata", Json::object())},
            {"parallel_tool_calls", given("parallel_tool_calls", true)},
            {"previous_response_id", nullptr},
            {"reasoning", given("reasoning", Json{{"effort", nullptr}, {"summary", nullptr}})},
            {"store", false},
            {"temperature", request.sampling.temperature},
            {"text", given("text", Json{{"format", {{"type", "text"}}}})},
            {"tool_choice", given("tool_choice", "auto")},
            {"tools", given("tools", Json::array())},
            {"top_p", request.sampling.top_p},
            {"truncation", "disabled"}};
}

}  // namespace

Exchange read_response(Fields& fields, const ServedModel& model) {
    if (fields.string("previous_response_id"))
        fields.fail("previous_response_id", "this server stores nothing: send the whole conversation in input");
    const ChatRequest chat = read_input(fields);
    const std::vector<int32_t> prompt = chat.prompt(model, "input");
    Request request = read_sampling(fields, model, fields.integer("max_output_tokens", 1).value_or(model.max_length));
    Exchange exchange;
    exchange.job.stream = fields.flag("stream");
    exchange.job.prompt_tokens = std::ssize(prompt);
    exchange.job.max_tokens = request.max_new_tokens;
    exchange.job.format = read_chat_format(fields, chat, model);
    exchange.protocol = std::make_unique<ResponsesProtocol>(model, echoed_fields(fields, request));
    exchange.job.requests = repeat(request, {prompt}, 1);
    constrain(read_structured_output(fields, model, &chat), model, exchange.job.requests, exchange.job.format);
    return exchange;
}

}  // namespace fathom
