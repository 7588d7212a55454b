// OpenAI's /v1/completions: text or token ids in, text out, with echo, log-probabilities and a suffix to fill up to.
#include <fmt/format.h>
#include <algorithm>

#include "serve/protocols.h"
#include "serve/structured_output.h"

namespace fathom {
namespace {

constexpr int64_t kMostLogprobs = 100;

struct CompletionOptions {
    std::vector<std::vector<int32_t>> prompts;
    int64_t n = 1;
    int64_t logprobs = -1, prompt_logprobs = -1;  // -1: not wanted
    bool echo = false, token_ids = false;
    StreamOptions stream;
};

class CompletionProtocol final : public Protocol {
public:
    CompletionProtocol(const ServedModel& model, CompletionOptions options)
        : model_(model),
          options_(std::move(options)),
          offsets_(options_.prompts.size() * static_cast<size_t>(options_.n)) {}

    Json whole(const std::vector<Answer>& answers, const Usage& usage) override {
        Json choices = Json::array();
        for (size_t i = 0; i < answers.size(); ++i) {
            const Answer& answer = answers[i];
            choices.push_back(choice(i, answer.all, answer.prompt, true));
        }
        Json reply = envelope();
        reply["choices"] = std::move(choices);
        reply["usage"] = openai_usage(usage);
        reply["timings"] = timings(usage);
        return reply;
    }
    std::string delta(int64_t index, const AnswerDelta& delta, const std::vector<TokenLogprobs>& prompt,
                      const Usage& so_far) override {
        const auto i = static_cast<size_t>(index);
        const Json said = choice(i, delta, prompt, begun_.insert(i).second);
        return chunk_.text(said, options_.stream.continuous_usage ? dump(openai_usage(so_far)) : "");
    }
    std::string end(const Usage& usage) override {
        std::string text;
        if (options_.stream.include_usage) {
            Json chunk = envelope();
            chunk["choices"] = Json::array();
            chunk["usage"] = openai_usage(usage);
            chunk["timings"] = timings(usage);
            text = sse(chunk);
        }
        return text + "data: [DONE]\n\n";
    }

private:
    const ServedModel& model_;
    CompletionOptions options_;
    std::string id_ = new_id("cmpl-");
    int64_t created_ = unix_time();
    std::vector<int64_t> offsets_;  // of the next token in each choice's text
    std::set<size_t> begun_;
    StreamChunk chunk_{envelope()};

    [[nodiscard]] Json envelope() const {
        return {{"id", id_}, {"object", "text_completion"}, {"created", created_}, {"model", model_.names.front()}};
    }
    [[nodiscard]] const std::vector<int32_t>& prompt_of(size_t choice) const {
        return options_.prompts[choice / static_cast<size_t>(options_.n)];
    }

    Json choice(size_t index, const AnswerDelta& answer, const std::vector<TokenLogprobs>& prompt, bool first) {
        const bool echo = options_.echo && first;
        std::string text = echo ? replace_invalid_utf8(model_.tokenizer->decode(prompt_of(index), false)) : "";
        Json result{{"index", index},
                    {"text", text + answer.reply.content},
                    {"logprobs", options_.logprobs >= 0 ? logprobs(index, answer, prompt, echo) : Json()},
                    {"finish_reason", answer.finish.empty() ? Json() : Json(answer.finish)},
                    {"stop_reason", answer.stop.empty() ? Json() : Json(answer.stop)}};
        if (first && options_.prompt_logprobs >= 0) result["prompt_logprobs"] = prompt_logprobs(index, prompt);
        if (options_.token_ids) {
            Json ids = Json::array();
            for (const TokenText& token : answer.tokens) ids.push_back(token.id);
            result["token_ids"] = std::move(ids);
            if (first) result["prompt_token_ids"] = prompt_of(index);
        }
        return result;
    }

    Json logprobs(size_t index, const AnswerDelta& answer, const std::vector<TokenLogprobs>& prompt, bool echo) {
        Json tokens = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
        const auto add = [&](int32_t id, const float* logprob, const std::vector<Sample>& top) {
            const std::string text = token_text(*model_.tokenizer, id);
            tokens.push_back(text);
            values.push_back(logprob == nullptr ? Json() : Json(json_logprob(*logprob)));
            offsets.push_back(offsets_[index]);
            offsets_[index] += std::ssize(model_.tokenizer->token_bytes(id));
            Json best;
            if (logprob != nullptr) {
                best = Json::object();
                for (int64_t i = 0; i < std::min<int64_t>(options_.logprobs, std::ssize(top)); ++i) {
                    const Sample& sample = top[static_cast<size_t>(i)];
                    best[token_text(*model_.tokenizer, sample.token)] = json_logprob(sample.logprob);
                }
                best[text] = json_logprob(*logprob);
            }
            tops.push_back(std::move(best));
        };
        if (echo) {
            const auto& ids = prompt_of(index);
            for (size_t i = 0; i < ids.size(); ++i) {
                const bool known = i > 0 && i - 1 < prompt.size();
                add(ids[i], known ? &prompt[i - 1].logprob : nullptr, known ? prompt[i - 1].top : std::vector<Sample>());
            }
        }
        for (const TokenText& token : answer.tokens) add(token.id, &token.logprob, token.top);
        return {{"tokens", std::move(tokens)},
                {"token_logprobs", std::move(values)},
                {"top_logprobs", std::move(tops)},
                {"text_offset", std::move(offsets)}};
    }

    // vLLM's form: for every token of the prompt an object of token ids.
    [[nodiscard]] Json prompt_logprobs(size_t index, const std::vector<TokenLogprobs>& prompt) const {
        Json list = Json::array({Json()});
        const auto& ids = prompt_of(index);
        for (size_t i = 0; i < prompt.size(); ++i) {
            Json entry = Json::object();
            const auto add = [&](int32_t id, float logprob, Json rank) {
                entry[std::to_string(id)] = {{"logprob", json_logprob(logprob)},
                                             {"rank", std::move(rank)},
                                             {"decoded_token", token_text(*model_.tokenizer, id)}};
            };
            add(ids[i + 1], prompt[i].logprob, nullptr);
            for (size_t rank = 0; rank < prompt[i].top.size(); ++rank) {
                add(prompt[i].top[rank].token, prompt[i].top[rank].logprob, rank + 1);
            }
            list.push_back(std::move(entry));
        }
        return list;
    }
};

// A string, an array of strings, token ids, or an array of those.
std::vector<std::vector<int32_t>> read_prompts(Fields& fields, const ServedModel& model) {
    const Json& prompt = fields.require("prompt");
    const bool add_bos = fields.boolean("add_special_tokens").value_or(true);
    if (prompt.is_string()) return {model.encode(prompt.get<std::string>(), add_bos)};
    if (!prompt.is_array() || prompt.empty())
        fields.fail("prompt", "must be a string, token ids, or an array of either, not empty");
    if (prompt.front().is_number()) return {fields.token_ids("prompt")};
    std::vector<std::vector<int32_t>> prompts;
    for (size_t i = 0; i < prompt.size(); ++i) {
        const Json item{{"prompt", prompt[i]}};
        if (prompt[i].is_string()) {
            prompts.push_back(model.encode(prompt[i].get<std::string>(), add_bos));
        } else {
            prompts.push_back(Fields(item, fmt::format("prompt[{}]", i)).token_ids("prompt"));
        }
    }
    return prompts;
}

// DeepSeek's fill-in-the-middle: the model continues behind the end mark with what belongs into the hole.
std::vector<int32_t> with_suffix(const std::string& prompt, const std::string& suffix, const ServedModel& model,
                                 Fields& fields) {
    for (const char* mark : {"<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"}) {
        if (!model.tokenizer->id_of(mark))
            fields.fail("suffix", "this model was not trained to fill a hole: its tokenizer has no such tokens");
    }
    return model.encode("<｜fim▁begin｜>" + prompt + "<｜fim▁hole｜>" + suffix + "<｜fim▁end｜>");
}

}  // namespace

Exchange read_completion(Fields& fields, const ServedModel& model) {
    CompletionOptions options;
    options.n = fields.integer("n", 1, 128).value_or(1);
    if (fields.integer("best_of", 1, 128).value_or(options.n) != options.n)
        fields.fail("best_of", "must equal n: all answers are returned");
    options.logprobs = fields.integer("logprobs", 0, kMostLogprobs).value_or(-1);
    options.prompt_logprobs = fields.integer("prompt_logprobs", 0, kMostLogprobs).value_or(-1);
    options.echo = fields.flag("echo");
    options.token_ids = fields.flag("return_token_ids");
    options.stream = read_stream_options(fields);
    Exchange exchange;
    exchange.job.stream = fields.flag("stream");
    if (const auto suffix = fields.string("suffix"); suffix && !suffix->empty()) {
        options.prompts = {with_suffix(fields.required_string("prompt"), *suffix, model, fields)};
    } else {
        options.prompts = read_prompts(fields, model);
    }
    if (const auto longest = fields.integer("truncate_prompt_tokens", 1)) {
        for (auto& prompt : options.prompts) {
            if (std::ssize(prompt) > *longest) prompt.erase(prompt.begin(), prompt.end() - *longest);
        }
    }
    Request request = read_sampling(fields, model, 16);
    request.prompt_logprobs = (options.echo && options.logprobs >= 0) || options.prompt_logprobs >= 0;
    request.top_logprobs = std::max(options.logprobs, options.prompt_logprobs);
    for (const auto& prompt : options.prompts) {
        check_length(prompt, model, "prompt");
        exchange.job.prompt_tokens += std::ssize(prompt);
    }
    exchange.job.max_tokens = request.max_new_tokens;
    exchange.job.format = read_answer_format(fields);
    exchange.job.format.logprobs = options.logprobs >= 0 || options.token_ids;
    exchange.job.requests = repeat(request, options.prompts, options.n);
    constrain(read_structured_output(fields, model, nullptr), model, exchange.job.requests, exchange.job.format);
    exchange.protocol = std::make_unique<CompletionProtocol>(model, std::move(options));
    return exchange;
}

}  // namespace fathom
