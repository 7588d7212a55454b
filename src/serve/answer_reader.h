// The tokens of one answer as they become text, thinking, tool calls and log-probabilities.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "infer/engine.h"
#include "infer/stop_strings.h"
#include "io/tokenizer.h"
#include "serve/reply_splitter.h"

namespace fathom {

// How an answer is to be read.
struct AnswerFormat {
    std::vector<std::string> stops;
    bool include_stop = false;  // the text keeps the stop string
    bool skip_special = true;
    bool chat = false;  // split into thinking, text and tool calls; then special tokens are read as their text
    ChatStyle style = ChatStyle::kV3;
    bool thinking = false, tools = false;
    bool logprobs = false;
    bool whole_text_is_call = false;  // the answer is the arguments of one call (a tool that must be used)
    std::string call_name;
};

struct TokenText {
    int32_t id = 0;
    float logprob = 0;
    std::vector<Sample> top;
};

struct AnswerDelta {
    ReplyDelta reply;
    std::vector<TokenText> tokens;  // of this step; with text that is held back, too
    std::string finish;             // "stop", "length", "tool_calls" or "error", with the last delta
    std::string error;
    std::string stop;  // the stop string that ended it
};

class AnswerReader {
public:
    // The tokenizer must outlive it.
    AnswerReader(const Tokenizer& tokenizer, AnswerFormat format);

    [[nodiscard]] AnswerDelta push(const TokenEvent& event);
    [[nodiscard]] bool done() const { return done_; }  // the engine may go on, e.g. behind a stop string: cancel it then
    [[nodiscard]] int64_t tokens() const { return tokens_; }
    [[nodiscard]] int64_t reasoning_tokens() const { return reasoning_tokens_; }
    [[nodiscard]] int64_t calls() const { return splitter_ ? splitter_->calls() : calls_; }

private:
    AnswerFormat format_;
    StreamDecoder decoder_;
    StopStrings stops_;
    std::optional<ReplySplitter> splitter_;
    bool done_ = false;
    int64_t tokens_ = 0, reasoning_tokens_ = 0, calls_ = 0;

    void show(ReplyDelta& delta, const std::string& text, bool last);
};

}  // namespace fathom
