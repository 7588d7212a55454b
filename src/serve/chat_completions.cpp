// OpenAI's /v1/chat/completions, with DeepSeek's thinking, prefixes and cache figures.
#include <algorithm>

#include "serve/protocols.h"
#include "serve/structured_output.h"

namespace fathom {
namespace {

class ChatProtocol final : public Protocol {
public:
    ChatProtocol(const ServedModel& model, StreamOptions stream, bool logprobs)
        : model_(model),
          stream_(stream),
          logprobs_(logprobs) {}

    Json whole(const std::vector<Answer>& answers, const Usage& usage) override {
        Json choices = Json::array();
        for (size_t i = 0; i < answers.size(); ++i) {
            const AnswerDelta& all = answers[i].all;
            Json message{{"role", "assistant"}, {"content", all.reply.content}, {"refusal", nullptr}};
            if (all.reply.content.empty() && !all.reply.calls.empty()) message["content"] = nullptr;
            add_reasoning(message, all.reply.reasoning);
            if (!all.reply.calls.empty()) message["tool_calls"] = calls(i, all.reply.calls, false);
            choices.push_back({{"index", i},
                               {"message", std::move(message)},
                               {"logprobs", logprobs_ ? logprobs(all.tokens) : Json()},
                               {"finish_reason", all.finish},
                               {"stop_reason", all.stop.empty() ? Json() : Json(all.stop)}});
        }
        Json reply = envelope("chat.completion");
        reply["choices"] = std::move(choices);
        reply["usage"] = openai_usage(usage);
        reply["timings"] = timings(usage);
        return reply;
    }

    std::string delta(int64_t index, const AnswerDelta& answer, const std::vector<TokenLogprobs>&,
                      const Usage& so_far) override {
        const auto i = static_cast<size_t>(index);
        std::string text;
        if (ids_.size() <= i) ids_.resize(i + 1);
        if (begun_.insert(i).second) text = chunk(i, {{"role", "assistant"}, {"content", ""}}, Json(), Json(), so_far);
        Json delta = Json::object();
        add_reasoning(delta, answer.reply.reasoning);
        if (!answer.reply.content.empty()) delta["content"] = answer.reply.content;
        if (!answer.reply.calls.empty()) delta["tool_calls"] = calls(i, answer.reply.calls, true);
        const bool last = !answer.finish.empty();
        if (delta.empty() && answer.tokens.empty() && !last) return text;
        Json told = logprobs_ && !answer.tokens.empty() ? logprobs(answer.tokens) : Json();
        return text + chunk(i, std::move(delta), std::move(told), last ? Json(answer.finish) : Json(), so_far);
    }

    std::string end(const Usage& usage) override {
        std::string text;
        if (stream_.include_usage) {
            Json last = envelope("chat.completion.chunk");
            last["choices"] = Json::array();
            last["usage"] = openai_usage(usage);
            last["timings"] = timings(usage);
            text = sse(last);
        }
        return text + "data: [DONE]\n\n";
    }

private:
    const ServedModel& model_;
    StreamOptions stream_;
    bool logprobs_;
    std::string id_ = new_id("chatcmpl-");
    int64_t created_ = unix_time();
    std::set<size_t> begun_;
    StreamChunk chunk_{envelope("chat.completion.chunk")};
    std::vector<std::vector<std::string>> ids_;  // of the calls in each choice

    [[nodiscard]] Json envelope(std::string_view object) const {
        return {{"id", id_},
                {"object", object},
                {"created", created_},
                {"model", model_.names.front()},
                {"system_fingerprint", "fathom"}};
    }
    std::string chunk(size_t index, Json delta, Json told, Json finish, const Usage& so_far) const {
        const Json choice{
            {"index", index}, {"delta", std::move(delta)}, {"logprobs", std::move(told)}, {"finish_reason", std::move(finish)}};
        return chunk_.text(choice, stream_.continuous_usage ? dump(openai_usage(so_far)) : stream_.include_usage ? "null" : "");
    }
    // vLLM says "reasoning", DeepSeek "reasoning_content": clients look for one or the other.
    static void add_reasoning(Json& message, const std::string& reasoning) {
        if (reasoning.empty()) return;
        message["reasoning_content"] = reasoning;
        message["reasoning"] = reasoning;
    }
    Json calls(size_t choice, const std::vector<ToolCallDelta>& deltas, bool stream) {
        if (ids_.size() <= choice) ids_.resize(choice + 1);
        Json list = Json::array();
        for (const ToolCallDelta& delta : deltas) {
            Json call = Json::object();
            if (stream) call["index"] = delta.index;
            Json function = Json::object();
            if (static_cast<size_t>(delta.index) >= ids_[choice].size()) {  // its first delta
                ids_[choice].push_back(new_id("call_"));
                call["id"] = ids_[choice].back();
                call["type"] = "function";
                function["name"] = delta.name;
            }
            function["arguments"] = delta.arguments;
            call["function"] = std::move(function);
            list.push_back(std::move(call));
        }
        return list;
    }
    [[nodiscard]] Json logprobs(const std::vector<TokenText>& tokens) const {
        const auto entry = [&](int32_t id, float logprob) -> Json {
            const std::string_view raw = model_.tokenizer->token_bytes(id);
            Json bytes = Json::array();
            for (const char c : raw) bytes.push_back(static_cast<unsigned char>(c));
            return {
                {"token", token_text(*model_.tokenizer, id)}, {"logprob", json_logprob(logprob)}, {"bytes", std::move(bytes)}};
        };
        Json content = Json::array();
        for (const TokenText& token : tokens) {
            Json one = entry(token.id, token.logprob), top = Json::array();
            for (const Sample& sample : token.top) top.push_back(entry(sample.token, sample.logprob));
            one["top_logprobs"] = std::move(top);
            content.push_back(std::move(one));
        }
        return {{"content", std::move(content)}, {"refusal", nullptr}};
    }
};

}  // namespace

Exchange read_chat_completion(Fields& fields, const ServedModel& model) {
    const ChatRequest chat = read_chat(fields);
    const std::vector<int32_t> prompt = chat.prompt(model, "messages");
    const int64_t n = fields.integer("n", 1, 128).value_or(1);
    Request request = read_sampling(fields, model, model.max_length);
    const bool logprobs = fields.flag("logprobs");
    const int64_t top = fields.integer("top_logprobs", 0, 20).value_or(0);
    if (top > 0 && !logprobs) fields.fail("top_logprobs", "needs logprobs: true");
    if (logprobs) request.top_logprobs = top;
    if (request.max_new_tokens == 0) fields.fail("max_tokens", "must be 1 or more");

    Exchange exchange;
    Job& job = exchange.job;
    job.stream = fields.flag("stream");
    job.prompt_tokens = std::ssize(prompt);
    job.max_tokens = request.max_new_tokens;
    job.format = read_chat_format(fields, chat, model);
    job.format.logprobs = logprobs;
    job.requests = repeat(request, {prompt}, n);
    constrain(read_structured_output(fields, model, &chat), model, job.requests, job.format);
    exchange.protocol = std::make_unique<ChatProtocol>(model, read_stream_options(fields), logprobs);
    return exchange;
}

}  // namespace fathom
