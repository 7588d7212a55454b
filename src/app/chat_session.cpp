#include "app/chat_session.h"

#include <fmt/format.h>
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/interrupt.h"

namespace fathom {
namespace {

constexpr int64_t kRoomForReply = 64;  // tokens below which old turns are dropped

}  // namespace

ChatSession::ChatSession(const ChatOptions& options, const Globals& globals)
    : sampling(options.sampling.resolve(options.model.model)),
      max_new_tokens(options.max_new_tokens),
      options_(options),
      model_(options.model, globals, OpenModel::Text::kNeeded),
      raw_(options.raw),
      engine_(model_.model(), model_.ops(),
              model_.engine_options(std::min(options.context, model_.config().max_position_embeddings))) {
    if (!raw_) format_ = choose_chat_format(model_, options.model.model, "auto");
    raw_ = !format_;
    if (raw_) return;
    thinking = thinks();
    set_system(options.system);
}

bool ChatSession::thinks() const {
    return format_ && (format_->style() == ChatStyle::kR1 || format_->style() == ChatStyle::kV31);
}

void ChatSession::clear() {
    std::erase_if(messages_, [](const ChatMessage& message) { return message.role != Role::kSystem; });
    story_.clear();
    used_tokens_ = dropped_ = 0;
}

void ChatSession::set_system(const std::string& text) {
    std::erase_if(messages_, [](const ChatMessage& message) { return message.role == Role::kSystem; });
    if (!text.empty()) messages_.insert(messages_.begin(), {Role::kSystem, text});
}

// The conversation as ids. When it leaves no room for a reply, the oldest question and answer are dropped.
std::vector<int32_t> ChatSession::prompt_ids() {
    if (raw_) return model_.encode_prompt(story_);
    while (true) {
        std::vector<int32_t> ids = model_.tokenizer()->encode(format_->prompt(messages_, thinking));
        if (static_cast<int64_t>(ids.size()) + kRoomForReply <= engine_.max_length()) return ids;
        const auto first = std::ranges::find(messages_, Role::kUser, &ChatMessage::role);
        const auto next = std::ranges::find(first + 1, messages_.end(), Role::kUser, &ChatMessage::role);
        if (next == messages_.end()) return ids;  // a single question: the engine says whether it fits
        messages_.erase(first, next);
        ++dropped_;
    }
}

Answer ChatSession::answer(std::vector<int32_t> prompt, const std::function<void(const std::string&)>& show) {
    Request request;
    request.prompt = std::move(prompt);
    request.sampling = sampling;
    request.stream = static_cast<uint64_t>(turns_++);
    request.max_new_tokens = max_new_tokens;
    request.stop_ids = model_.stop_ids();
    std::vector<std::string> stops = options_.stop;
    if (format_) {
        for (const std::string& text : format_->stop_texts()) stops.push_back(text);
    }
    const auto tokens = static_cast<int64_t>(request.prompt.size());
    const int64_t reused_before = engine_.counters().reused_tokens;
    SpeedMeter meter;
    const AnswerOptions how{.tokenizer = model_.tokenizer(),
                            .skip_special = !thinking,  // the end of thinking is a token
                            .stops = std::move(stops),
                            .show = show,
                            .interrupted = take_interrupt};
    Answer result = answer_request(engine_, std::move(request), how, meter);
    const int64_t reused = engine_.counters().reused_tokens - reused_before;
    used_tokens_ = tokens + static_cast<int64_t>(result.ids.size());
    speed_ = meter.summary(tokens - reused) + result.draft_summary();
    if (reused > 0) speed_ += fmt::format("; {} tokens were in the cache", reused);
    return result;
}

void ChatSession::reply(const std::string& text, const std::function<void(const std::string&)>& show) {
    if (raw_) {
        const std::string before = story_;
        story_ = text.empty() ? story_ : text;
        if (story_.empty()) return;
        try {
            story_ += answer(prompt_ids(), show).text;
        } catch (const Error&) {
            story_ = before;
            throw;
        }
        return;
    }
    messages_.push_back({Role::kUser, text});
    try {
        const ChatReply said = format_->parse(answer(prompt_ids(), show).text, thinking);
        messages_.push_back({Role::kAssistant, said.content, said.reasoning, said.tool_calls});
    } catch (const Error&) {
        messages_.pop_back();  // a question that could not be asked was not asked
        throw;
    }
}

std::vector<std::pair<std::string, std::string>> ChatSession::facts() const {
    const auto style = [&]() -> std::string {
        if (raw_) return "none: your text is continued";
        switch (format_->style()) {
            case ChatStyle::kV2:
                return "DeepSeek-V2";
            case ChatStyle::kV3:
                return "DeepSeek-V3";
            case ChatStyle::kR1:
                return "DeepSeek-R1";
            default:
                return "DeepSeek-V3.1";
        }
    };
    std::vector<std::pair<std::string, std::string>> result{
        {"model", options_.model.model},
        {"chat format", style()},
        {"context", fmt::format("{} of {} tokens used", used_tokens_, engine_.max_length())},
        {"temperature", fmt::format("{:g}", sampling.temperature)},
        {"top_p", fmt::format("{:g}", sampling.top_p)},
        {"top_k", std::to_string(sampling.top_k)},
        {"min_p", fmt::format("{:g}", sampling.min_p)},
        {"repetition_penalty", fmt::format("{:g}", sampling.repetition_penalty)},
        {"frequency_penalty", fmt::format("{:g}", sampling.frequency_penalty)},
        {"presence_penalty", fmt::format("{:g}", sampling.presence_penalty)},
        {"seed", std::to_string(sampling.seed)},
        {"max_new_tokens", std::to_string(max_new_tokens)}};
    if (thinks()) result.emplace_back("think", thinking ? "on" : "off");
    for (const ChatMessage& message : messages_) {
        if (message.role == Role::kSystem) result.emplace_back("system", message.content);
    }
    return result;
}

}  // namespace fathom
