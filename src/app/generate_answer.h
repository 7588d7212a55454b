// One request from its first token to its last: what generate and chat do with an engine.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "infer/engine.h"
#include "io/tokenizer.h"

namespace fathom {

// Tokens per second of a prompt and of its answer.
class SpeedMeter {
public:
    void token();                                                   // one more token of the answer is there
    [[nodiscard]] double prompt_rate(int64_t prompt_tokens) const;  // up to the first token
    [[nodiscard]] double answer_rate() const;                       // from the first token on; 0 for a single one
    // "prompt 12 tokens, 345.6 tokens/s; answer 78 tokens, 9.1 tokens/s"
    [[nodiscard]] std::string summary(int64_t prompt_tokens) const;

private:
    using Clock = std::chrono::steady_clock;
    Clock::time_point start_ = Clock::now(), first_, last_;
    int64_t tokens_ = 0;
};

struct Answer {
    std::vector<int32_t> ids;           // a stop id at the end included
    std::string text;                   // without it; empty without a tokenizer
    std::string finish_reason;          // stop, length or interrupted
    int64_t drafted = 0, accepted = 0;  // tokens that were guessed ahead, and that came true

    // "; 12 of 34 guesses came true (35 %)", or nothing without any.
    [[nodiscard]] std::string draft_summary() const;
};

// What becomes of the tokens as they come.
struct AnswerOptions {
    const Tokenizer* tokenizer = nullptr;  // nothing: ids only
    bool skip_special = true;
    std::vector<std::string> stops;                // texts that end the answer and are not part of it
    std::function<void(const std::string&)> show;  // whole UTF-8 characters; may be absent
    std::function<bool()> interrupted;             // asked after every step
};

// Runs the request alone, to its end or until it is interrupted.
[[nodiscard]] Answer answer_request(Engine& engine, Request request, const AnswerOptions& options, SpeedMeter& meter);

}  // namespace fathom
