#include "serve/answer_reader.h"

#include <utility>

namespace fathom {
namespace {

void append(ReplyDelta& delta, ReplyDelta&& more) {
    delta.reasoning += more.reasoning;
    delta.content += more.content;
    for (ToolCallDelta& call : more.calls) {
        if (!delta.calls.empty() && delta.calls.back().index == call.index) {
            delta.calls.back().arguments += call.arguments;
        } else {
            delta.calls.push_back(std::move(call));
        }
    }
}

}  // namespace

AnswerReader::AnswerReader(const Tokenizer& tokenizer, AnswerFormat format)
    : format_(std::move(format)),
      decoder_(tokenizer, format_.skip_special && !format_.chat),
      stops_(format_.stops) {
    if (format_.chat && !format_.whole_text_is_call) splitter_.emplace(format_.style, format_.thinking, format_.tools);
}

void AnswerReader::show(ReplyDelta& delta, const std::string& text, bool last) {
    if (format_.whole_text_is_call) {
        if (calls_ == 0) delta.calls.push_back({calls_++, format_.call_name, ""});
        if (text.empty()) return;
        if (delta.calls.empty()) delta.calls.push_back({0, "", ""});
        delta.calls.back().arguments += text;
        return;
    }
    if (!splitter_) {
        delta.content += text;
        return;
    }
    append(delta, splitter_->push(text));
    if (last) append(delta, splitter_->finish());
}

AnswerDelta AnswerReader::push(const TokenEvent& event) {
    AnswerDelta delta;
    if (done_) return delta;
    if (event.finish == FinishReason::kError) {
        delta.finish = "error";
        delta.error = event.error;
        done_ = true;
        return delta;
    }
    std::string text;
    if (event.token >= 0) {
        ++tokens_;
        if (splitter_ && splitter_->in_reasoning()) ++reasoning_tokens_;
        const bool silent = event.finish == FinishReason::kStop;  // the token that says "end"
        if (format_.logprobs && !silent) delta.tokens.push_back({event.token, event.logprob, event.top});
        if (!silent) text = stops_.push(decoder_.push(event.token));
    }
    done_ = event.finish.has_value() || stops_.found();
    if (event.finish && !stops_.found()) text += stops_.push(decoder_.finish());
    if (stops_.found()) {
        delta.stop = stops_.matched();
        if (format_.include_stop) text += delta.stop;
    } else if (event.finish) {
        text += stops_.finish();
    }
    show(delta.reply, text, done_);
    if (!done_) return delta;
    const bool stopped = stops_.found() || event.finish == FinishReason::kStop;
    delta.finish = stopped ? (calls() > 0 ? "tool_calls" : "stop") : "length";
    return delta;
}

}  // namespace fathom
