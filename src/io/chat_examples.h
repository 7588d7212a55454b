// Conversations as training examples: the tokens a model will see in use, and which of them it should have said.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/threads.h"
#include "io/chat_format.h"
#include "io/packed_loader.h"
#include "io/tokenizer.h"

namespace fathom {

// One sequence; learned[i] says whether tokens[i] is to be predicted.
struct ChatExample {
    std::vector<int32_t> tokens;
    std::vector<uint8_t> learned;

    [[nodiscard]] bool teaches() const;  // any token is learned
    bool operator==(const ChatExample&) const = default;
};

// {"role": ..., "content": ..., "reasoning_content": ..., "tool_calls": [...]} as in OpenAI's API. Throws Error{kInput} saying
// what is wrong with which message.
[[nodiscard]] std::vector<ChatMessage> parse_messages(const nlohmann::json& messages);

// A conversation, each assistant turn learned behind exactly the prompt that a chat would give it. Where a later prompt repeats
// what came before, turns share one sequence; where it does not (formats that drop earlier thinking), a new one begins.
// Thinking (ChatMessage::reasoning) is part of what is learned.
[[nodiscard]] std::vector<ChatExample> chat_examples(std::span<const ChatMessage> messages, const ChatFormat& format,
                                                     const Tokenizer& tokenizer);
// Plain text: [BOS] prompt completion EOS, the completion and EOS learned.
[[nodiscard]] ChatExample completion_example(std::string_view prompt, std::string_view completion, const Tokenizer& tokenizer);

// A prompt with one answer, both texts or lists of messages, as one sequence that ends with the answer: what was learned last
// in the examples above. Throws Error{kInput} where there is no answer.
[[nodiscard]] std::vector<int32_t> conversation_tokens(const nlohmann::json& prompt, const nlohmann::json& answer,
                                                       const ChatFormat& format, const Tokenizer& tokenizer);

struct ChatExamplesOptions {
    int64_t max_length = 0;  // tokens; longer examples are cut there, or left out
    bool drop_overlong = false;
    bool learn_prompts = false;  // the loss counts every token
};

struct ChatExamples {
    std::vector<ChatExample> examples;
    int64_t conversations = 0, cut = 0, dropped = 0;  // dropped: too long, or nothing left to learn
};

// JSON Lines. A line is {"messages": [...]}, {"prompt": ..., "completion": ...} with texts or lists of messages, or
// {"instruction": ..., "input": ..., "output": ...}. Throws Error{kInput} naming file and line.
[[nodiscard]] ChatExamples read_chat_examples(std::span<const std::filesystem::path> files, const ChatFormat& format,
                                              const Tokenizer& tokenizer, const ChatExamplesOptions& options,
                                              ThreadPool& threads);

struct ChatLoaderOptions {
    int64_t max_tokens = 0;  // of a batch
    uint64_t seed = 0;
    bool shuffle = true;  // true: for ever, in a new order every epoch; false: in file order, once
};

// Batches of whole examples, each a segment of its own: attention and positions never leave it. A batch takes examples in order
// as long as they fit, so nothing is cut and nothing is padded.
class ChatLoader : public BatchSource {
public:
    ChatLoader(std::vector<ChatExample> examples, const ChatLoaderOptions& options);

    [[nodiscard]] std::optional<TokenBatch> next() override;
    [[nodiscard]] State state() const override { return {epoch_, position_}; }  // position: examples already handed out
    void restore(const State& state) override;

private:
    std::vector<ChatExample> examples_;
    ChatLoaderOptions options_;
    std::vector<int64_t> order_;  // of this epoch
    int64_t epoch_ = 0, position_ = 0;

    void begin_epoch(int64_t epoch);
};

// Lays sequences one behind the other. Target of token i: the next one where that is learned.
[[nodiscard]] TokenBatch pack_examples(std::span<const ChatExample* const> examples);

}  // namespace fathom
