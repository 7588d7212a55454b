// HTTP/1.1 without its sockets: requests, replies, limits, and the parser.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fathom {

struct HttpLimits {
    int64_t header_bytes = 32 << 10, body_bytes = 64 << 20;
    double read_seconds = 30;        // from the first byte of a request to its last
    double idle_seconds = 120;       // between requests
    double write_seconds = 30;       // a client that takes nothing for so long is cut off
    int64_t unsent_bytes = 4 << 20;  // of one reply; a client that lags further behind is cut off
    int64_t connections = 8192;
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
    std::string method, path, query, body, client;  // client: address and port
    HttpHeaders headers;                            // names in lower case
    bool keep_alive = true;
    bool chunks = true;  // HTTP/1.1: the client understands chunked replies

    [[nodiscard]] std::string_view header(std::string_view lower_case_name) const;  // empty when absent
};

// Builds a request from bytes as they come.
class HttpParser {
public:
    explicit HttpParser(const HttpLimits& limits);
    ~HttpParser();
    HttpParser(HttpParser&&) noexcept;
    HttpParser& operator=(HttpParser&&) noexcept;

    enum class State : uint8_t { kMore, kDone, kFailed };
    // Takes from the front of `data` what belongs to the request.
    [[nodiscard]] State feed(std::string& data);
    [[nodiscard]] bool expects_continue() const;  // the head is complete and the client waits for "100 Continue"
    [[nodiscard]] HttpRequest take();             // after kDone, once
    // After kFailed.
    [[nodiscard]] int error_status() const { return status_; }
    [[nodiscard]] const std::string& error() const { return error_; }

private:
    struct Beast;
    std::unique_ptr<Beast> beast_;
    HttpLimits limits_;
    bool held_ = false;  // the parser has seen what stands in front of the data and waits for more of it
    int status_ = 400;
    std::string error_;

    State fail(int status, std::string error);
};

// One request and its reply. All members except post() belong to the connection's own thread of execution: the handler is
// called there, and others get there through post(). Calls after the client has gone do nothing.
class HttpExchange {
public:
    virtual ~HttpExchange() = default;
    [[nodiscard]] virtual const HttpRequest& request() const = 0;

    // A whole reply.
    virtual void reply(int status, std::string_view content_type, std::string_view body, const HttpHeaders& headers = {}) = 0;
    // Or a reply in pieces: begin, write as often as wanted, finish.
    virtual void begin(int status, std::string_view content_type, const HttpHeaders& headers = {}) = 0;
    virtual void write(std::string_view piece) = 0;
    virtual void finish() = 0;
    [[nodiscard]] virtual bool begun() const = 0;  // something was replied already

    // Calls `work` again and again until the reply is complete.
    virtual void every(double seconds, std::function<void()> work) = 0;
    // Called once if the client leaves before the reply is complete.
    virtual void on_disconnect(std::function<void()> callback) = 0;
    // Runs `work` on the connection's thread of execution. From any thread.
    virtual void post(std::function<void()> work) = 0;
};

[[nodiscard]] std::string_view http_reason(int status);
// Undoes %XX; nothing for a broken one.
[[nodiscard]] std::string percent_decode(std::string_view text);

}  // namespace fathom
