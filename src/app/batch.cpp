// fathom batch: requests from a file, replies into a file, and no server in between.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "app/serve_model.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "serve/service.h"

namespace fathom {
namespace {

struct Options {
    ServeOptions serve;
    std::string input, output;
};

// Work that must run on one thread: the exchanges' thread of execution is the verb's own.
class WorkQueue {
public:
    void post(std::function<void()> work) {
        {
            const std::lock_guard lock(mutex_);
            work_.push_back(std::move(work));
        }
        wake_.notify_one();
    }
    // Runs what there is, after waiting for at most a tenth of a second for it.
    void run() {
        std::deque<std::function<void()>> work;
        {
            std::unique_lock lock(mutex_);
            wake_.wait_for(lock, std::chrono::milliseconds(100), [&] { return !work_.empty(); });
            work.swap(work_);
        }
        for (const auto& item : work) item();
    }

private:
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::function<void()>> work_;
};

// A request that came from a line instead of a socket.
class LineExchange final : public HttpExchange, public std::enable_shared_from_this<LineExchange> {
public:
    using Done = std::function<void(int status, std::string_view body)>;
    LineExchange(HttpRequest request, WorkQueue& queue, Done done)
        : request_(std::move(request)),
          queue_(queue),
          done_(std::move(done)) {}

    [[nodiscard]] const HttpRequest& request() const override { return request_; }
    void reply(int status, std::string_view, std::string_view body, const HttpHeaders&) override {
        begun_ = true;
        done_(status, body);
    }
    // Streams are refused before a request gets here.
    void begin(int, std::string_view, const HttpHeaders&) override { begun_ = true; }
    void write(std::string_view) override {}
    void finish() override {}
    [[nodiscard]] bool begun() const override { return begun_; }
    void every(double, std::function<void()>) override {}  // nobody waits on a connection
    void on_disconnect(std::function<void()>) override {}
    void post(std::function<void()> work) override {
        queue_.post([self = shared_from_this(), work = std::move(work)] { work(); });
    }

private:
    HttpRequest request_;
    WorkQueue& queue_;
    Done done_;
    bool begun_ = false;
};

struct Line {
    std::string custom_id, url, body;
};

std::vector<Line> read_requests(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw Error(ErrorKind::kIo, fmt::format("{}: cannot be read", path));
    std::vector<Line> lines;
    std::set<std::string> seen;
    int64_t number = 0;
    for (std::string text; std::getline(file, text);) {
        ++number;
        if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
        const Json json = Json::parse(text, nullptr, false);
        const auto fail = [&](const std::string& what) {
            throw Error(ErrorKind::kInput, fmt::format("{}, line {}: {}", path, number, what));
        };
        if (!json.is_object()) fail("not a JSON object");
        const auto text_of = [&](const char* key) {
            const auto found = json.find(key);
            if (found == json.end() || !found->is_string()) fail(fmt::format("\"{}\" must be a string", key));
            return found->get<std::string>();
        };
        Line line{text_of("custom_id"), text_of("url"), ""};
        if (!seen.insert(line.custom_id).second) fail(fmt::format("custom_id \"{}\" was there before", line.custom_id));
        if (!json.contains("body") || !json["body"].is_object()) fail("\"body\" must be an object");
        if (json["body"].value("stream", Json(false)) == true) fail("a batch cannot stream");
        line.body = dump(json["body"]);
        lines.push_back(std::move(line));
    }
    return lines;
}

// Whole lines, appended one write each: after a kill at most the last line is torn, and the next run drops it.
class ReplyFile {
public:
    explicit ReplyFile(const std::string& path) : path_(path) {
        if (std::filesystem::exists(path)) read_done();
        fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (fd_ < 0) fail("cannot be written");
    }
    ~ReplyFile() { ::close(fd_); }
    ReplyFile(const ReplyFile&) = delete;
    ReplyFile& operator=(const ReplyFile&) = delete;

    [[nodiscard]] bool has(const std::string& custom_id) const { return done_.contains(custom_id); }
    void add(const Json& reply) {
        const std::string line = dump(reply) + "\n";
        if (::write(fd_, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
            fail("cannot be written (is the disk full?)");
    }
    void sync() const { ::fsync(fd_); }

private:
    std::string path_;
    std::set<std::string> done_;
    int fd_ = -1;

    [[noreturn]] void fail(const char* what) const {
        throw Error(ErrorKind::kIo, fmt::format("{}: {}: {}", path_, what, std::strerror(errno)));
    }
    void read_done() {
        const std::string text = read_text(path_);
        size_t whole = 0;
        for (size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', whole)) {
            const Json json = Json::parse(text.substr(whole, end - whole), nullptr, false);
            if (!json.is_object() || !json.contains("custom_id")) {
                throw Error(ErrorKind::kInput,
                            fmt::format("{}: holds what is no reply of a batch: give another file to -o", path_));
            }
            done_.insert(json["custom_id"].get<std::string>());
            whole = end + 1;
        }
        if (whole < text.size()) std::filesystem::resize_file(path_, whole);
    }
};

Json reply_line(const Line& line, int status, std::string_view body) {
    Json parsed = Json::parse(body, nullptr, false);
    return {{"id", new_id("batch_req_")},
            {"custom_id", line.custom_id},
            {"response", {{"status_code", status}, {"request_id", new_id("req_")}, {"body", std::move(parsed)}}},
            {"error", nullptr}};
}

void batch(Options& options, const Globals& globals) {
    const std::vector<Line> lines = read_requests(options.input);
    ReplyFile replies(options.output);
    std::vector<const Line*> todo;
    for (const Line& line : lines) {
        if (!replies.has(line.custom_id)) todo.push_back(&line);
    }
    if (!globals.quiet && todo.size() < lines.size()) {
        fmt::print(stderr, "fathom: {} of {} requests were answered before\n", lines.size() - todo.size(), lines.size());
    }
    if (todo.empty()) return;
    options.serve.service.log_requests = false;
    WorkQueue queue;
    const OpenService opened(options.serve, globals);
    Progress progress("batch", std::ssize(todo), "requests", globals.progress());
    int64_t running = 0, done = 0;
    for (size_t next = 0; done < std::ssize(todo) && !interrupted();) {
        while (next < todo.size() && running < 2 * options.serve.max_sequences) {
            const Line& line = *todo[next++];
            HttpRequest request;
            request.method = "POST";
            request.path = line.url;
            request.body = line.body;
            ++running;
            opened.service().handle(
                std::make_shared<LineExchange>(std::move(request), queue, [&](int status, std::string_view body) {
                    replies.add(reply_line(line, status, body));
                    --running;
                    progress.update(++done);
                }));
        }
        queue.run();
    }
    progress.finish();
    replies.sync();
    throw_if_interrupted();
}

}  // namespace

void add_batch(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<Options>();
    CLI::App* verb = app.add_subcommand("batch", "answer a file of requests; run it again to go on where it stopped");
    options->serve.declare(*verb);
    verb->add_option("-i,--input", options->input, "one OpenAI batch request a line: custom_id, url, body")
        ->required()
        ->type_name("FILE");
    verb->add_option("-o,--output", options->output, "replies are appended, in the order in which they are ready")
        ->required()
        ->type_name("FILE");
    verb->footer("Examples:\n  fathom batch models/stories -i requests.jsonl -o replies.jsonl");
    verb->callback([options, &globals] { batch(*options, globals); });
}

}  // namespace fathom
