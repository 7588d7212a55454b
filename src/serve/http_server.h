// HTTP over TCP or TLS: connections, timeouts and threads, and nothing of what the requests mean.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "serve/http.h"

namespace fathom {

struct HttpServerOptions {
    std::string host = "127.0.0.1";
    int port = 8000;                       // 0: any free one
    std::string certificate, private_key;  // PEM files; both or neither: TLS
    int threads = 2;
    HttpHeaders headers;  // sent with every reply
    HttpLimits limits;
};

class HttpServer {
public:
    struct Finished {  // what is told of every exchange, for logs and metrics
        const HttpRequest& request;
        int status;
        double seconds;
        bool complete;  // false: the client left before the end
    };
    struct Callbacks {
        std::function<void(std::shared_ptr<HttpExchange>)> handle;
        // The body of a reply to what is no request: application/json.
        std::function<std::string(int status, std::string_view message)> error_body;
        std::function<void(const Finished&)> finished;
    };

    // Listens at once. Throws Error{kUsage} for an address or a certificate that cannot be used, Error{kIo} for one that is
    // taken.
    HttpServer(const HttpServerOptions& options, Callbacks callbacks);
    ~HttpServer();  // closes all connections
    HttpServer(const HttpServer&) = delete;
    HttpServer& operator=(const HttpServer&) = delete;

    [[nodiscard]] int port() const;
    [[nodiscard]] int64_t connections() const;
    [[nodiscard]] int64_t exchanges() const;  // requests that are being answered
    // No new connections; those that are open close after their reply.
    void drain();

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace fathom
