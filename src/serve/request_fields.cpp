#include "serve/request_fields.h"

#include <fmt/format.h>
#include <algorithm>
#include <random>

namespace fathom {
namespace {

constexpr int64_t kMostAnswers = 128, kMostStops = 64;

uint64_t random_seed() {
    std::random_device device;
    return (static_cast<uint64_t>(device()) << 32) | device();
}

void read_logit_bias(Fields& fields, SamplingParams& params) {
    const Json* bias = fields.find("logit_bias");
    if (bias == nullptr) return;
    if (!bias->is_object()) fields.fail("logit_bias", "must be an object of token ids and numbers");
    for (const auto& [key, value] : bias->items()) {
        const bool digits =
            !key.empty() && key.size() < 10 && std::ranges::all_of(key, [](char c) { return c >= '0' && c <= '9'; });
        if (!digits) fields.fail("logit_bias", fmt::format("\"{}\" is not a token id", key));
        if (!value.is_number() || std::abs(value.get<double>()) > 100) {
            fields.fail("logit_bias", fmt::format("the bias of token {} must be a number from -100 to 100", key));
        }
        params.logit_bias.emplace_back(std::stoi(key), value.get<float>());
    }
}

SamplingParams read_sampling_params(Fields& fields, const SamplingParams& defaults) {
    SamplingParams params = defaults;
    params.temperature = fields.number("temperature", 0, 100).value_or(params.temperature);
    params.top_p = fields.number("top_p", 0, 1).value_or(params.top_p);
    if (params.top_p == 0) params.top_k = 1, params.top_p = 1;  // the smallest set that sums to nothing: the best token
    if (const auto top_k = fields.integer("top_k", -1)) params.top_k = std::max<int64_t>(*top_k, 0);
    params.min_p = fields.number("min_p", 0, 1).value_or(params.min_p);
    params.repetition_penalty = fields.number("repetition_penalty", 0.01, 100).value_or(params.repetition_penalty);
    params.frequency_penalty = fields.number("frequency_penalty", -2, 2).value_or(params.frequency_penalty);
    params.presence_penalty = fields.number("presence_penalty", -2, 2).value_or(params.presence_penalty);
    const auto seed = fields.integer("seed", std::numeric_limits<int64_t>::min());
    params.seed = seed ? static_cast<uint64_t>(*seed) : random_seed();
    read_logit_bias(fields, params);
    return params;
}

void read_vocabulary_rules(Fields& fields, const ServedModel& model, Request& request) {
    const std::vector<int32_t> allowed = fields.token_ids("allowed_token_ids");
    if (fields.find("allowed_token_ids") != nullptr) {
        if (allowed.empty()) fields.fail("allowed_token_ids", "must hold at least one id");
        request.allowed = TokenMask(model.tokenizer->vocab_size(), false);
        for (const int32_t id : allowed) request.allowed.allow(id);
        for (const int32_t id : request.stop_ids) request.allowed.allow(id);
    }
    for (const std::string& word : fields.strings("bad_words")) {
        for (const std::string& text : {word, " " + word}) {
            if (auto ids = model.tokenizer->encode(text, false); !ids.empty()) request.bad_words.push_back(std::move(ids));
        }
    }
}

}  // namespace

std::vector<int32_t> ServedModel::encode(const std::string& text, bool add_bos) const {
    std::vector<int32_t> ids = tokenizer->encode(text);
    if (add_bos && bos && (ids.empty() || ids.front() != *bos)) ids.insert(ids.begin(), *bos);
    return ids;
}

Request read_sampling(Fields& fields, const ServedModel& model, int64_t default_max_tokens) {
    Request request;
    request.sampling = read_sampling_params(fields, model.defaults);
    const auto old_limit = fields.integer("max_tokens", 0), new_limit = fields.integer("max_completion_tokens", 0);
    request.max_new_tokens = new_limit.value_or(old_limit.value_or(default_max_tokens));
    request.min_new_tokens = fields.integer("min_tokens", 0).value_or(0);
    if (request.min_new_tokens > request.max_new_tokens)
        fields.fail("min_tokens", fmt::format("must be at most max_tokens, {}", request.max_new_tokens));
    if (!fields.flag("ignore_eos")) request.stop_ids = model.stop_ids;
    const std::vector<int32_t> more = fields.token_ids("stop_token_ids");
    request.stop_ids.insert(request.stop_ids.end(), more.begin(), more.end());
    request.priority = fields.integer("priority", std::numeric_limits<int64_t>::min()).value_or(0);
    if (const auto salt = fields.string("cache_salt")) request.cache_salt = std::hash<std::string>()(*salt) | 1;
    read_vocabulary_rules(fields, model, request);
    return request;
}

AnswerFormat read_answer_format(Fields& fields) {
    AnswerFormat format;
    format.stops = fields.string_or_strings("stop");
    if (std::ssize(format.stops) > kMostStops) fields.fail("stop", fmt::format("at most {} stop strings", kMostStops));
    format.include_stop = fields.flag("include_stop_str_in_output");
    format.skip_special = fields.boolean("skip_special_tokens").value_or(true);
    return format;
}

std::vector<Request> repeat(const Request& request, const std::vector<std::vector<int32_t>>& prompts, int64_t n) {
    if (n * std::ssize(prompts) > kMostAnswers * 8) throw ApiError(400, "n: too many answers in one request", "n");
    std::vector<Request> requests;
    for (const auto& prompt : prompts) {
        for (int64_t i = 0; i < n; ++i) {
            Request& added = requests.emplace_back(request);
            added.prompt = prompt;
            added.stream = static_cast<uint64_t>(i);
        }
    }
    return requests;
}

void check_length(const std::vector<int32_t>& prompt, const ServedModel& model, const std::string& param) {
    if (prompt.empty()) throw ApiError(400, fmt::format("{}: the prompt is empty", param), param);
    if (std::ssize(prompt) <= model.max_length) return;
    throw ApiError(400,
                   fmt::format("{}: this model's maximum context length is {} tokens, and the prompt has {}: shorten it", param,
                               model.max_length, prompt.size()),
                   param, "context_length_exceeded");
}

}  // namespace fathom
