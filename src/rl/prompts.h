// The questions of reinforcement learning: JSON Lines with a prompt, and whatever else the rewards need to judge an answer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "io/chat_format.h"
#include "io/packed_loader.h"
#include "io/tokenizer.h"

namespace fathom {

struct Prompt {
    nlohmann::json record;  // the whole line
    std::vector<int32_t> tokens;
};

struct PromptSet {
    std::vector<Prompt> prompts;
    int64_t overlong = 0;  // left out: more than max_length tokens
};

// A line's "prompt" is a text ([BOS] text) or a list of messages (the chat format's prompt); "messages" ending with the user's
// turn does as well. Throws Error{kInput} naming file and line.
[[nodiscard]] PromptSet read_prompts(std::span<const std::filesystem::path> files, const Tokenizer& tokenizer,
                                     const ChatFormat& format, bool thinking, int64_t max_length);

// Indices of prompts for ever, in a new order every epoch: a function of the seed alone.
class PromptOrder {
public:
    PromptOrder(int64_t count, uint64_t seed);

    [[nodiscard]] int64_t next();
    [[nodiscard]] BatchSource::State state() const { return {epoch_, position_}; }
    // Throws Error{kInput} where the data has fewer prompts than the state says.
    void restore(const BatchSource::State& state);

private:
    uint64_t seed_;
    std::vector<int64_t> order_;
    int64_t epoch_ = 0, position_ = 0;

    void begin_epoch(int64_t epoch);
};

}  // namespace fathom
