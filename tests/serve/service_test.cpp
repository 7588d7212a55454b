// The server as its clients see it: the bundled model behind a real socket.
#include "serve/service.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <thread>

#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "cpu/cpu_ops.h"

namespace fathom {
namespace {

struct Reply {
    int status = 0;
    std::string head, body;

    [[nodiscard]] Json json() const { return Json::parse(body); }
};

class Client {
public:
    explicit Client(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<uint16_t>(port));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        connected_ = ::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
        const timeval patience{300, 0};
        ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    }
    ~Client() { ::close(socket_); }
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    [[nodiscard]] bool connected() const { return connected_; }
    void send(std::string_view bytes) const { (void)::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
    [[nodiscard]] bool more() {
        char buffer[4096];
        const ssize_t n = ::recv(socket_, buffer, sizeof buffer, 0);
        if (n > 0) received_.append(buffer, static_cast<size_t>(n));
        return n > 0;
    }
    [[nodiscard]] const std::string& received() const { return received_; }
    [[nodiscard]] Reply reply() {
        Reply result;
        size_t end = 0;
        while ((end = received_.find("\r\n\r\n")) == std::string::npos) {
            if (!more()) return result;
        }
        result.head = received_.substr(0, end + 2);
        received_.erase(0, end + 4);
        result.status = std::stoi(result.head.substr(9, 3));
        if (result.head.find("chunked") != std::string::npos) {
            read_chunks(result.body);
        } else if (const size_t length = result.head.find("Content-Length: "); length != std::string::npos) {
            const auto bytes = static_cast<size_t>(std::stoll(result.head.substr(length + 16)));
            while (received_.size() < bytes && more()) {
            }
            result.body = received_.substr(0, bytes);
            received_.erase(0, bytes);
        }
        return result;
    }

private:
    int socket_;
    bool connected_ = false;
    std::string received_;

    void read_chunks(std::string& body) {
        while (true) {
            size_t line = 0;
            while ((line = received_.find("\r\n")) == std::string::npos) {
                if (!more()) return;
            }
            const auto size = static_cast<size_t>(std::stoul(received_.substr(0, line), nullptr, 16));
            while (received_.size() < line + 2 + size + 2) {
                if (!more()) return;
            }
            body += received_.substr(line + 2, size);
            received_.erase(0, line + 2 + size + 2);
            if (size == 0) return;
        }
    }
};

std::string http(const std::string& method, const std::string& path, const std::string& body = "",
                 const std::string& headers = "") {
    return method + " " + path + " HTTP/1.1\r\nHost: here\r\n" + headers + "Content-Length: " + std::to_string(body.size()) +
           "\r\n\r\n" + body;
}

// One server for all tests that need no other options: loading the model takes longer than a test.
class Served {
public:
    explicit Served(ServiceOptions options = {}, HttpLimits limits = {}, EngineOptions engine_options = {})
        : loaded_(
              load_model(std::string(FATHOM_SOURCE) + "/models/stories", ops_, {.with_mtp = engine_options.draft_tokens > 0})),
          tokenizer_(Tokenizer::load(std::string(FATHOM_SOURCE) + "/models/stories")) {
        engine_options.vocab_limit = tokenizer_.vocab_size();
        engine_.emplace(*loaded_.model, ops_, engine_options);
        ServedModel model;
        model.names = {"stories"};
        model.tokenizer = &tokenizer_;
        model.format = ChatFormat::choose(tokenizer_, "deepseek_v3", "stories");
        model.stop_ids.assign(tokenizer_.stop_ids().begin(), tokenizer_.stop_ids().end());
        model.max_length = engine_->max_length();
        options.log_requests = false;
        service_.emplace(model, *engine_, nullptr, options);
        HttpServerOptions http_options;
        http_options.port = 0;
        http_options.limits = limits;
        server_.emplace(http_options, service_->callbacks());
    }
    ~Served() {
        engine_->stop();
        server_.reset();
    }
    Served(const Served&) = delete;
    Served& operator=(const Served&) = delete;

    [[nodiscard]] int port() const { return server_->port(); }
    [[nodiscard]] EngineThread& engine() { return *engine_; }
    [[nodiscard]] Service& service() { return *service_; }
    [[nodiscard]] Reply ask(const std::string& request) const {
        Client client(port());
        client.send(request);
        return client.reply();
    }
    [[nodiscard]] Reply post(const std::string& path, const Json& body) const { return ask(http("POST", path, body.dump())); }
    // Waits for the engine to have nothing to do.
    [[nodiscard]] EngineThread::Snapshot quiet() {
        for (int i = 0; i < 10000; ++i) {
            const auto now = engine_->snapshot();
            if (now.load.running == 0 && now.load.waiting == 0 && now.load.used_blocks == 0) return now;
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        return engine_->snapshot();
    }

private:
    ThreadPool pool_{1};
    CpuOps ops_{pool_};
    LoadedModel loaded_;
    Tokenizer tokenizer_;
    std::optional<EngineThread> engine_;
    std::optional<Service> service_;
    std::optional<HttpServer> server_;
};

// Keeps the engine in a step, so that what comes meanwhile waits, however slow this machine is.
class Gate {
public:
    explicit Gate(EngineThread& engine) {
        Request request;
        request.prompt = {0};
        request.max_new_tokens = 1;
        request.on_logits = [state = state_](std::span<const float>) {
            state->entered.set_value();
            state->opened.get_future().wait();
        };
        (void)engine.submit(std::move(request), [state = state_](TokenEvent&&) { state->left.set_value(); });
        state_->entered.get_future().wait();
    }
    ~Gate() {
        state_->opened.set_value();
        state_->left.get_future().wait();
    }
    Gate(const Gate&) = delete;
    Gate& operator=(const Gate&) = delete;

private:
    struct State {
        std::promise<void> entered, opened, left;
    };
    std::shared_ptr<State> state_ = std::make_shared<State>();
};

class ServiceTest : public ::testing::Test {
protected:
    static void SetUpTestSuite() { served = std::make_unique<Served>(); }
    static void TearDownTestSuite() { served.reset(); }
    static std::unique_ptr<Served> served;
};
std::unique_ptr<Served> ServiceTest::served;

std::vector<Json> sse_events(const std::string& body) {
    std::vector<Json> events;
    for (size_t at = body.find("data: "); at != std::string::npos; at = body.find("data: ", at)) {
        at += 6;
        const std::string line = body.substr(at, body.find('\n', at) - at);
        if (line != "[DONE]") events.push_back(Json::parse(line));
    }
    return events;
}

const Json kStory{{"prompt", "Once upon a time"}, {"max_tokens", 12}, {"temperature", 0}};

Json with(Json json, const Json& more) {
    json.update(more);
    return json;
}

TEST_F(ServiceTest, PiecesOfAStreamAddUpToTheWholeAnswer) {
    const Json whole = served->post("/v1/completions", kStory).json();
    const std::string text = whole["choices"][0]["text"];
    EXPECT_FALSE(text.empty());
    EXPECT_EQ(whole["usage"]["completion_tokens"], 12);
    EXPECT_EQ(whole["choices"][0]["finish_reason"], "length");
    const Reply stream =
        served->post("/v1/completions", with(kStory, {{"stream", true}, {"stream_options", {{"include_usage", true}}}}));
    EXPECT_NE(stream.head.find("text/event-stream"), std::string::npos);
    EXPECT_TRUE(stream.body.ends_with("data: [DONE]\n\n"));
    std::string streamed;
    const auto events = sse_events(stream.body);
    for (const Json& event : events) {
        if (!event["choices"].empty()) streamed += event["choices"][0]["text"].get<std::string>();
    }
    EXPECT_EQ(streamed, text);
    EXPECT_EQ(events.back()["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    EXPECT_GT(events.back()["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

TEST_F(ServiceTest, EveryRouteExistsUnderEveryBase) {
    for (const char* base : {"", "/v1", "/beta", "/beta/v1"}) {
        EXPECT_EQ(served->ask(http("GET", std::string(base) + "/models")).json()["data"][0]["id"], "stories") << base;
        EXPECT_EQ(served->post(std::string(base) + "/completions", with(kStory, {{"max_tokens", 1}})).status, 200) << base;
    }
    EXPECT_EQ(
        served->post("/anthropic/v1/messages/count_tokens", {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}}).status,
        200);
    for (const char* path : {"/health", "/ping", "/ready", "/version", "/metrics", "/", "/dash", "/web/chat.js", "/dash.json",
                             "/load", "/v1/models/stories"}) {
        EXPECT_EQ(served->ask(http("GET", path)).status, 200) << path;
    }
    EXPECT_EQ(served->ask(http("GET", "/v1/models/other")).status, 404);
    EXPECT_EQ(served->ask(http("GET", "/nothing")).status, 404);
    EXPECT_EQ(served->ask(http("GET", "/v1/completions")).status, 405);
}

TEST_F(ServiceTest, ErrorsNameTheField) {
    const auto fault = [](const Json& body, const char* path) {
        const Reply reply = served->post(path, body);
        EXPECT_EQ(reply.status, 400) << body.dump();
        return reply.json()["error"]["param"].dump();
    };
    const Json hello{{"role", "user"}, {"content", "Hello"}};
    EXPECT_EQ(fault(with(kStory, {{"temperature", "hot"}}), "/v1/completions"), "\"temperature\"");
    EXPECT_EQ(fault(with(kStory, {{"top_p", 2}}), "/v1/completions"), "\"top_p\"");
    EXPECT_EQ(fault(with(kStory, {{"logit_bias", {{"x", 1}}}}), "/v1/completions"), "\"logit_bias\"");
    EXPECT_EQ(fault({{"max_tokens", 5}}, "/v1/completions"), "\"prompt\"");
    EXPECT_EQ(fault({{"prompt", std::vector<int>(5000, 5)}}, "/v1/completions"), "\"prompt\"");
    EXPECT_EQ(fault({{"messages", Json::array()}}, "/v1/chat/completions"), "\"messages\"");
    EXPECT_EQ(fault({{"messages", {hello, {{"role", "robot"}, {"content", ""}}}}}, "/v1/chat/completions"),
              "\"messages[1].role\"");
    EXPECT_EQ(fault({{"messages", {{{"role", "user"}, {"content", {{{"type", "image_url"}}}}}}}}, "/v1/chat/completions"),
              "\"messages[0].content[0].type\"");
    EXPECT_EQ(fault({{"messages", {hello}},
                     {"response_format", {{"type", "json_schema"}, {"json_schema", {{"schema", {{"not", 1}}}}}}}},
                    "/v1/chat/completions"),
              "\"response_format\"");
    const Json tool{{"type", "function"},
                    {"function", {{"name", "act"}, {"parameters", {{"properties", {{"a", {{"$ref", "#/b"}}}}}}}}}};
    EXPECT_EQ(fault({{"messages", {hello}}, {"tools", {tool}}, {"tool_choice", "required"}}, "/v1/chat/completions"),
              "\"tools\"");
    EXPECT_EQ(fault({{"messages", {hello}}, {"reasoning_effort", "some"}}, "/v1/chat/completions"), "\"reasoning_effort\"");
    for (const auto& [field, value] : std::vector<std::pair<const char*, Json>>{{"guided_regex", "("},
                                                                                {"grammar", "root ::= ("},
                                                                                {"guided_choice", Json::array()},
                                                                                {"guided_json", "{"},
                                                                                {"allowed_token_ids", Json::array()},
                                                                                {"min_tokens", 13}}) {
        EXPECT_EQ(fault(with(kStory, {{field, value}}), "/v1/completions"), '"' + std::string(field) + '"');
    }
    const Json two{{"structured_outputs", {{"regex", "a"}, {"choice", {"b"}}}}};
    EXPECT_EQ(fault(with(kStory, two), "/v1/completions"), "\"structured_outputs.choice\"");
    EXPECT_EQ(fault({{"tokens", {5, 8192}}}, "/detokenize"), "\"tokens\"");
    EXPECT_EQ(served->post("/v1/completions", with(kStory, {{"model", "gpt-9"}})).json()["error"]["code"], "model_not_found");
    EXPECT_EQ(served->ask(http("POST", "/v1/completions", "{\"prompt\": ")).status, 400);
    EXPECT_EQ(served->ask(http("POST", "/v1/completions", std::string(100000, '['))).status, 400);
    EXPECT_EQ(served->ask(http("POST", "/v1/completions", "\xFF\xFE\x00")).status, 400);
    EXPECT_EQ(served->ask("nonsense\r\n\r\n").status, 400);
}

TEST_F(ServiceTest, EchoedLogprobsAreThoseOfTheAnswer) {
    Json reply = served->post("/v1/completions", with(kStory, {{"logprobs", 2}, {"return_token_ids", true}})).json();
    const Json choice = reply["choices"][0];
    Json ids = choice["prompt_token_ids"];
    const size_t prompt = ids.size();
    for (const Json& id : choice["token_ids"]) ids.push_back(id);
    reply = served->post("/v1/completions", {{"prompt", ids}, {"echo", true}, {"max_tokens", 0}, {"logprobs", 1}}).json();
    const Json scored = reply["choices"][0]["logprobs"];
    ASSERT_EQ(scored["token_logprobs"].size(), ids.size());
    EXPECT_TRUE(scored["token_logprobs"][0].is_null());
    for (size_t i = 0; i < choice["token_ids"].size(); ++i) {
        const double said = choice["logprobs"]["token_logprobs"][i], again = scored["token_logprobs"][prompt + i];
        EXPECT_NEAR(said, again, 2e-4);
        EXPECT_EQ(choice["logprobs"]["tokens"][i], scored["tokens"][prompt + i]);
    }
}

TEST_F(ServiceTest, SeveralAnswersDifferAndSeedsRepeatThem) {
    const Json request = with(kStory, {{"n", 3}, {"temperature", 1.2}, {"seed", 7}});
    const Json first = served->post("/v1/completions", request).json(),
               second = served->post("/v1/completions", request).json();
    ASSERT_EQ(first["choices"].size(), 3u);
    EXPECT_EQ(first["choices"], second["choices"]);
    EXPECT_NE(first["choices"][0]["text"], first["choices"][1]["text"]);
}

TEST_F(ServiceTest, ChatsStreamRoleFirstAndFinishLast) {
    const Json request{{"messages", {{{"role", "user"}, {"content", "Hello"}}}}, {"max_tokens", 5}, {"stream", true}};
    const auto events = sse_events(served->post("/v1/chat/completions", request).body);
    ASSERT_GE(events.size(), 2u);
    EXPECT_EQ(events.front()["choices"][0]["delta"]["role"], "assistant");
    EXPECT_TRUE(events.back()["choices"][0]["finish_reason"].is_string());
}

TEST_F(ServiceTest, AnswersObeyTheirSchema) {
    const Json schema = Json::parse(
        R"({"type": "object", "properties": {"name": {"enum": ["Ben", "Lily"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
                                        "required": ["name", "age"], "additionalProperties": false})");
    for (int seed = 0; seed < 5; ++seed) {
        const Json reply =
            served
                ->post("/v1/chat/completions",
                       {{"messages", {{{"role", "user"}, {"content", "Who?"}}}},
                        {"max_tokens", 200},
                        {"seed", seed},
                        {"temperature", 1.5},
                        {"response_format", {{"type", "json_schema"}, {"json_schema", {{"name", "p"}, {"schema", schema}}}}}})
                .json();
        const Json answer = Json::parse(reply["choices"][0]["message"]["content"].get<std::string>());
        EXPECT_GE(answer["age"], 1);
        EXPECT_LE(answer["age"], 99);
        EXPECT_TRUE(answer["name"] == "Ben" || answer["name"] == "Lily");
    }
}

TEST_F(ServiceTest, AToolThatMustBeUsedIsUsed) {
    const Json parameters = Json::parse(
        R"({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false})");
    const Json request{{"messages", {{{"role", "user"}, {"content", "Do it"}}}},
                       {"tools", {{{"type", "function"}, {"function", {{"name", "act"}, {"parameters", parameters}}}}}},
                       {"tool_choice", "required"},
                       {"parallel_tool_calls", false},
                       {"max_tokens", 300},
                       {"temperature", 1},
                       {"seed", 3}};
    const Json choice = served->post("/v1/chat/completions", request).json()["choices"][0];
    EXPECT_EQ(choice["finish_reason"], "tool_calls");
    ASSERT_GE(choice["message"]["tool_calls"].size(), 1u);
    EXPECT_EQ(choice["message"]["tool_calls"][0]["function"]["name"], "act");
    EXPECT_TRUE(Json::parse(choice["message"]["tool_calls"][0]["function"]["arguments"].get<std::string>())["ok"].is_boolean());
}

TEST_F(ServiceTest, OtherApisSpeakTheirOwnWords) {
    const Json messages{{{"role", "user"}, {"content", "Hello"}}};
    // greedy: a drawn answer may end before its fourth token
    const Json ask{{"messages", messages}, {"max_tokens", 4}, {"temperature", 0}};
    const Json message = served->post("/v1/messages", ask).json();
    EXPECT_EQ(message["type"], "message");
    EXPECT_EQ(message["stop_reason"], "max_tokens");
    EXPECT_EQ(message["usage"]["output_tokens"], 4);
    const Reply stream = served->post("/v1/messages", with(ask, {{"stream", true}}));
    EXPECT_TRUE(stream.body.starts_with("event: message_start\n"));
    EXPECT_NE(stream.body.find("event: message_stop\n"), std::string::npos);
    const Json refused = served->post("/v1/messages", {{"messages", messages}}).json();
    EXPECT_EQ(refused["type"], "error");
    EXPECT_EQ(refused["error"]["type"], "invalid_request_error");
    const Json input{{"input", "Hello"}, {"max_output_tokens", 4}, {"temperature", 0}};
    const Json response = served->post("/v1/responses", input).json();
    EXPECT_EQ(response["object"], "response");
    EXPECT_EQ(response["status"], "incomplete");
    EXPECT_EQ(response["output"][0]["content"][0]["type"], "output_text");
    const auto events = sse_events(served->post("/v1/responses", with(input, {{"stream", true}})).body);
    for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i]["sequence_number"], i);
    EXPECT_EQ(events.back()["type"], "response.incomplete");
}

TEST_F(ServiceTest, TokensAndTextsAreTurnedIntoEachOther) {
    const Json tokens = served->post("/tokenize", {{"prompt", "Once upon a time"}}).json()["tokens"];
    EXPECT_EQ(served->post("/detokenize", {{"tokens", tokens}}).json()["prompt"], "Once upon a time");
}

TEST_F(ServiceTest, RequestsMayBeSentAheadOnOneConnection) {
    Client client(served->port());
    client.send(http("GET", "/version") + http("POST", "/v1/completions", kStory.dump()) + http("GET", "/health"));
    EXPECT_TRUE(client.reply().json().contains("version"));
    EXPECT_TRUE(client.reply().json().contains("choices"));
    EXPECT_EQ(client.reply().json()["status"], "ok");
}

TEST_F(ServiceTest, ClientsThatLeaveGiveBackTheirBlocks) {
    for (int i = 0; i < 50; ++i) {
        Client client(served->port());
        client.send(http("POST", "/v1/completions",
                         with(kStory, {{"stream", true}, {"max_tokens", 900}, {"ignore_eos", true}}).dump()));
        if (i % 3 != 0) (void)client.more();  // some leave before the first token
    }
    const auto after = served->quiet();
    EXPECT_EQ(after.load.running, 0);
    EXPECT_EQ(after.load.waiting, 0);
    EXPECT_EQ(after.load.used_blocks, 0);
    EXPECT_EQ(served->post("/v1/completions", kStory).status, 200);
}

TEST(Service, KeysAreAskedFor) {
    ServiceOptions options;
    options.api_keys = {"secret", "other"};
    const Served served(options);
    EXPECT_EQ(served.ask(http("GET", "/v1/models")).status, 401);
    EXPECT_EQ(served.ask(http("GET", "/v1/models", "", "Authorization: Bearer secre\r\n")).status, 401);
    EXPECT_EQ(served.ask(http("GET", "/v1/models", "", "Authorization: Bearer secret\r\n")).status, 200);
    EXPECT_EQ(served.ask(http("GET", "/v1/models", "", "X-Api-Key: other\r\n")).status, 200);
    EXPECT_EQ(served.ask(http("GET", "/health")).status, 200);
}

TEST(Service, RefusesWhatIsTooMuch) {
    ServiceOptions options;
    options.max_waiting = 0;
    options.strict = true;
    HttpLimits limits;
    limits.body_bytes = 1000;
    Served served(options, limits);
    EXPECT_EQ(served.ask(http("POST", "/v1/completions", std::string(2000, ' '))).status, 413);
    const Reply busy = served.post("/v1/completions", kStory);
    EXPECT_EQ(busy.status, 429);
    EXPECT_NE(busy.head.find("Retry-After: 1"), std::string::npos);
    served.service().drain();
    EXPECT_EQ(served.post("/v1/completions", kStory).status, 503);
    EXPECT_EQ(served.ask(http("GET", "/ready")).status, 503);
}

TEST(Service, AConnectionWhoseRequestDoesNotArriveIsClosed) {
    HttpLimits limits;
    limits.read_seconds = 0.1;
    const Served served({}, limits);
    Client slow(served.port());
    slow.send("POST /v1/completions HTTP/1.1\r\nHost: a\r\n");
    EXPECT_EQ(slow.reply().status, 0);
}

TEST(Service, AStreamThatWaitsSendsComments) {
    ServiceOptions options;
    options.ping_seconds = 0.05;
    Served served(options, {}, {.max_sequences = 1});
    Client client(served.port());
    {
        const Gate gate(served.engine());
        client.send(http("POST", "/v1/completions", with(kStory, {{"stream", true}}).dump()));
        while (client.received().find(": keep-alive\n\n") == std::string::npos) ASSERT_TRUE(client.more());
        EXPECT_EQ(client.received().find("data:"), std::string::npos);
    }
    while (client.received().find("data: [DONE]") == std::string::npos) ASSERT_TRUE(client.more());
}

TEST(Service, ARequestThatWouldWaitTooLongIsTurnedAway) {
    ServiceOptions options;
    options.ttft_slo = 1e-6;
    const Served served(options);
    EXPECT_EQ(served.post("/v1/completions", kStory).status, 200);  // nothing is known of this machine yet
    const Reply late = served.post("/v1/completions", kStory);
    EXPECT_EQ(late.status, 429);
    EXPECT_NE(late.head.find("Retry-After: "), std::string::npos);
}

TEST(Service, TokensThatFewerExpertsReadUnderOverloadAreReported) {
    Served served({}, {}, {.max_sequences = 1, .overload_experts = 1});
    const Json request = with(kStory, {{"max_tokens", 20}, {"ignore_eos", true}});
    const Json alone = served.post("/v1/completions", request).json();
    EXPECT_FALSE(alone["usage"].contains("reduced_top_k_tokens"));
    Client first(served.port()), second(served.port());
    {
        const Gate gate(served.engine());
        for (Client* client : {&first, &second}) client->send(http("POST", "/v1/completions", request.dump()));
        while (served.engine().snapshot().load.waiting < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    const Json one = first.reply().json(), other = second.reply().json();
    const bool first_ran_first = one["usage"].contains("reduced_top_k_tokens");
    const Json& crowded = (first_ran_first ? one : other)["usage"];
    EXPECT_GT(crowded["reduced_top_k_tokens"].get<int64_t>(), 0);
    EXPECT_LE(crowded["reduced_top_k_tokens"], crowded["total_tokens"]);
    const Json& after = first_ran_first ? other : one;  // nobody waited any more
    EXPECT_EQ(after["choices"][0]["text"], alone["choices"][0]["text"]);
    EXPECT_GT(served.engine().snapshot().counters.reduced_rows, 0);
    EXPECT_NE(served.ask(http("GET", "/metrics")).body.find("fathom_reduced_top_k_rows_total"), std::string::npos);
}

TEST(Service, DraftsAreReportedAndChangeNoText) {
    const Json request = with(kStory, {{"temperature", 0}, {"max_tokens", 60}, {"ignore_eos", true}});
    const Served plain, drafting({}, {}, {.draft_tokens = 1});
    const Json without = plain.post("/v1/completions", request).json(),
               reply = drafting.post("/v1/completions", request).json();
    EXPECT_EQ(reply["choices"], without["choices"]);
    EXPECT_EQ(reply["usage"], without["usage"]);
    EXPECT_FALSE(without["timings"].contains("draft_n"));
    EXPECT_GT(reply["timings"]["draft_n_accepted"].get<int64_t>(), 0);
    EXPECT_GE(reply["timings"]["draft_n"], reply["timings"]["draft_n_accepted"]);
    EXPECT_EQ(reply["timings"]["predicted_n"], 60);
    const std::string metrics = drafting.ask(http("GET", "/metrics")).body;
    EXPECT_NE(metrics.find("vllm:spec_decode_num_accepted_tokens_total"), metrics.npos);
}

}  // namespace
}  // namespace fathom
