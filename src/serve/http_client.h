// A blocking HTTP client: what benchmarks and tests ask a server with.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace fathom {

class HttpClient {
public:
    // `host`: an IP address or a name. Connects when the first request is sent; the connection is kept for the next one.
    HttpClient(std::string host, int port, double patience_seconds = 600);
    ~HttpClient();
    HttpClient(const HttpClient&) = delete;
    HttpClient& operator=(const HttpClient&) = delete;

    struct Reply {
        int status = 0;
        std::string head, body;
    };
    // `on_piece` sees the body as it comes. `headers`: lines that end in \r\n. Throws Error{kIo} when there is no server, or it
    // breaks off.
    Reply request(std::string_view method, std::string_view path, std::string_view headers, std::string_view body,
                  const std::function<void(std::string_view piece)>& on_piece = {});

private:
    std::string host_;
    int port_;
    double patience_;
    int socket_ = -1;
    std::string received_;

    void connect();
    void close();
    void send(std::string_view bytes);
    void receive();  // more bytes into received_
    [[nodiscard]] std::string take_line();
    [[nodiscard]] std::string take(size_t bytes);
    void read_body(Reply& reply, const std::function<void(std::string_view)>& on_piece);
};

}  // namespace fathom
