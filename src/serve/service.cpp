#include "serve/service.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>

#include "base/error.h"
#include "serve/openapi.h"
#include "serve/structured_output.h"
#include "serve/web_assets.h"

namespace fathom {
namespace {

constexpr std::string_view kJson = "application/json";

// In time that does not depend on where the texts differ.
bool same_secret(std::string_view a, std::string_view b) {
    unsigned char difference = a.size() == b.size() ? 0 : 1;
    for (size_t i = 0; i < a.size(); ++i) {
        difference |= static_cast<unsigned char>(a[i] ^ (i < b.size() ? b[i] : '\0'));
    }
    return difference == 0;
}

int status_of(ErrorKind kind) { return kind == ErrorKind::kUsage || kind == ErrorKind::kInput ? 400 : 500; }

void reply_error(HttpExchange& exchange, const ApiError& error, bool anthropic) {
    HttpHeaders headers;
    if (error.retry_after > 0) headers.emplace_back("Retry-After", std::to_string(error.retry_after));
    if (error.status() == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
    exchange.reply(error.status(), kJson, dump(anthropic ? anthropic_error(error) : openai_error(error)), headers);
}

}  // namespace

const std::vector<Service::Route>& Service::routes() {
    static const std::vector<Route> kRoutes{
        {"POST", "/completions", &Service::generate, read_completion},
        {"POST", "/chat/completions", &Service::generate, read_chat_completion},
        {"POST", "/responses", &Service::generate, read_response},
        {"POST", "/messages", &Service::generate, read_messages, false, true},
        {"POST", "/messages/count_tokens", &Service::count_tokens, nullptr, false, true},
        {"GET", "/models", &Service::models},
        {"GET", "/models/*", &Service::models},
        {"POST", "/tokenize", &Service::tokenize},
        {"POST", "/detokenize", &Service::detokenize},
        {"GET", "/tokenizer_info", &Service::tokenizer_info},
        {"GET", "/load", &Service::load},
        {"POST", "/reset_prefix_cache", &Service::reset_prefix_cache},
        {"GET", "/health", &Service::health, nullptr, true},
        {"GET", "/ping", &Service::health, nullptr, true},
        {"GET", "/ready", &Service::ready, nullptr, true},
        {"GET", "/version", &Service::version, nullptr, true},
        {"GET", "/openapi.json", &Service::openapi, nullptr, true},
        {"GET", "/metrics", &Service::metrics, nullptr, true},
        {"GET", "/", &Service::page, nullptr, true},
        {"GET", "/ui", &Service::page, nullptr, true},
        {"GET", "/dash", &Service::page, nullptr, true},
        {"GET", "/web/*", &Service::page, nullptr, true},
        {"GET", "/dash.json", &Service::dash_data, nullptr, true},
    };
    return kRoutes;
}

Service::Service(ServedModel model, EngineThread& engine, const ExpertLoad* experts, ServiceOptions options)
    : model_(std::move(model)),
      engine_(engine),
      experts_(experts),
      options_(std::move(options)) {
    if (!model_.grammars) model_.grammars = std::make_shared<GrammarCache>(*model_.tokenizer);
}

HttpServer::Callbacks Service::callbacks() {
    return {[this](std::shared_ptr<HttpExchange> exchange) { handle(exchange); },
            [](int status, std::string_view message) { return dump(openai_error(ApiError(status, std::string(message)))); },
            [this](const HttpServer::Finished& done) { finished(done); }};
}

// "/beta/v1/models" and "/models" are the same: clients differ in what they take for the base.
std::string Service::base_path(std::string_view path) {
    for (const std::string_view prefix : {"/ui", "/anthropic", "/beta", "/v1"}) {
        if (path.starts_with(prefix) && path.substr(prefix.size()).starts_with('/')) path.remove_prefix(prefix.size());
    }
    while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
    return std::string(path);
}

const Service::Route* Service::find(std::string_view method, const std::string& path, bool& known_path) {
    for (const Route& route : routes()) {
        const std::string_view pattern = route.path;
        const bool matches = pattern.ends_with('*') ? path.starts_with(pattern.substr(0, pattern.size() - 1)) : path == pattern;
        known_path |= matches;
        if (matches && (method == route.method || (method == "HEAD" && std::string_view(route.method) == "GET"))) return &route;
    }
    return nullptr;
}

void Service::handle(const std::shared_ptr<HttpExchange>& exchange) {
    bool known_path = false;
    const HttpRequest& request = exchange->request();
    const Route* route = find(request.method, base_path(request.path), known_path);
    try {
        if (request.method == "OPTIONS" && known_path) return exchange->reply(204, "", "", {{"Allow", "GET, POST, OPTIONS"}});
        if (route == nullptr && known_path) throw ApiError(405, fmt::format("{} is not possible here", request.method));
        if (route == nullptr) throw ApiError(404, fmt::format("there is nothing at {}; see /openapi.json", request.path));
        dispatch(exchange, route);
    } catch (const ApiError& error) {
        reply_error(*exchange, error, route != nullptr && route->anthropic);
    } catch (const Error& error) {
        reply_error(*exchange, ApiError(status_of(error.kind()), error.what()), route != nullptr && route->anthropic);
    } catch (const std::exception& error) {
        reply_error(*exchange, ApiError(500, fmt::format("{}; this is a bug in fathom", error.what())), false);
    }
}

void Service::dispatch(const std::shared_ptr<HttpExchange>& exchange, const Route* route) {
    if (!route->open) authorize(exchange->request());
    (this->*route->handler)(exchange);
}

void Service::authorize(const HttpRequest& request) const {
    if (options_.api_keys.empty()) return;
    std::string_view key = request.header("authorization");
    constexpr std::string_view kBearer = "Bearer ";
    key = key.starts_with(kBearer) ? key.substr(kBearer.size()) : request.header("x-api-key");
    bool known = false;
    for (const std::string& allowed : options_.api_keys) known |= same_secret(key, allowed);
    if (!known)
        throw ApiError(401, "wrong or missing API key: send it as \"Authorization: Bearer KEY\"", {}, "invalid_api_key");
}

void Service::check_model(Fields& fields) const {
    const auto name = fields.string("model");
    if (!name || name->empty() || std::ranges::find(model_.names, *name) != model_.names.end()) return;
    // What DeepSeek's and Anthropic's clients ask for by default is served by the one model that is here.
    if (name->starts_with("deepseek-") || name->starts_with("claude-")) return;
    throw ApiError(404, fmt::format("the model \"{}\" does not exist: this server has \"{}\"", *name, model_.names.front()),
                   "model", "model_not_found");
}

void Service::check_unknown(const Fields& fields) const {
    if (!options_.strict) return;
    const auto unknown = fields.unknown();
    if (!unknown.empty())
        throw ApiError(400, fmt::format("{}: unknown field (--strict-api is on)", unknown.front()), unknown.front());
}

void Service::finished(const HttpServer::Finished& done) {
    bool known = false;
    const std::string path = base_path(done.request.path);
    const Route* route = find(done.request.method, path, known);
    metrics_.http(route != nullptr ? route->path : "other", known ? done.request.method : "other", done.status, done.seconds);
    if (!options_.log_requests) return;
    const auto now = std::time(nullptr);
    fmt::print(stderr, "{:%Y-%m-%dT%H:%M:%SZ} {} {} {} {} {:.1f} ms{}{}\n", fmt::gmtime(now), done.request.client,
               done.request.method, known ? done.request.path : "(unknown path)", done.status, done.seconds * 1e3,
               done.complete ? "" : " client left", options_.log_prompts ? " " + replace_invalid_utf8(done.request.body) : "");
}

void Service::reply_json(const std::shared_ptr<HttpExchange>& exchange, const Json& json) const {
    exchange->reply(200, kJson, dump(json));
}

void Service::generate(const std::shared_ptr<HttpExchange>& exchange) {
    bool known = false;
    const Route* route = find("POST", base_path(exchange->request().path), known);
    if (draining_) throw ApiError(503, "the server is shutting down");
    if (engine_.snapshot().load.waiting >= options_.max_waiting) {
        refuse_for_now(fmt::format("{} requests are waiting already", options_.max_waiting), 1);
    }
    const Json body = parse_body(exchange->request().body);
    Fields fields(body);
    check_model(fields);
    Exchange made = route->reader(fields, model_);
    check_unknown(fields);
    for (const Request& request : made.job.requests) engine_.validate(request);
    const double expected = options_.ttft_slo > 0 ? engine_.expected_first_token(made.job.prompt_tokens) : 0;
    if (options_.ttft_slo > 0 && expected > engine_.planned(options_.ttft_slo)) {
        refuse_for_now(fmt::format("the first token would come in about {:.1f} s, and this server promises {:.1f} s", expected,
                                   options_.ttft_slo),
                       std::max(expected - options_.ttft_slo, 0.0));
    }
    made.job.ping_seconds = options_.ping_seconds;
    start_generation(exchange, engine_, *model_.tokenizer, metrics_, std::move(made.job), std::move(made.protocol));
}

[[noreturn]] void Service::refuse_for_now(const std::string& why, double seconds) {
    ApiError busy(429, why + ": try again later");
    busy.retry_after = static_cast<int>(std::clamp(std::ceil(seconds), 1.0, 3600.0));
    throw busy;
}

// OpenAI's fields and Anthropic's in one.
void Service::models(const std::shared_ptr<HttpExchange>& exchange) {
    const auto describe = [&](const std::string& name) -> Json {
        const std::time_t created = model_.created;
        return {{"id", name},
                {"object", "model"},
                {"created", model_.created},
                {"owned_by", "fathom"},
                {"root", model_.names.front()},
                {"max_model_len", model_.max_length},
                {"chat", model_.format.has_value()},
                {"type", "model"},
                {"display_name", name},
                {"created_at", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(created))}};
    };
    const std::string path = base_path(exchange->request().path);
    constexpr std::string_view kOne = "/models/";
    if (path.starts_with(kOne)) {
        const Json asked{{"model", path.substr(kOne.size())}};
        Fields fields(asked);
        check_model(fields);
        return reply_json(exchange, describe(path.substr(kOne.size())));
    }
    Json list = Json::array();
    for (const std::string& name : model_.names) list.push_back(describe(name));
    reply_json(exchange, {{"object", "list"},
                          {"data", std::move(list)},
                          {"has_more", false},
                          {"first_id", model_.names.front()},
                          {"last_id", model_.names.back()}});
}

void Service::health(const std::shared_ptr<HttpExchange>& exchange) { reply_json(exchange, {{"status", "ok"}}); }

void Service::ready(const std::shared_ptr<HttpExchange>& exchange) {
    if (draining_) throw ApiError(503, "the server is shutting down");
    reply_json(exchange, {{"status", "ready"}});
}

void Service::version(const std::shared_ptr<HttpExchange>& exchange) { reply_json(exchange, {{"version", options_.version}}); }

void Service::openapi(const std::shared_ptr<HttpExchange>& exchange) {
    reply_json(exchange, openapi_document(options_.version));
}

void Service::metrics(const std::shared_ptr<HttpExchange>& exchange) {
    exchange->reply(200, "text/plain; version=0.0.4; charset=utf-8",
                    metrics_.text(model_.names.front(), engine_.snapshot(), options_.paged_experts));
}

void Service::load(const std::shared_ptr<HttpExchange>& exchange) {
    const auto snapshot = engine_.snapshot();
    reply_json(exchange, {{"server_load", snapshot.load.running + snapshot.load.waiting},
                          {"running", snapshot.load.running},
                          {"waiting", snapshot.load.waiting},
                          {"blocks", snapshot.load.blocks},
                          {"used_blocks", snapshot.load.used_blocks},
                          {"known_blocks", snapshot.load.known_blocks}});
}

void Service::tokenize(const std::shared_ptr<HttpExchange>& exchange) {
    const Json body = parse_body(exchange->request().body);
    Fields fields(body);
    std::vector<int32_t> ids;
    if (fields.find("messages") != nullptr) {
        ids = read_chat(fields).prompt(model_, "messages");
    } else {
        const char* key = fields.find("prompt") != nullptr ? "prompt" : "content";  // vLLM's word and llama.cpp's
        ids = model_.encode(fields.required_string(key), fields.boolean("add_special_tokens").value_or(true));
    }
    Json reply{{"count", ids.size()}, {"max_model_len", model_.max_length}, {"tokens", ids}};
    if (fields.flag("return_token_strs")) {
        Json texts = Json::array();
        for (const int32_t id : ids) texts.push_back(token_text(*model_.tokenizer, id));
        reply["token_strs"] = std::move(texts);
    }
    reply_json(exchange, reply);
}

void Service::count_tokens(const std::shared_ptr<HttpExchange>& exchange) {
    const Json body = parse_body(exchange->request().body);
    Fields fields(body);
    reply_json(exchange, count_message_tokens(fields, model_));
}

void Service::detokenize(const std::shared_ptr<HttpExchange>& exchange) {
    const Json body = parse_body(exchange->request().body);
    Fields fields(body);
    (void)fields.require("tokens");
    const std::vector<int32_t> ids = fields.token_ids("tokens");
    const int64_t known = model_.tokenizer->vocab_size();
    const auto unknown = std::ranges::find_if(ids, [&](int32_t id) { return id >= known; });
    if (unknown != ids.end())
        fields.fail("tokens", fmt::format("{} is no id of this tokenizer, which has {}", *unknown, known));
    const std::string text = replace_invalid_utf8(model_.tokenizer->decode(ids));
    reply_json(exchange, {{"prompt", text}, {"content", text}});
}

void Service::tokenizer_info(const std::shared_ptr<HttpExchange>& exchange) {
    const Tokenizer& tokenizer = *model_.tokenizer;
    const auto text_of = [&](std::optional<int32_t> id) { return id ? Json(token_text(tokenizer, *id)) : Json(); };
    reply_json(exchange, {{"tokenizer_class", "PreTrainedTokenizerFast"},
                          {"bos_token", text_of(tokenizer.bos_id())},
                          {"eos_token", text_of(tokenizer.eos_id())},
                          {"pad_token", text_of(tokenizer.eos_id())},
                          {"add_bos_token", model_.bos.has_value()},
                          {"vocab_size", tokenizer.vocab_size()},
                          {"model_max_length", model_.max_length},
                          {"chat_template", nullptr}});
}

void Service::reset_prefix_cache(const std::shared_ptr<HttpExchange>& exchange) {
    engine_.forget_prefixes();
    reply_json(exchange, Json::object());
}

// The chat page and the dashboard. Their scripts come from here only, and talk to this server only.
void Service::page(const std::shared_ptr<HttpExchange>& exchange) {
    static constexpr std::string_view kPolicy =
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'";
    const std::string path = base_path(exchange->request().path);
    std::string name = path == "/dash" ? "dash.html" : "index.html";
    if (path.starts_with("/web/")) name = path.substr(5);
    for (const WebAsset& asset : web_assets()) {
        if (asset.name != name) continue;
        return exchange->reply(200, asset.content_type, asset.body,
                               {{"Content-Security-Policy", std::string(kPolicy)},
                                {"X-Content-Type-Options", "nosniff"},
                                {"Referrer-Policy", "no-referrer"},
                                {"Cache-Control", "no-cache"}});
    }
    throw ApiError(404, fmt::format("there is no file \"{}\"", name));
}

void Service::dash_data(const std::shared_ptr<HttpExchange>& exchange) {
    const auto histogram = [](const Histogram& h) -> Json {
        return {{"bounds", h.bounds()}, {"counts", h.counts()}, {"sum", h.sum()}, {"count", h.count()}};
    };
    const auto snapshot = engine_.snapshot();
    const Metrics::View view = metrics_.view();
    using Seconds = std::chrono::duration<double>;
    reply_json(exchange, {{"model", model_.names.front()},
                          {"time", Seconds(std::chrono::steady_clock::now().time_since_epoch()).count()},
                          {"running", snapshot.load.running},
                          {"waiting", snapshot.load.waiting},
                          {"blocks", snapshot.load.blocks},
                          {"used_blocks", snapshot.load.used_blocks},
                          {"requests", view.requests},
                          {"prompt_tokens", view.prompt_tokens},
                          {"cached_tokens", view.cached_tokens},
                          {"answer_rows", snapshot.counters.rows - snapshot.counters.prompt_tokens},
                          {"time_to_first_token", histogram(view.first_token)},
                          {"time_between_tokens", histogram(view.between_tokens)},
                          {"expert_load", experts_ != nullptr ? Json(experts_->layers()) : Json::array()}});
}

}  // namespace fathom
