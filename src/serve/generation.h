// One client's request from the engine's events to the reply, in whatever protocol.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "serve/answer_reader.h"
#include "serve/api_error.h"
#include "serve/engine_thread.h"
#include "serve/http.h"
#include "serve/metrics.h"

namespace fathom {

// What the engine is to do, and how its answers are to be read. Choice i is the answer to requests[i].
struct Job {
    std::vector<Request> requests;
    AnswerFormat format;
    int64_t prompt_tokens = 0;  // over all prompts, each counted once
    int64_t max_tokens = 0;
    bool stream = false;
    double ping_seconds = 15;  // a stream that has nothing to say sends a comment this often
};

struct Usage {
    int64_t prompt_tokens = 0, cached_tokens = 0, answer_tokens = 0, reasoning_tokens = 0;
    int64_t drafted = 0, accepted = 0;              // tokens guessed ahead, and those that came true
    int64_t reduced_tokens = 0;                     // of prompt and answer, that fewer experts read
    double prompt_seconds = 0, answer_seconds = 0;  // up to the first token, waiting included; from there on
};

// All that came for one choice.
struct Answer {
    AnswerDelta all;  // deltas added up
    std::vector<TokenLogprobs> prompt;
};

// Writes replies in one API's words. One object per request; calls come in the order below.
class Protocol {
public:
    virtual ~Protocol() = default;

    // A reply in one piece.
    [[nodiscard]] virtual Json whole(const std::vector<Answer>& answers, const Usage& usage) = 0;

    // A stream of server-sent events: text to send as it is.
    [[nodiscard]] virtual std::string begin() { return {}; }
    [[nodiscard]] virtual std::string delta(int64_t choice, const AnswerDelta& delta, const std::vector<TokenLogprobs>& prompt,
                                            const Usage& so_far) = 0;
    [[nodiscard]] virtual std::string end(const Usage& usage) = 0;

    [[nodiscard]] virtual Json error(const ApiError& error) const { return openai_error(error); }
    [[nodiscard]] virtual std::string stream_error(const ApiError& failure) const;
};

// "data: {...}\n\n", with an "event: NAME" line in front when there is a name.
[[nodiscard]] std::string sse(const Json& data, std::string_view event = {});

// Starts the job; the reply is written as the answers come. On the exchange's thread. All but the job must outlive the
// exchange.
void start_generation(std::shared_ptr<HttpExchange> exchange, EngineThread& engine, const Tokenizer& tokenizer,
                      Metrics& metrics, Job job, std::unique_ptr<Protocol> protocol);

}  // namespace fathom
