#include "app/generate_answer.h"

#include <fmt/format.h>
#include <optional>
#include <utility>

#include "base/error.h"
#include "infer/stop_strings.h"

namespace fathom {

Answer answer_request(Engine& engine, Request request, const AnswerOptions& options, SpeedMeter& meter) {
    Answer answer;
    answer.finish_reason = "interrupted";
    std::optional<StreamDecoder> decoder;
    if (options.tokenizer != nullptr) decoder.emplace(*options.tokenizer, options.skip_special);
    StopStrings stops(options.stops);
    const auto show = [&](const std::string& text) {
        answer.text += text;
        if (options.show && !text.empty()) options.show(text);
    };
    const int64_t id = engine.add(std::move(request));
    while (!engine.idle() && !options.interrupted() && !stops.found()) {
        for (const TokenEvent& event : engine.step()) {
            if (event.finish == FinishReason::kError) throw Error(ErrorKind::kInput, event.error);
            meter.token();
            answer.ids.push_back(event.token);
            answer.drafted = event.drafted, answer.accepted = event.accepted;
            if (event.finish) answer.finish_reason = *event.finish == FinishReason::kStop ? "stop" : "length";
            if (decoder && event.finish != FinishReason::kStop) show(stops.push(decoder->push(event.token)));
        }
    }
    if (stops.found()) answer.finish_reason = "stop";
    if (!engine.idle()) engine.cancel(id);
    if (decoder && !stops.found()) show(stops.push(decoder->finish()) + stops.finish());
    return answer;
}

std::string Answer::draft_summary() const {
    if (drafted == 0) return "";
    const double share = 100.0 * static_cast<double>(accepted) / static_cast<double>(drafted);
    return fmt::format("; {} of {} guesses came true ({:.0f} %)", accepted, drafted, share);
}

void SpeedMeter::token() {
    last_ = Clock::now();
    if (tokens_++ == 0) first_ = last_;
}

double SpeedMeter::prompt_rate(int64_t prompt_tokens) const {
    const double seconds = std::chrono::duration<double>(first_ - start_).count();
    return tokens_ > 0 && seconds > 0 ? static_cast<double>(prompt_tokens) / seconds : 0;
}

double SpeedMeter::answer_rate() const {
    const double seconds = std::chrono::duration<double>(last_ - first_).count();
    return tokens_ > 1 && seconds > 0 ? static_cast<double>(tokens_ - 1) / seconds : 0;
}

std::string SpeedMeter::summary(int64_t prompt_tokens) const {
    const auto count = [](int64_t n) { return fmt::format("{} token{}", n, n == 1 ? "" : "s"); };
    std::string text =
        fmt::format("prompt {}, {:.1f} tokens/s; answer {}", count(prompt_tokens), prompt_rate(prompt_tokens), count(tokens_));
    if (tokens_ > 1) text += fmt::format(", {:.1f} tokens/s", answer_rate());
    return text;
}

}  // namespace fathom
