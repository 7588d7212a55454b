// fathom serve: a model behind OpenAI's HTTP API.
#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "app/serve_model.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "serve/http_server.h"

namespace fathom {
namespace {

struct Options {
    ServeOptions serve;
    HttpServerOptions http;
    std::string cors_origin;
    double drain_seconds = 30;
};

void print_address(const Options& options, int port, int64_t max_length, double seconds) {
    const std::string_view scheme = options.http.certificate.empty() ? "http" : "https";
    fmt::print(stderr, "fathom: {} is ready after {:.1f} s; up to {} tokens a request\n", options.serve.model.model, seconds,
               max_length);
    fmt::print(stderr, "fathom: chat page {}://{}:{}/   API {}://{}:{}/v1\n", scheme, options.http.host, port, scheme,
               options.http.host, port);
}

// Web pages of another origin may only read replies that say so.
HttpHeaders cors_headers(const std::string& origin) {
    if (origin.empty()) return {};
    return {{"Access-Control-Allow-Origin", origin},
            {"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
            {"Access-Control-Allow-Headers", "Authorization, Content-Type, X-Api-Key, Anthropic-Version"}};
}

void serve(const Options& options, const Globals& globals) {
    const auto start = std::chrono::steady_clock::now();
    OpenService opened(options.serve, globals);
    HttpServer server(options.http, opened.service().callbacks());
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (!globals.quiet) print_address(options, server.port(), opened.max_length(), seconds.count());
    const auto pause = [] { std::this_thread::sleep_for(std::chrono::milliseconds(50)); };
    while (!interrupted()) pause();
    opened.service().drain();
    server.drain();
    if (!globals.quiet) fmt::print(stderr, "fathom: finishing {} requests; once more leaves at once\n", server.exchanges());
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(options.drain_seconds);
    while (server.exchanges() > 0 && std::chrono::steady_clock::now() < deadline) pause();
    opened.stop();
}

// Keys from --api-key, or one per line from a file, so that they need not stand on the command line. Whoever asks for keys and
// gives none gets no server that is open to all.
void read_keys(Options& options, const std::string& file) {
    std::vector<std::string>& keys = options.serve.service.api_keys;
    if (std::ranges::find(keys, "") != keys.end()) throw Error(ErrorKind::kUsage, "--api-key: a key must not be empty");
    if (keys.empty()) {
        if (const char* key = std::getenv("FATHOM_API_KEY"); key != nullptr && *key != '\0') keys.emplace_back(key);
    }
    if (file.empty()) return;
    const size_t before = keys.size();
    std::istringstream lines(read_text(file));
    for (std::string line; std::getline(lines, line);) {
        if (line.ends_with('\r')) line.pop_back();
        if (!line.empty()) keys.push_back(line);
    }
    if (keys.size() == before) throw Error(ErrorKind::kInput, fmt::format("--api-key-file {}: holds no key", file));
}

void declare_http(CLI::App& verb, Options& options) {
    verb.add_option("--host", options.http.host, "address to listen on; 0.0.0.0: all of them")
        ->type_name("ADDRESS")
        ->group("Network");
    verb.add_option("--port", options.http.port, "0: any free one, which is printed")
        ->type_name("N")
        ->check(CLI::Range(0, 65535))
        ->group("Network");
    verb.add_option("--ssl-certfile", options.http.certificate, "PEM file of the certificate chain: serve HTTPS")
        ->type_name("FILE")
        ->group("Network");
    verb.add_option("--ssl-keyfile", options.http.private_key, "PEM file of its private key")
        ->type_name("FILE")
        ->group("Network");
    verb.add_option("--cors-origin", options.cors_origin, "web pages of this origin may call the API; *: all pages")
        ->type_name("ORIGIN")
        ->group("Network");
    verb.add_option("--http-threads", options.http.threads, "threads that talk to clients")
        ->type_name("N")
        ->check(CLI::Range(1, 256))
        ->group("Network");
    HttpLimits& limits = options.http.limits;
    verb.add_option("--max-connections", limits.connections, "open at a time; further ones are closed")
        ->type_name("N")
        ->check(CLI::Range(1, 1000000))
        ->group("Network");
    verb.add_option("--max-body-bytes", limits.body_bytes, "of one request")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1024}, int64_t{1} << 40))
        ->group("Network");
    verb.add_option("--idle-timeout", limits.idle_seconds, "seconds after which a silent connection is closed")
        ->type_name("S")
        ->check(CLI::Range(0.1, 1e6))
        ->group("Network");
    verb.add_option("--read-timeout", limits.read_seconds, "seconds a request may take to arrive")
        ->type_name("S")
        ->check(CLI::Range(0.1, 1e6))
        ->group("Network");
    verb.add_option("--write-timeout", limits.write_seconds, "seconds a client may take nothing")
        ->type_name("S")
        ->check(CLI::Range(0.1, 1e6))
        ->group("Network");
    verb.add_option("--sse-ping-interval", options.serve.service.ping_seconds,
                    "seconds of silence after which a stream sends a comment")
        ->type_name("S")
        ->check(CLI::Range(0.05, 1e6))
        ->group("Network");
    verb.add_option("--drain-timeout", options.drain_seconds, "seconds that running requests get after SIGTERM")
        ->type_name("S")
        ->check(CLI::Range(0.0, 1e6))
        ->group("Network");
}

}  // namespace

void add_serve(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<Options>();
    auto key_file = std::make_shared<std::string>();
    CLI::App* verb = app.add_subcommand("serve", "serve a model over HTTP: OpenAI's API, Anthropic's, and a chat page");
    options->serve.declare(*verb);
    verb->add_option("--api-key", options->serve.service.api_keys, "clients must send one of these keys (also: FATHOM_API_KEY)")
        ->type_name("KEY");
    verb->add_option("--api-key-file", *key_file, "keys, one a line")->type_name("FILE");
    verb->add_flag("--log-prompts", options->serve.service.log_prompts, "requests are logged with their bodies");
    verb->add_flag("!--no-log-requests", options->serve.service.log_requests, "no line per request");
    declare_http(*verb, *options);
    verb->footer(
        "Examples:\n"
        "  fathom serve models/stories                    on http://127.0.0.1:8000/\n"
        "  fathom serve MODEL --host 0.0.0.0 --api-key KEY --ssl-certfile C.pem --ssl-keyfile K.pem\n"
        "  curl http://127.0.0.1:8000/v1/completions -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 50}'");
    verb->callback([options, key_file, &globals] {
        if (options->http.certificate.empty() != options->http.private_key.empty()) {
            throw Error(ErrorKind::kUsage, "--ssl-certfile and --ssl-keyfile go together");
        }
        read_keys(*options, *key_file);
        options->http.headers = cors_headers(options->cors_origin);
        options->serve.service.version = FATHOM_VERSION;
        serve(*options, globals);
    });
}

}  // namespace fathom
