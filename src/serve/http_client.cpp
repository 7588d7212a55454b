#include "serve/http_client.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>
#include <algorithm>
#include <cctype>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace fathom {

HttpClient::HttpClient(std::string host, int port, double patience_seconds)
    : host_(std::move(host)),
      port_(port),
      patience_(patience_seconds) {}

HttpClient::~HttpClient() { close(); }

void HttpClient::close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
    received_.clear();
}

void HttpClient::connect() {
    if (socket_ >= 0) return;
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    const int failure = ::getaddrinfo(host_.c_str(), std::to_string(port_).c_str(), &hints, &found);
    if (failure != 0) throw Error(ErrorKind::kIo, fmt::format("{}: {}", host_, ::gai_strerror(failure)));
    int reason = 0;
    for (const addrinfo* address = found; address != nullptr && socket_ < 0; address = address->ai_next) {
        const int opened = ::socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC, address->ai_protocol);
        if (opened >= 0 && ::connect(opened, address->ai_addr, address->ai_addrlen) == 0) {
            socket_ = opened;
            break;
        }
        reason = errno;
        if (opened >= 0) ::close(opened);
    }
    ::freeaddrinfo(found);
    if (socket_ < 0) throw Error(ErrorKind::kIo, fmt::format("no server at {}:{}: {}", host_, port_, std::strerror(reason)));
    const timeval patience{static_cast<time_t>(patience_), 0};
    const int on = 1;
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

void HttpClient::send(std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent < 0) throw Error(ErrorKind::kIo, fmt::format("the server broke off: {}", std::strerror(errno)));
        bytes.remove_prefix(static_cast<size_t>(sent));
    }
}

void HttpClient::receive() {
    char buffer[16384];
    const ssize_t count = ::recv(socket_, buffer, sizeof buffer, 0);
    if (count == 0) throw Error(ErrorKind::kIo, "the server closed the connection before its reply was complete");
    if (count < 0) throw Error(ErrorKind::kIo, fmt::format("no reply: {}", std::strerror(errno)));
    received_.append(buffer, static_cast<size_t>(count));
}

std::string HttpClient::take(size_t bytes) {
    while (received_.size() < bytes) receive();
    std::string taken = received_.substr(0, bytes);
    received_.erase(0, bytes);
    return taken;
}

std::string HttpClient::take_line() {
    size_t end = 0;
    while ((end = received_.find("\r\n")) == std::string::npos) receive();
    std::string line = received_.substr(0, end);
    received_.erase(0, end + 2);
    return line;
}

void HttpClient::read_body(Reply& reply, const std::function<void(std::string_view)>& on_piece) {
    std::string head = reply.head;
    std::ranges::transform(head, head.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const auto add = [&](const std::string& piece) {
        reply.body += piece;
        if (on_piece) on_piece(piece);
    };
    if (head.find("transfer-encoding: chunked") != std::string::npos) {
        while (true) {
            const size_t size = std::stoul(take_line(), nullptr, 16);
            if (size > 0) add(take(size));
            (void)take_line();
            if (size == 0) break;
        }
    } else if (const size_t at = head.find("content-length: "); at != std::string::npos) {
        add(take(std::stoul(head.substr(at + 16))));
    }
    if (head.find("connection: close") != std::string::npos) close();
}

HttpClient::Reply HttpClient::request(std::string_view method, std::string_view path, std::string_view headers,
                                      std::string_view body, const std::function<void(std::string_view)>& on_piece) {
    try {
        connect();
        send(fmt::format("{} {} HTTP/1.1\r\nHost: {}:{}\r\nContent-Type: application/json\r\n{}Content-Length: {}\r\n\r\n{}",
                         method, path, host_, port_, headers, body.size(), body));
        Reply reply;
        const std::string status = take_line();
        if (!status.starts_with("HTTP/1.1 ") || status.size() < 12)
            throw Error(ErrorKind::kIo, "the server does not speak HTTP/1.1");
        reply.status = std::stoi(status.substr(9, 3));
        for (std::string line = take_line(); !line.empty(); line = take_line()) reply.head += line + "\r\n";
        read_body(reply, on_piece);
        return reply;
    } catch (const std::logic_error&) {  // a number that is none
        close();
        throw Error(ErrorKind::kIo, "the server's reply is broken");
    } catch (const Error&) {
        close();
        throw;
    }
}

}  // namespace fathom
