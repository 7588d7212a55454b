#include <fmt/format.h>
#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include "serve/http.h"

namespace fathom {
namespace beast = boost::beast::http;

struct HttpParser::Beast {
    beast::request_parser<beast::string_body> parser;
};

HttpParser::HttpParser(const HttpLimits& limits) : beast_(std::make_unique<Beast>()), limits_(limits) {
    beast_->parser.eager(true);
    beast_->parser.header_limit(static_cast<uint32_t>(limits.header_bytes));
    beast_->parser.body_limit(static_cast<uint64_t>(limits.body_bytes));
}

HttpParser::~HttpParser() = default;
HttpParser::HttpParser(HttpParser&&) noexcept = default;
HttpParser& HttpParser::operator=(HttpParser&&) noexcept = default;

HttpParser::State HttpParser::fail(int status, std::string error) {
    status_ = status;
    error_ = std::move(error);
    return State::kFailed;
}

HttpParser::State HttpParser::feed(std::string& data) {
    // The last chunk ends in "0\r\n\r\n": shown again with less behind a lone "0\r\n", Boost 1.81's parser breaks its own
    // assertion.
    constexpr size_t kLastChunk = 5;
    auto& parser = beast_->parser;
    while (!data.empty() && !(held_ && data.size() < kLastChunk)) {
        boost::system::error_code error;
        const size_t taken = parser.put(boost::asio::buffer(data), error);
        data.erase(0, taken);
        held_ = error == beast::error::need_more && !data.empty();
        if (error == beast::error::header_limit) {
            return fail(431, fmt::format("the request's headers are larger than {} bytes", limits_.header_bytes));
        }
        if (error == beast::error::body_limit) {
            return fail(413, fmt::format("the request's body is larger than {} bytes", limits_.body_bytes));
        }
        if (error && error != beast::error::need_more) return fail(400, "not an HTTP request: " + error.message());
        if (parser.is_done()) return State::kDone;
        if (error || taken == 0) return State::kMore;
    }
    return State::kMore;
}

bool HttpParser::expects_continue() const {
    const auto& parser = beast_->parser;
    if (!parser.is_header_done()) return false;
    const auto found = parser.get().find(beast::field::expect);
    return found != parser.get().end() && boost::beast::iequals(found->value(), "100-continue");
}

HttpRequest HttpParser::take() {
    auto message = beast_->parser.release();
    HttpRequest request;
    request.method = std::string(message.method_string());
    const std::string target(message.target());
    const size_t mark = target.find('?');
    request.path = percent_decode(target.substr(0, mark));
    if (mark != std::string::npos) request.query = target.substr(mark + 1);
    request.body = std::move(message.body());
    for (const auto& field : message) {
        std::string name(field.name_string());
        std::ranges::transform(name, name.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
        request.headers.emplace_back(std::move(name), std::string(field.value()));
    }
    request.keep_alive = message.keep_alive();
    request.chunks = message.version() >= 11;
    return request;
}

std::string_view HttpRequest::header(std::string_view name) const {
    const auto found = std::ranges::find(headers, name, [](const auto& header) { return std::string_view(header.first); });
    return found == headers.end() ? std::string_view() : std::string_view(found->second);
}

std::string_view http_reason(int status) {
    static constexpr std::pair<int, std::string_view> kReasons[] = {
        {200, "OK"},
        {204, "No Content"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {415, "Unsupported Media Type"},
        {422, "Unprocessable Content"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {503, "Service Unavailable"},
    };
    for (const auto& [code, reason] : kReasons) {
        if (code == status) return reason;
    }
    return "Unknown";
}

std::string percent_decode(std::string_view text) {
    const auto digit = [](char c) {
        if (c >= '0' && c <= '9') return c - '0';
        if (c >= 'a' && c <= 'f') return c - 'a' + 10;
        if (c >= 'A' && c <= 'F') return c - 'A' + 10;
        return -1;
    };
    std::string decoded;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            decoded += text[i];
            continue;
        }
        if (i + 2 >= text.size() || digit(text[i + 1]) < 0 || digit(text[i + 2]) < 0) return {};
        decoded += static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
        i += 2;
    }
    return decoded;
}

}  // namespace fathom
