#include "serve/reply_splitter.h"

#include <algorithm>

namespace fathom {
namespace {

constexpr std::string_view kThinkOpen = "<think>", kThinkClose = "</think>";
constexpr std::string_view kCallsBegin = "<｜tool▁calls▁begin｜>", kCallsEnd = "<｜tool▁calls▁end｜>";
constexpr std::string_view kCallBegin = "<｜tool▁call▁begin｜>", kCallEnd = "<｜tool▁call▁end｜>",
                           kSeparator = "<｜tool▁sep｜>";
constexpr std::string_view kFenceOpen = "\n```json\n", kFenceClose = "\n```";
constexpr std::string_view kSpaces = " \t\r\n";

// How much of `text` certainly stands before `mark`, which it does not hold whole.
size_t safe_length(std::string_view text, std::string_view mark) {
    for (size_t part = std::min(mark.size() - 1, text.size()); part > 0; --part) {
        if (text.ends_with(mark.substr(0, part))) return text.size() - part;
    }
    return text.size();
}

// Without trailing spaces, which may turn out to stand before a mark.
size_t trimmed_length(std::string_view text) {
    const size_t last = text.find_last_not_of(kSpaces);
    return last == text.npos ? 0 : last + 1;
}

}  // namespace

ReplySplitter::ReplySplitter(ChatStyle style, bool thinking, bool tools)
    : state_(style == ChatStyle::kV2 ? State::kContent
             : thinking              ? State::kReasoning
                                     : State::kStart),
      style_v2_(style == ChatStyle::kV2),
      tools_(tools && style != ChatStyle::kV2),
      trim_(style == ChatStyle::kV2) {}

ReplyDelta ReplySplitter::push(std::string_view text) {
    held_ += text;
    ReplyDelta delta;
    while (advance(delta, false)) {
    }
    return delta;
}

ReplyDelta ReplySplitter::finish() {
    ReplyDelta delta;
    while (advance(delta, true)) {
    }
    return delta;
}

void ReplySplitter::enter(State state) {
    state_ = state;
    fresh_ = true;
}

std::string ReplySplitter::take(size_t end, size_t skip) {
    std::string taken = held_.substr(0, end);
    held_.erase(0, end + skip);
    return taken;
}

// True when the state changed, and there may be more to read.
bool ReplySplitter::advance(ReplyDelta& delta, bool last) {
    switch (state_) {
        case State::kStart:
            return start(last);
        case State::kReasoning:
            return reasoning(delta, last);
        case State::kContent:
            return content(delta, last);
        case State::kBetweenCalls:
            return between_calls();
        case State::kCallName:
            return call_name(delta, last);
        case State::kArguments:
            return arguments(delta, last);
        case State::kAfterCalls:
            held_.clear();
            return false;
    }
    return false;
}

// A reply may open with thinking although nobody asked for it.
bool ReplySplitter::start(bool last) {
    const size_t first = held_.find_first_not_of(kSpaces);
    const std::string_view rest = std::string_view(held_).substr(std::min(first, held_.size()));
    if (rest.starts_with(kThinkOpen)) {
        held_.erase(0, first + kThinkOpen.size());
        enter(State::kReasoning);
        return true;
    }
    if (!last && kThinkOpen.starts_with(rest)) return false;
    enter(State::kContent);
    return true;
}

bool ReplySplitter::reasoning(ReplyDelta& delta, bool last) {
    if (fresh_) {  // a format's own opening may be repeated by the model
        const size_t first = std::min(held_.find_first_not_of(kSpaces), held_.size());
        const std::string_view rest = std::string_view(held_).substr(first);
        if (!last && rest.size() < kThinkOpen.size() && kThinkOpen.starts_with(rest)) return false;
        held_.erase(0, first + (rest.starts_with(kThinkOpen) ? kThinkOpen.size() : 0));
        if (rest.starts_with(kThinkOpen)) return true;
        fresh_ = false;
    }
    const size_t close = held_.find(kThinkClose);
    if (close != held_.npos) {
        const std::string taken = take(close, kThinkClose.size());
        delta.reasoning += taken.substr(0, trimmed_length(taken));
        trim_ = true;
        enter(State::kContent);
        return true;
    }
    const size_t safe = last ? held_.size() : safe_length(held_, kThinkClose);
    delta.reasoning += take(trimmed_length(std::string_view(held_).substr(0, safe)));
    return false;
}

bool ReplySplitter::content(ReplyDelta& delta, bool last) {
    if (trim_ && fresh_) {
        held_.erase(0, std::min(held_.find_first_not_of(kSpaces), held_.size()));
        fresh_ = held_.empty();
    }
    const auto shown = [&](std::string_view text) { return trim_ ? trimmed_length(text) : text.size(); };
    const size_t begin = tools_ ? held_.find(kCallsBegin) : held_.npos;
    if (begin != held_.npos) {
        const std::string taken = take(begin, kCallsBegin.size());
        delta.content += taken;
        enter(State::kBetweenCalls);
        return true;
    }
    const size_t safe = last || !tools_ ? held_.size() : safe_length(held_, kCallsBegin);
    delta.content += take(shown(std::string_view(held_).substr(0, safe)));
    return false;
}

bool ReplySplitter::between_calls() {
    const size_t next = held_.find(kCallBegin), end = held_.find(kCallsEnd);
    if (next < end) {
        (void)take(next, kCallBegin.size());
        enter(State::kCallName);
        return true;
    }
    if (end == held_.npos) return false;
    enter(State::kAfterCalls);
    return true;
}

// "function<sep>name\n```json\n" (V3, R1) or "name<sep>" (V3.1).
bool ReplySplitter::call_name(ReplyDelta& delta, bool last) {
    const size_t separator = held_.find(kSeparator), end = held_.find(kCallEnd);
    const auto begin_call = [&](std::string_view name) {
        const size_t first = std::min(name.find_first_not_of(kSpaces), name.size());
        name = name.substr(first, trimmed_length(name) - std::min(first, trimmed_length(name)));
        delta.calls.push_back({calls_++, std::string(name), ""});
        enter(State::kArguments);
    };
    if (end < separator) {  // no arguments at all
        begin_call(std::string_view(held_).substr(0, end));
        delta.calls.back().arguments = "{}";
        (void)take(end, kCallEnd.size());
        enter(State::kBetweenCalls);
        return true;
    }
    if (separator == held_.npos) return false;
    const std::string_view after = std::string_view(held_).substr(separator + kSeparator.size());
    const size_t fence = after.find(kFenceOpen), line = after.find('\n');
    // Arguments are JSON on one line, or stand behind a fence on the next one.
    const std::string_view tail = after.substr(std::min(line, after.size()));
    const bool bare = after.starts_with('{') || after.find(kCallEnd) < fence;
    if (fence == after.npos && !bare && !last && (line == after.npos || kFenceOpen.starts_with(tail))) return false;
    fenced_ = fence != after.npos && !after.starts_with('{');
    const std::string head = held_.substr(0, separator), name(after.substr(0, fence));
    begin_call(fenced_ ? name : head);
    held_.erase(0, separator + kSeparator.size() + (fenced_ ? fence + kFenceOpen.size() : 0));
    return true;
}

bool ReplySplitter::arguments(ReplyDelta& delta, bool last) {
    const auto add = [&](const std::string& text) {
        if (text.empty()) return;
        if (delta.calls.empty() || delta.calls.back().index != calls_ - 1) delta.calls.push_back({calls_ - 1, "", ""});
        delta.calls.back().arguments += text;
    };
    if (fresh_) {
        held_.erase(0, std::min(held_.find_first_not_of(kSpaces), held_.size()));
        if (held_.empty()) return false;
        fresh_ = false;
    }
    const size_t end = held_.find(kCallEnd);
    const std::string_view all = std::string_view(held_).substr(0, end);
    const auto argument_length = [&](std::string_view text) {
        const size_t close = fenced_ ? text.rfind(kFenceClose) : text.npos;
        return trimmed_length(text.substr(0, close));
    };
    if (end != held_.npos) {
        add(held_.substr(0, argument_length(all)));
        (void)take(end, kCallEnd.size());
        enter(State::kBetweenCalls);
        return true;
    }
    if (last) {
        add(take(argument_length(held_)));
        held_.clear();
        return false;
    }
    // The last fence may be the closing one: what stands behind its line break waits for what follows.
    size_t safe = std::min(safe_length(held_, kCallEnd), held_.size());
    if (fenced_) {
        const size_t fence = held_.rfind(kFenceClose);
        safe = std::min({safe, fence, safe_length(held_, kFenceClose)});
    }
    add(take(trimmed_length(std::string_view(held_).substr(0, safe))));
    return false;
}

}  // namespace fathom
