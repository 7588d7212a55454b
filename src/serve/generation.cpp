#include "serve/generation.h"

#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

void add(AnswerDelta& sum, const AnswerDelta& delta) {
    sum.reply.reasoning += delta.reply.reasoning;
    sum.reply.content += delta.reply.content;
    for (const ToolCallDelta& call : delta.reply.calls) {
        if (static_cast<size_t>(call.index) >= sum.reply.calls.size()) {
            sum.reply.calls.push_back(call);
        } else {
            sum.reply.calls[static_cast<size_t>(call.index)].arguments += call.arguments;
        }
    }
    sum.tokens.insert(sum.tokens.end(), delta.tokens.begin(), delta.tokens.end());
    if (!delta.finish.empty()) sum.finish = delta.finish, sum.error = delta.error, sum.stop = delta.stop;
}

// Events come in on the engine's thread and wait in a mailbox; all else happens on the exchange's.
class Generation : public std::enable_shared_from_this<Generation> {
public:
    Generation(std::shared_ptr<HttpExchange> exchange, EngineThread& engine, Metrics& metrics,
               std::unique_ptr<Protocol> protocol)
        : exchange_(std::move(exchange)),
          engine_(engine),
          metrics_(metrics),
          protocol_(std::move(protocol)) {}

    void start(const Tokenizer& tokenizer, Job job) {
        stream_ = job.stream;
        figures_.answers = std::ssize(job.requests);
        figures_.prompt_tokens = usage_.prompt_tokens = job.prompt_tokens;
        figures_.max_tokens = job.max_tokens;
        choices_.reserve(job.requests.size());
        for (size_t i = 0; i < job.requests.size(); ++i)
            choices_.push_back({AnswerReader(tokenizer, job.format), {}, 0, {}, 0, 0, 0});
        open_ = std::ssize(choices_);
        if (stream_) {
            exchange_->every(job.ping_seconds, [weak = weak_from_this()] {
                if (const auto self = weak.lock()) self->ping();
            });
        }
        exchange_->on_disconnect([self = shared_from_this()] { self->abandon(); });
        for (size_t i = 0; i < job.requests.size(); ++i) {
            choices_[i].ticket = engine_.submit(std::move(job.requests[i]), [self = shared_from_this(), i](TokenEvent&& event) {
                self->receive(static_cast<int64_t>(i), std::move(event));
            });
        }
    }

private:
    struct Choice {
        AnswerReader reader;
        Answer answer;  // only when the reply is one piece
        uint64_t ticket;
        Clock::time_point last;
        int64_t drafted, accepted, reduced;
    };
    struct Mail {
        int64_t choice;
        TokenEvent event;
        Clock::time_point time;
    };

    std::shared_ptr<HttpExchange> exchange_;
    EngineThread& engine_;
    Metrics& metrics_;
    std::unique_ptr<Protocol> protocol_;
    std::vector<Choice> choices_;
    int64_t open_ = 0;
    bool stream_ = false, over_ = false, wrote_ = false;
    std::string unsent_;  // of a stream, while mail is read
    Usage usage_;
    RequestFigures figures_;
    Clock::time_point began_ = Clock::now();

    std::mutex mutex_;
    std::vector<Mail> mail_;

    // On the engine's thread.
    void receive(int64_t choice, TokenEvent&& event) {
        bool first = false;
        {
            const std::lock_guard lock(mutex_);
            first = mail_.empty();
            mail_.push_back({choice, std::move(event), Clock::now()});
        }
        if (first) exchange_->post([self = shared_from_this()] { self->read_mail(); });
    }

    void read_mail() {
        std::vector<Mail> mail;
        {
            const std::lock_guard lock(mutex_);
            mail.swap(mail_);
        }
        for (Mail& item : mail) {
            if (!over_) read(item);
        }
        send();
    }

    // One piece for all that came since the last: a client that is behind is not sent a token at a time.
    void send() {
        exchange_->write(unsent_);
        unsent_.clear();
    }

    void read(Mail& mail) {
        Choice& choice = choices_[static_cast<size_t>(mail.choice)];
        if (choice.reader.done()) return;
        measure(choice, mail);
        const int64_t thought = choice.reader.reasoning_tokens();
        const AnswerDelta delta = choice.reader.push(mail.event);
        usage_.reasoning_tokens += choice.reader.reasoning_tokens() - thought;
        if (delta.finish == "error") return fail(ApiError(500, delta.error));
        if (stream_) {
            if (!exchange_->begun()) begin_stream();
            wrote_ = true;
            unsent_ += protocol_->delta(mail.choice, delta, mail.event.prompt, usage_);
        } else {
            add(choice.answer.all, delta);
            if (!mail.event.prompt.empty()) choice.answer.prompt = std::move(mail.event.prompt);
        }
        if (!choice.reader.done()) return;
        if (!mail.event.finish) engine_.cancel(choice.ticket);  // it would go on behind a stop string
        figures_.finish = delta.finish;
        if (--open_ == 0) finish();
    }

    void measure(Choice& choice, const Mail& mail) {
        if (mail.event.reused) usage_.cached_tokens += *mail.event.reused;
        usage_.drafted += mail.event.drafted - std::exchange(choice.drafted, mail.event.drafted);
        usage_.accepted += mail.event.accepted - std::exchange(choice.accepted, mail.event.accepted);
        usage_.reduced_tokens += mail.event.reduced - std::exchange(choice.reduced, mail.event.reduced);
        if (mail.event.token < 0) return;
        ++usage_.answer_tokens;
        const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
        if (figures_.to_first_token < 0) figures_.to_first_token = usage_.prompt_seconds = seconds(mail.time - began_);
        usage_.answer_seconds = seconds(mail.time - began_) - usage_.prompt_seconds;
        if (choice.reader.tokens() > 0) figures_.between_tokens.push_back(seconds(mail.time - choice.last));
        choice.last = mail.time;
    }

    // Proxies and clients close connections that say nothing for long; a comment is for nobody (DeepSeek's API sends it, too).
    void ping() {
        if (over_ || std::exchange(wrote_, false)) return;
        if (!exchange_->begun()) begin_stream();
        exchange_->write(": keep-alive\n\n");
    }

    void begin_stream() {
        exchange_->begin(200, "text/event-stream; charset=utf-8", {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}});
        exchange_->write(protocol_->begin());
    }

    void finish() {
        // Several answers to one prompt: it was computed once and found again by the others.
        usage_.cached_tokens = std::min(usage_.cached_tokens, usage_.prompt_tokens);
        over(figures_.finish);
        if (stream_) {
            unsent_ += protocol_->end(usage_);
            send();
            exchange_->finish();
            return;
        }
        std::vector<Answer> answers;
        for (Choice& choice : choices_) answers.push_back(std::move(choice.answer));
        exchange_->reply(200, "application/json", dump(protocol_->whole(answers, usage_)));
    }

    void fail(const ApiError& error) {
        over("error");
        for (const Choice& choice : choices_) engine_.cancel(choice.ticket);
        if (!exchange_->begun()) return exchange_->reply(error.status(), "application/json", dump(protocol_->error(error)));
        unsent_ += protocol_->stream_error(error);
        send();
        exchange_->finish();
    }

    void abandon() {
        if (over_) return;
        over("abort");
        for (const Choice& choice : choices_) engine_.cancel(choice.ticket);
    }

    void over(const std::string& reason) {
        over_ = true;
        figures_.finish = reason;
        figures_.whole = std::chrono::duration<double>(Clock::now() - began_).count();
        figures_.cached_tokens = usage_.cached_tokens;
        figures_.answer_tokens = usage_.answer_tokens;
        metrics_.request(figures_);
    }
};

}  // namespace

std::string Protocol::stream_error(const ApiError& failure) const { return sse(error(failure)) + "data: [DONE]\n\n"; }

std::string sse(const Json& data, std::string_view event) {
    return event.empty() ? fmt::format("data: {}\n\n", dump(data)) : fmt::format("event: {}\ndata: {}\n\n", event, dump(data));
}

void start_generation(std::shared_ptr<HttpExchange> exchange, EngineThread& engine, const Tokenizer& tokenizer,
                      Metrics& metrics, Job job, std::unique_ptr<Protocol> protocol) {
    std::make_shared<Generation>(std::move(exchange), engine, metrics, std::move(protocol))->start(tokenizer, std::move(job));
}

}  // namespace fathom
