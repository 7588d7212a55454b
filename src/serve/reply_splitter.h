// A chat model's reply, taken apart while it is being written: thinking, text, tool calls.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/chat_format.h"

namespace fathom {

// What came to one tool call: its name first, whole, then its arguments (JSON text) in pieces.
struct ToolCallDelta {
    int64_t index = 0;
    std::string name, arguments;
    bool operator==(const ToolCallDelta&) const = default;
};

struct ReplyDelta {
    std::string reasoning, content;
    std::vector<ToolCallDelta> calls;

    [[nodiscard]] bool empty() const { return reasoning.empty() && content.empty() && calls.empty(); }
};

// The streaming twin of ChatFormat::parse: however the text is cut into pieces, the deltas add up to the same reply.
class ReplySplitter {
public:
    // thinking: the prompt ended inside the thinking. tools: text between the tool-call tokens is calls, not content.
    ReplySplitter(ChatStyle style, bool thinking, bool tools);

    [[nodiscard]] ReplyDelta push(std::string_view text);
    [[nodiscard]] ReplyDelta finish();  // the text ends here
    [[nodiscard]] bool in_reasoning() const { return state_ == State::kReasoning; }
    [[nodiscard]] int64_t calls() const { return calls_; }

private:
    enum class State : uint8_t { kStart, kReasoning, kContent, kBetweenCalls, kCallName, kArguments, kAfterCalls };
    State state_;
    bool style_v2_, tools_;
    bool fresh_ = true;  // nothing but spaces came in this state, which are dropped
    bool trim_ = false;  // the content follows thinking: its outer spaces are dropped
    int64_t calls_ = 0;
    bool fenced_ = false;
    std::string held_;

    [[nodiscard]] bool advance(ReplyDelta& delta, bool last);
    [[nodiscard]] bool start(bool last);
    [[nodiscard]] bool reasoning(ReplyDelta& delta, bool last);
    [[nodiscard]] bool content(ReplyDelta& delta, bool last);
    [[nodiscard]] bool between_calls();
    [[nodiscard]] bool call_name(ReplyDelta& delta, bool last);
    [[nodiscard]] bool arguments(ReplyDelta& delta, bool last);
    void enter(State state);
    [[nodiscard]] std::string take(size_t end, size_t skip = 0);
};

}  // namespace fathom
