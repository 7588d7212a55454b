// What the server answers on which path.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "serve/engine_thread.h"
#include "serve/expert_load.h"
#include "serve/http.h"
#include "serve/http_server.h"
#include "serve/metrics.h"
#include "serve/protocols.h"

namespace fathom {

struct ServiceOptions {
    std::vector<std::string> api_keys;  // empty: everybody is served
    int64_t max_waiting = 2048;         // answers that may wait for room in the batch; beyond: 429
    double ttft_slo = 0;                // seconds; a request that would wait longer for its first token gets 429; 0: none
    double ping_seconds = 15;           // a stream that has nothing to say sends a comment this often
    bool strict = false;                // unknown fields are errors
    bool log_requests = true;           // one line per request on stderr
    bool log_prompts = false;           // and its body
    std::string version;
    const ExpertCache* paged_experts = nullptr;  // for /metrics; null: all are in memory
};

// Holds no connection and no model of its own: the model and the engine must outlive it, and it must outlive the HTTP server.
class Service {
public:
    // experts: what the dashboard draws; may be null.
    Service(ServedModel model, EngineThread& engine, const ExpertLoad* experts, ServiceOptions options);

    [[nodiscard]] HttpServer::Callbacks callbacks();
    // Answers one request, now or later. On the exchange's thread of execution.
    void handle(const std::shared_ptr<HttpExchange>& exchange);
    // From now on new work is refused with 503, and /ready says so.
    void drain() { draining_ = true; }

private:
    using Handler = void (Service::*)(const std::shared_ptr<HttpExchange>&);
    using Reader = Exchange (*)(Fields&, const ServedModel&);
    struct Route {
        const char* method;
        const char* path;  // without /v1
        Handler handler;
        Reader reader = nullptr;
        bool open = false;       // needs no key
        bool anthropic = false;  // errors in Anthropic's words
    };
    static const std::vector<Route>& routes();

    ServedModel model_;
    EngineThread& engine_;
    const ExpertLoad* experts_;
    ServiceOptions options_;
    Metrics metrics_;
    std::atomic<bool> draining_{false};

    void dispatch(const std::shared_ptr<HttpExchange>& exchange, const Route* route);
    [[nodiscard]] static std::string base_path(std::string_view path);
    [[nodiscard]] static const Route* find(std::string_view method, const std::string& path, bool& known_path);
    void authorize(const HttpRequest& request) const;
    void check_model(Fields& fields) const;
    void check_unknown(const Fields& fields) const;
    void finished(const HttpServer::Finished& finished);
    void reply_json(const std::shared_ptr<HttpExchange>& exchange, const Json& json) const;

    void generate(const std::shared_ptr<HttpExchange>& exchange);
    [[noreturn]] static void refuse_for_now(const std::string& why, double seconds);  // 429 with Retry-After
    void models(const std::shared_ptr<HttpExchange>& exchange);
    void health(const std::shared_ptr<HttpExchange>& exchange);
    void ready(const std::shared_ptr<HttpExchange>& exchange);
    void version(const std::shared_ptr<HttpExchange>& exchange);
    void openapi(const std::shared_ptr<HttpExchange>& exchange);
    void metrics(const std::shared_ptr<HttpExchange>& exchange);
    void load(const std::shared_ptr<HttpExchange>& exchange);
    void count_tokens(const std::shared_ptr<HttpExchange>& exchange);
    void tokenize(const std::shared_ptr<HttpExchange>& exchange);
    void detokenize(const std::shared_ptr<HttpExchange>& exchange);
    void tokenizer_info(const std::shared_ptr<HttpExchange>& exchange);
    void page(const std::shared_ptr<HttpExchange>& exchange);
    void dash_data(const std::shared_ptr<HttpExchange>& exchange);
    void reset_prefix_cache(const std::shared_ptr<HttpExchange>& exchange);
};

}  // namespace fathom
