#include "serve/http_server.h"

#include <fmt/format.h>
#include <array>
#include <atomic>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>
#include <variant>

#include "base/error.h"

namespace fathom {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using Code = boost::system::error_code;
using Clock = std::chrono::steady_clock;

// What all connections share.
struct Shared {
    HttpLimits limits;
    HttpHeaders headers;
    HttpServer::Callbacks callbacks;
    std::atomic<int64_t> connections{0}, exchanges{0};
    std::atomic<bool> draining{false};
    std::atomic<bool> stopped{false};  // nothing may be posted any more
};

// A socket with or without TLS.
class Stream {
public:
    Stream(tcp::socket socket, asio::ssl::context* tls) {
        if (tls != nullptr) {
            stream_.emplace<asio::ssl::stream<tcp::socket>>(std::move(socket), *tls);
        } else {
            stream_.emplace<tcp::socket>(std::move(socket));
        }
    }
    [[nodiscard]] tcp::socket& socket() {
        if (auto* plain = std::get_if<tcp::socket>(&stream_)) return *plain;
        return std::get<asio::ssl::stream<tcp::socket>>(stream_).next_layer();
    }
    template <class Handler>
    void handshake(Handler handler) {
        if (auto* tls = std::get_if<asio::ssl::stream<tcp::socket>>(&stream_)) {
            tls->async_handshake(asio::ssl::stream_base::server, std::move(handler));
        } else {
            handler(Code());
        }
    }
    template <class Handler>
    void read_some(asio::mutable_buffer buffer, Handler handler) {
        on_stream([&](auto& stream) { stream.async_read_some(buffer, std::move(handler)); });
    }
    // How much of it a plain socket takes at once: as a rule all of a token's few bytes, and then there is nothing to wait for.
    [[nodiscard]] size_t write_now(std::string_view bytes) {
        auto* const plain = std::get_if<tcp::socket>(&stream_);
        Code error;
        return plain != nullptr && !bytes.empty() ? plain->write_some(asio::buffer(bytes), error) : 0;
    }
    template <class Handler>
    void write_some(asio::const_buffer buffer, Handler handler) {
        on_stream([&](auto& stream) { stream.async_write_some(buffer, std::move(handler)); });
    }

private:
    std::variant<std::monostate, tcp::socket, asio::ssl::stream<tcp::socket>> stream_;

    template <class Body>
    void on_stream(const Body& body) {
        if (auto* plain = std::get_if<tcp::socket>(&stream_)) {
            body(*plain);
        } else {
            body(std::get<asio::ssl::stream<tcp::socket>>(stream_));
        }
    }
};

class Exchange;

// One connection. One read is always under way: between requests it waits for the next one, during a reply it notices that the
// client has gone (or keeps what was sent ahead).
class Connection : public std::enable_shared_from_this<Connection> {
public:
    Connection(tcp::socket socket, asio::ssl::context* tls, Shared& shared)
        : stream_(std::move(socket), tls),
          read_timer_(stream_.socket().get_executor()),
          write_timer_(stream_.socket().get_executor()),
          shared_(shared) {
        ++shared_.connections;
        Code ignored;
        const tcp::endpoint peer = stream_.socket().remote_endpoint(ignored);
        if (!ignored) client_ = fmt::format("{}:{}", peer.address().to_string(), peer.port());
        stream_.socket().set_option(tcp::no_delay(true), ignored);
        stream_.socket().non_blocking(true, ignored);
    }
    ~Connection() { --shared_.connections; }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    void start() {
        arm(read_timer_, shared_.limits.read_seconds);
        stream_.handshake([self = shared_from_this()](const Code& error) {
            if (error) return self->close();
            self->arm(self->read_timer_, self->shared_.limits.idle_seconds);
            self->read();
        });
    }
    [[nodiscard]] auto executor() { return stream_.socket().get_executor(); }
    [[nodiscard]] Shared& shared() { return shared_; }
    [[nodiscard]] bool closed() const { return closed_; }

    // Of the exchange under way.
    void send(std::string_view bytes);
    void exchange_done(bool keep_alive);
    void close();

private:
    static constexpr size_t kSmallRead = 2048, kLargeRead = 64 << 10;
    static constexpr size_t kSentAhead = 64 << 10;  // what a client may send before it has its reply

    Stream stream_;
    asio::steady_timer read_timer_, write_timer_;
    Shared& shared_;
    std::string client_, received_, unsent_, sending_;
    std::vector<char> buffer_;
    size_t sent_ = 0;
    std::optional<HttpParser> parser_;
    std::weak_ptr<Exchange> exchange_;
    bool reading_ = false, busy_ = false, closed_ = false, closing_ = false, continued_ = false;

    void arm(asio::steady_timer& timer, double seconds) {
        timer.expires_after(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
        timer.async_wait([weak = weak_from_this(), &timer](const Code& error) {
            const auto self = weak.lock();
            if (self && !error && timer.expiry() <= Clock::now()) self->close();
        });
    }
    void read();
    void parse();
    void write();
    void handle(HttpRequest request);
    void refuse(int status, const std::string& message);
};

// The reply to one request; outlives the connection where others still hold on to it.
class Exchange final : public HttpExchange, public std::enable_shared_from_this<Exchange> {
public:
    Exchange(std::shared_ptr<Connection> connection, HttpRequest request)
        : connection_(std::move(connection)),
          request_(std::move(request)) {
        ++connection_->shared().exchanges;
    }
    ~Exchange() override {
        if (open_ && !connection_->shared().stopped)
            asio::post(connection_->executor(), [connection = connection_] { connection->close(); });
        --connection_->shared().exchanges;
    }
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;

    [[nodiscard]] const HttpRequest& request() const override { return request_; }
    [[nodiscard]] bool begun() const override { return status_ != 0; }
    void on_disconnect(std::function<void()> callback) override { disconnected_ = std::move(callback); }
    void every(double seconds, std::function<void()> work) override {
        if (!open_) return;
        tick_.emplace(connection_->executor());
        tick(seconds, std::move(work));
    }
    void post(std::function<void()> work) override {
        asio::post(connection_->executor(), [self = shared_from_this(), work = std::move(work)] { work(); });
    }

    void reply(int status, std::string_view content_type, std::string_view body, const HttpHeaders& headers) override {
        if (!open_) return;
        std::string text = head(status, content_type, headers);
        if (status != 204) text += fmt::format("Content-Length: {}\r\n", body.size());
        text += "\r\n";
        if (request_.method != "HEAD" && status != 204) text += body;
        connection_->send(text);
        end(true);
    }
    void begin(int status, std::string_view content_type, const HttpHeaders& headers) override {
        if (!open_) return;
        chunked_ = request_.chunks;
        if (!chunked_) request_.keep_alive = false;
        std::string text = head(status, content_type, headers);
        text += chunked_ ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n";
        connection_->send(text);
    }
    void write(std::string_view piece) override {
        if (!open_ || piece.empty()) return;
        connection_->send(chunked_ ? fmt::format("{:x}\r\n{}\r\n", piece.size(), piece) : std::string(piece));
    }
    void finish() override {
        if (!open_) return;
        if (chunked_) connection_->send("0\r\n\r\n");
        end(true);
    }
    // The connection is gone.
    void disconnected() {
        if (!open_) return;
        end(false);
        if (const auto callback = std::exchange(disconnected_, {})) callback();
    }

private:
    std::shared_ptr<Connection> connection_;
    HttpRequest request_;
    std::function<void()> disconnected_;
    Clock::time_point began_ = Clock::now();
    std::optional<asio::steady_timer> tick_;
    int status_ = 0;
    bool open_ = true, chunked_ = false;

    void tick(double seconds, std::function<void()> work) {
        tick_->expires_after(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
        tick_->async_wait([weak = weak_from_this(), seconds, work = std::move(work)](const Code& error) mutable {
            const auto self = weak.lock();
            if (!self || error || !self->open_) return;
            work();
            if (self->open_) self->tick(seconds, std::move(work));
        });
    }

    std::string head(int status, std::string_view content_type, const HttpHeaders& headers) {
        status_ = status;
        if (connection_->shared().draining) request_.keep_alive = false;
        std::string text = fmt::format("HTTP/1.1 {} {}\r\n", status, http_reason(status));
        if (!content_type.empty()) text += fmt::format("Content-Type: {}\r\n", content_type);
        const auto add = [&text](const HttpHeaders& list) {
            for (const auto& [name, value] : list) text += fmt::format("{}: {}\r\n", name, value);
        };
        add(connection_->shared().headers);
        add(headers);
        return text += request_.keep_alive ? "Connection: keep-alive\r\n" : "Connection: close\r\n";
    }
    void end(bool complete) {
        open_ = false;
        tick_.reset();
        const double seconds = std::chrono::duration<double>(Clock::now() - began_).count();
        const auto& finished = connection_->shared().callbacks.finished;
        if (finished) finished({request_, status_, seconds, complete});
        if (!complete) return;
        disconnected_ = {};
        connection_->exchange_done(request_.keep_alive);
    }
};

void Connection::read() {
    if (reading_ || closed_ || received_.size() > kSentAhead) return;
    reading_ = true;
    // Only here, where no read is under way, may the buffer change; one that waits is small.
    if (const size_t wanted = parser_ ? kLargeRead : kSmallRead; buffer_.size() != wanted) buffer_ = std::vector<char>(wanted);
    stream_.read_some(asio::buffer(buffer_), [self = shared_from_this()](const Code& error, size_t bytes) {
        self->reading_ = false;
        if (error) return self->close();
        if (self->closing_) return self->read();  // only the client's end is waited for
        self->received_.append(self->buffer_.data(), bytes);
        if (!self->busy_) self->parse();
        self->read();
    });
}

void Connection::parse() {
    if (!parser_) {
        if (received_.empty()) return;
        parser_.emplace(shared_.limits);
        continued_ = false;
        arm(read_timer_, shared_.limits.read_seconds);
    }
    switch (parser_->feed(received_)) {
        case HttpParser::State::kMore:
            if (!continued_ && parser_->expects_continue()) {
                continued_ = true;
                send("HTTP/1.1 100 Continue\r\n\r\n");
            }
            return;
        case HttpParser::State::kFailed:
            return refuse(parser_->error_status(), parser_->error());
        case HttpParser::State::kDone:
            break;
    }
    HttpRequest request = parser_->take();
    parser_.reset();
    request.client = client_;
    read_timer_.cancel();
    handle(std::move(request));
}

void Connection::handle(HttpRequest request) {
    busy_ = true;
    const auto exchange = std::make_shared<Exchange>(shared_from_this(), std::move(request));
    exchange_ = exchange;
    shared_.callbacks.handle(exchange);
}

void Connection::refuse(int status, const std::string& message) {  // which may lie in the parser
    const std::string body = shared_.callbacks.error_body(status, message);
    parser_.reset();
    send(fmt::format("HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
                     status, http_reason(status), body.size(), body));
    exchange_done(false);
}

void Connection::send(std::string_view bytes) {
    if (closed_ || closing_) return;
    if (sending_.empty()) bytes.remove_prefix(stream_.write_now(bytes));  // what fails is told to the waiting write
    if (bytes.empty()) return;
    unsent_ += bytes;
    if (static_cast<int64_t>(unsent_.size()) > shared_.limits.unsent_bytes + static_cast<int64_t>(bytes.size())) {
        asio::post(executor(), [self = shared_from_this()] { self->close(); });
        return;
    }
    if (sending_.empty()) write();
}

void Connection::write() {
    if (sent_ == sending_.size()) {
        sending_ = std::exchange(unsent_, {});
        sent_ = 0;
    }
    if (sending_.empty()) {
        write_timer_.cancel();
        if (!closing_) return;
        // The client reads the reply before it sees the end: only our side is closed, and its own end is waited for.
        Code ignored;
        stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
        arm(read_timer_, 2);
        return;
    }
    arm(write_timer_, shared_.limits.write_seconds);
    stream_.write_some(asio::buffer(sending_.data() + sent_, sending_.size() - sent_),
                       [self = shared_from_this()](const Code& error, size_t bytes) {
                           if (error) return self->close();
                           self->sent_ += bytes;
                           self->write();
                       });
}

void Connection::exchange_done(bool keep_alive) {
    exchange_.reset();
    if (closed_) return;
    if (!keep_alive || shared_.draining) {
        closing_ = true;
        if (sending_.empty()) write();
        return;
    }
    // Not at once: the handler of a request sent ahead would run inside the handler of this one.
    asio::post(executor(), [self = shared_from_this()] {
        if (self->closed_) return;
        self->busy_ = false;
        self->arm(self->read_timer_, self->shared_.limits.idle_seconds);
        self->parse();
        self->read();
    });
}

void Connection::close() {
    if (std::exchange(closed_, true)) return;
    read_timer_.cancel();
    write_timer_.cancel();
    Code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
    stream_.socket().close(ignored);
    if (const auto exchange = exchange_.lock()) exchange->disconnected();
}

}  // namespace

class HttpServer::Impl {
public:
    Impl(const HttpServerOptions& options, Callbacks callbacks)
        : context_(options.threads),
          acceptor_(asio::make_strand(context_)),
          retry_(acceptor_.get_executor()) {
        shared_.limits = options.limits;
        shared_.headers = options.headers;
        shared_.callbacks = std::move(callbacks);
        if (!options.certificate.empty()) load_certificate(options);
        listen(options);
        accept();
        for (int i = 0; i < options.threads; ++i) threads_.emplace_back([this] { context_.run(); });
    }
    ~Impl() {
        shared_.stopped = true;
        context_.stop();
        for (std::thread& thread : threads_) thread.join();
    }
    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;

    [[nodiscard]] int port() const { return port_; }
    [[nodiscard]] const Shared& shared() const { return shared_; }
    void drain() {
        shared_.draining = true;
        asio::post(acceptor_.get_executor(), [this] {
            Code ignored;
            acceptor_.close(ignored);
        });
    }

private:
    Shared shared_;  // outlives the connections, which live in the context's handlers
    asio::io_context context_;
    tcp::acceptor acceptor_;
    asio::steady_timer retry_;
    std::optional<asio::ssl::context> tls_;
    std::vector<std::thread> threads_;
    int port_ = 0;

    void load_certificate(const HttpServerOptions& options) {
        try {
            tls_.emplace(asio::ssl::context::tls_server);
            tls_->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_tlsv1 |
                              asio::ssl::context::no_tlsv1_1);
            SSL_CTX_set_mode(tls_->native_handle(), SSL_MODE_RELEASE_BUFFERS);
            tls_->use_certificate_chain_file(options.certificate);
            tls_->use_private_key_file(options.private_key, asio::ssl::context::pem);
        } catch (const boost::system::system_error& error) {
            throw Error(ErrorKind::kUsage, fmt::format("cannot use the certificate {} with the key {}: {}", options.certificate,
                                                       options.private_key, error.code().message()));
        }
    }

    void listen(const HttpServerOptions& options) {
        Code error;
        const auto address = asio::ip::make_address(options.host == "localhost" ? "127.0.0.1" : options.host, error);
        if (error) throw Error(ErrorKind::kUsage, fmt::format("--host {}: not an IP address", options.host));
        const tcp::endpoint endpoint(address, static_cast<uint16_t>(options.port));
        acceptor_.open(endpoint.protocol(), error);
        if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
        if (!error) acceptor_.bind(endpoint, error);
        if (!error) acceptor_.listen(4096, error);
        if (error) {
            throw Error(ErrorKind::kIo, fmt::format("cannot listen on {} port {}: {}; choose another --port or --host",
                                                    options.host, options.port, error.message()));
        }
        port_ = acceptor_.local_endpoint().port();
    }

    void accept() {
        acceptor_.async_accept(asio::make_strand(context_), [this](const Code& error, tcp::socket socket) {
            if (error == asio::error::operation_aborted || !acceptor_.is_open()) return;
            if (error) {  // as a rule too many open files: some will be closed
                retry_.expires_after(std::chrono::milliseconds(100));
                retry_.async_wait([this](const Code& cancelled) {
                    if (!cancelled) accept();
                });
                return;
            }
            if (shared_.connections < shared_.limits.connections) {
                const auto executor = socket.get_executor();
                const auto connection = std::make_shared<Connection>(std::move(socket), tls_ ? &*tls_ : nullptr, shared_);
                asio::dispatch(executor, [connection] { connection->start(); });
            }
            accept();
        });
    }
};

HttpServer::HttpServer(const HttpServerOptions& options, Callbacks callbacks)
    : impl_(std::make_unique<Impl>(options, std::move(callbacks))) {}
HttpServer::~HttpServer() = default;
int HttpServer::port() const { return impl_->port(); }
int64_t HttpServer::connections() const { return impl_->shared().connections; }
int64_t HttpServer::exchanges() const { return impl_->shared().exchanges; }
void HttpServer::drain() { impl_->drain(); }

}  // namespace fathom
