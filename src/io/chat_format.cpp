#include "io/chat_format.h"

#include <algorithm>
#include <cctype>

#include "base/error.h"

namespace fathom {
namespace {

constexpr std::string_view kUser = "<｜User｜>", kAssistant = "<｜Assistant｜>";
constexpr std::string_view kThinkOpen = "<think>", kThinkClose = "</think>";
constexpr std::string_view kCallsBegin = "<｜tool▁calls▁begin｜>", kCallsEnd = "<｜tool▁calls▁end｜>";
constexpr std::string_view kCallBegin = "<｜tool▁call▁begin｜>", kCallEnd = "<｜tool▁call▁end｜>",
                           kSeparator = "<｜tool▁sep｜>";
constexpr std::string_view kOutputsBegin = "<｜tool▁outputs▁begin｜>", kOutputsEnd = "<｜tool▁outputs▁end｜>";
constexpr std::string_view kOutputBegin = "<｜tool▁output▁begin｜>", kOutputEnd = "<｜tool▁output▁end｜>";
constexpr std::string_view kFenceOpen = "\n```json\n", kFenceClose = "\n```";

std::string join(std::initializer_list<std::string_view> texts) {
    std::string joined;
    for (const std::string_view text : texts) joined += text;
    return joined;
}

std::string system_text(std::span<const ChatMessage> messages) {
    std::string text;
    bool first = true;
    for (const ChatMessage& message : messages) {
        if (message.role != Role::kSystem) continue;
        if (!first) text += "\n\n";
        text += message.content;
        first = false;
    }
    return text;
}

std::string_view trim(std::string_view text) {
    constexpr std::string_view kSpaces = " \t\r\n";
    const size_t begin = std::min(text.find_first_not_of(kSpaces), text.size());
    return text.substr(begin, text.find_last_not_of(kSpaces) + 1 - begin);
}

// What a past turn is prompted with: its text without the thinking that a client may have left in it.
std::string_view without_thinking(std::string_view content) {
    const size_t close = content.rfind(kThinkClose);
    return close == content.npos ? content : content.substr(close + kThinkClose.size());
}

// Takes everything up to `mark` off the front of `text`; false and unchanged when the mark is not there.
bool take_until(std::string_view& text, std::string_view mark, std::string_view& taken) {
    const size_t at = text.find(mark);
    if (at == text.npos) return false;
    taken = text.substr(0, at);
    text.remove_prefix(at + mark.size());
    return true;
}

// "function<sep>name\n```json\nargs\n```" (V3, R1) or "name<sep>args" (V3.1).
ToolCall parse_call(std::string_view call) {
    std::string_view head;
    if (!take_until(call, kSeparator, head)) return {std::string(trim(call)), "{}"};
    std::string_view name;
    if (!take_until(call, kFenceOpen, name)) return {std::string(trim(head)), std::string(trim(call))};
    const size_t close = call.rfind(kFenceClose);
    return {std::string(trim(name)), std::string(trim(call.substr(0, close)))};
}

std::string lower(std::string_view text) {
    std::string result(text);
    std::transform(result.begin(), result.end(), result.begin(), [](unsigned char c) { return std::tolower(c); });
    return result;
}

}  // namespace

ChatFormat::ChatFormat(ChatStyle style, std::string bos, std::string eos)
    : style_(style),
      bos_(std::move(bos)),
      eos_(std::move(eos)) {}

ChatFormat ChatFormat::choose(const Tokenizer& tokenizer, std::string_view model_type, std::string_view name) {
    const auto text_of = [&](std::optional<int32_t> id) {
        return id ? std::string(tokenizer.token_bytes(*id)) : std::string();
    };
    const std::string known_as = lower(name);
    ChatStyle style = ChatStyle::kV3;
    if (!tokenizer.id_of(kUser) || model_type == "deepseek")
        style = ChatStyle::kV2;
    else if (known_as.find("v3.1") != known_as.npos)
        style = ChatStyle::kV31;
    else if (known_as.find("r1") != known_as.npos)
        style = ChatStyle::kR1;
    return ChatFormat(style, text_of(tokenizer.bos_id()), text_of(tokenizer.eos_id()));
}

std::string ChatFormat::prompt(std::span<const ChatMessage> messages, bool thinking) const {
    return style_ == ChatStyle::kV2 ? prompt_v2(messages) : prompt_v3(messages, thinking);
}

std::string ChatFormat::prompt_v2(std::span<const ChatMessage> messages) const {
    std::string text = bos_;
    if (const std::string system = system_text(messages); !system.empty()) text += system + "\n\n";
    for (size_t i = 0; i < messages.size(); ++i) {
        const ChatMessage& message = messages[i];
        if (message.role == Role::kTool || !message.tool_calls.empty())
            throw Error(ErrorKind::kInput, "the V2 chat format has no way to say tool calls or their results");
        if (message.role == Role::kUser) text += "User: " + message.content + "\n\n";
        if (message.role == Role::kAssistant) {
            text += "Assistant: " + message.content;
            if (i + 1 == messages.size()) return text;
            text += eos_;
        }
    }
    return text + "Assistant:";
}

std::string ChatFormat::tool_calls(const ChatMessage& message) const {
    std::string text(kCallsBegin);
    const bool fenced = style_ != ChatStyle::kV31;
    for (size_t i = 0; i < message.tool_calls.size(); ++i) {
        const ToolCall& call = message.tool_calls[i];
        if (fenced && i > 0) text += "\n";
        if (fenced)
            text += join({kCallBegin, "function", kSeparator, call.name, kFenceOpen, call.arguments, kFenceClose, kCallEnd});
        else
            text += join({kCallBegin, call.name, kSeparator, call.arguments, kCallEnd});
    }
    return text += kCallsEnd;
}

// After a tool's results the model goes on in the same turn, without a new role token.
std::string ChatFormat::assistant_turn(const ChatMessage& message, Role before, bool open) const {
    std::string text;
    if (before != Role::kTool) {
        text += kAssistant;
        if (style_ == ChatStyle::kV31) text += kThinkClose;
    }
    text += without_thinking(message.content);
    if (open) return text;
    if (!message.tool_calls.empty()) text += tool_calls(message);
    return text + eos_;
}

std::string ChatFormat::prompt_v3(std::span<const ChatMessage> messages, bool thinking) const {
    const bool grouped = style_ != ChatStyle::kV31;  // results stand in one <outputs> block
    std::string text = bos_ + system_text(messages);
    Role before = Role::kSystem;
    bool open = false;
    for (size_t i = 0; i < messages.size(); ++i) {
        const ChatMessage& message = messages[i];
        if (message.role == Role::kSystem) continue;
        if (grouped && before == Role::kTool && message.role != Role::kTool) text += kOutputsEnd;
        if (message.role == Role::kUser) text += join({kUser, message.content});
        if (message.role == Role::kAssistant) {
            open = i + 1 == messages.size() && message.tool_calls.empty();
            text += assistant_turn(message, before, open);
        }
        if (message.role == Role::kTool) {
            if (grouped) text += before == Role::kTool ? "\n" : kOutputsBegin;
            text += join({kOutputBegin, message.content, kOutputEnd});
        }
        before = message.role;
    }
    if (open) return text;
    if (before == Role::kTool) return grouped ? text += kOutputsEnd : text;
    text += kAssistant;
    if (style_ == ChatStyle::kV31) text += thinking ? kThinkOpen : kThinkClose;
    if (style_ == ChatStyle::kR1) text += thinking ? "<think>\n" : "<think>\n\n</think>\n\n";
    return text;
}

std::string ChatFormat::reply(const ChatMessage& message, bool thinking) const {
    const std::string content(without_thinking(message.content));
    if (style_ == ChatStyle::kV2) {
        if (!message.tool_calls.empty()) throw Error(ErrorKind::kInput, "the V2 chat format has no way to say tool calls");
        return " " + content + eos_;
    }
    std::string text;
    if (thinking && style_ == ChatStyle::kV31) text = message.reasoning + std::string(kThinkClose);
    if (thinking && style_ == ChatStyle::kR1) text = message.reasoning + "\n</think>\n\n";  // <think> is the prompt's
    if (thinking && style_ == ChatStyle::kV3) text = "<think>\n" + message.reasoning + "\n</think>\n\n";
    text += content;
    if (!message.tool_calls.empty()) text += tool_calls(message);
    return text + eos_;
}

ChatReply ChatFormat::parse(std::string_view reply, bool thinking) const {
    ChatReply result;
    std::string_view text = reply, taken;
    if (!eos_.empty() && text.ends_with(eos_)) text.remove_suffix(eos_.size());
    const bool opens = trim(text).starts_with(kThinkOpen);
    if (style_ != ChatStyle::kV2 && (thinking || opens || text.find(kThinkClose) != text.npos)) {
        if (opens) text.remove_prefix(text.find(kThinkOpen) + kThinkOpen.size());
        if (!take_until(text, kThinkClose, taken)) {
            taken = text;
            text = {};
        }
        result.reasoning = trim(taken);
        text = trim(text);
    }
    std::string_view calls = text;
    if (style_ != ChatStyle::kV2 && take_until(calls, kCallsBegin, taken)) {
        text = taken;
        calls = calls.substr(0, calls.find(kCallsEnd));
        while (take_until(calls, kCallBegin, taken) && take_until(calls, kCallEnd, taken))
            result.tool_calls.push_back(parse_call(taken));
    }
    result.content = style_ == ChatStyle::kV2 ? trim(text) : text;
    return result;
}

std::vector<std::string> ChatFormat::stop_texts() const {
    return style_ == ChatStyle::kV2 ? std::vector<std::string>{"\n\nUser:"} : std::vector<std::string>{};
}

}  // namespace fathom
