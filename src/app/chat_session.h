// A conversation with a model, turn by turn. What was said stays in the engine's cache, so a turn computes only what is new.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "app/generate_answer.h"
#include "app/generate_model.h"
#include "io/chat_format.h"

namespace fathom {

struct ChatOptions {
    ModelOptions model;
    SamplingOptions sampling;
    std::string system;
    int64_t context = 8192;  // tokens of a conversation, at most what the model reads
    int64_t max_new_tokens = 1024;
    std::vector<std::string> stop;
    bool raw = false;  // continue what the user writes instead of answering it
};

class ChatSession {
public:
    ChatSession(const ChatOptions& options, const Globals& globals);

    // One turn: answers `text`, or continues it when raw (an empty text goes on with the last one). `show` gets the reply as it
    // comes; Ctrl-C ends it early, and what was said until then counts. Throws Error{kInput} for a text that is too long.
    void reply(const std::string& text, const std::function<void(const std::string&)>& show);
    // Forgets the conversation; the system text stays.
    void clear();
    void set_system(const std::string& text);

    [[nodiscard]] bool raw() const { return raw_; }
    [[nodiscard]] bool thinks() const;  // whether the format knows thinking
    // "12 new + 345 cached tokens, 678.9 tokens/s; answer ..." of the last reply.
    [[nodiscard]] const std::string& last_speed() const { return speed_; }
    // Set and shown by the user between turns.
    SamplingParams sampling;
    int64_t max_new_tokens;
    bool thinking = false;
    // For /show: name and value of everything worth knowing.
    [[nodiscard]] std::vector<std::pair<std::string, std::string>> facts() const;
    [[nodiscard]] int64_t dropped_turns() const { return dropped_; }  // old ones, since the last clear, for want of context

private:
    const ChatOptions& options_;
    OpenModel model_;
    bool raw_;
    std::optional<ChatFormat> format_;
    Engine engine_;
    std::vector<ChatMessage> messages_;
    std::string story_;  // raw: all of it
    std::string speed_;
    int64_t turns_ = 0, used_tokens_ = 0, dropped_ = 0;

    [[nodiscard]] std::vector<int32_t> prompt_ids();
    [[nodiscard]] Answer answer(std::vector<int32_t> prompt, const std::function<void(const std::string&)>& show);
};

}  // namespace fathom
