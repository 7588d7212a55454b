#include "rl/prompts.h"

#include <fmt/format.h>
#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/shuffle.h"
#include "io/chat_examples.h"
#include "rl/json_lines.h"

namespace fathom {
namespace {

Prompt parse_prompt(const nlohmann::json& line, const Tokenizer& tokenizer, const ChatFormat& format, bool thinking) {
    Prompt prompt;
    prompt.record = line;
    const char* key = prompt.record.is_object() && prompt.record.contains("messages") ? "messages" : "prompt";
    if (!prompt.record.is_object() || !prompt.record.contains(key))
        throw Error(ErrorKind::kInput, R"(needs "prompt" (a text or a list of messages))");
    const nlohmann::json& value = prompt.record[key];
    if (value.is_string()) {
        if (const auto bos = tokenizer.bos_id()) prompt.tokens.push_back(*bos);
        const std::vector<int32_t> ids = tokenizer.encode(value.get<std::string>(), false);
        prompt.tokens.insert(prompt.tokens.end(), ids.begin(), ids.end());
    } else {
        std::vector<ChatMessage> messages = parse_messages(value);
        while (!messages.empty() && messages.back().role == Role::kAssistant) messages.pop_back();  // answers are to be found
        prompt.tokens = tokenizer.encode(format.prompt(messages, thinking));
    }
    if (prompt.tokens.empty()) throw Error(ErrorKind::kInput, "the prompt is empty");
    return prompt;
}

}  // namespace

PromptSet read_prompts(std::span<const std::filesystem::path> files, const Tokenizer& tokenizer, const ChatFormat& format,
                       bool thinking, int64_t max_length) {
    PromptSet result;
    for_each_json_line(files, [&](const nlohmann::json& line) {
        Prompt prompt = parse_prompt(line, tokenizer, format, thinking);
        if (std::ssize(prompt.tokens) > max_length)
            ++result.overlong;
        else
            result.prompts.push_back(std::move(prompt));
    });
    return result;
}

PromptOrder::PromptOrder(int64_t count, uint64_t seed) : seed_(seed), order_(static_cast<size_t>(count)) {
    check(count > 0, "PromptOrder: needs prompts");
    begin_epoch(0);
}

void PromptOrder::begin_epoch(int64_t epoch) {
    epoch_ = epoch;
    position_ = 0;
    std::iota(order_.begin(), order_.end(), 0);
    Rng rng(seed_, static_cast<uint64_t>(epoch));
    shuffle(order_, rng);
}

int64_t PromptOrder::next() {
    if (position_ == std::ssize(order_)) begin_epoch(epoch_ + 1);
    return order_[static_cast<size_t>(position_++)];
}

void PromptOrder::restore(const BatchSource::State& state) {
    if (state.epoch < 0 || state.position < 0 || state.position > std::ssize(order_)) {
        throw Error(ErrorKind::kInput, fmt::format("no place of this data: epoch {}, prompt {} of {}; resume with the data and "
                                                   "grpo.max_prompt_length the run was begun with",
                                                   state.epoch, state.position, order_.size()));
    }
    if (state.epoch != epoch_) begin_epoch(state.epoch);
    position_ = state.position;
}

}  // namespace fathom
