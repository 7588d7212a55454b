#include "serve/engine_thread.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

namespace fathom {
namespace {

constexpr const char* kStopped = "the server is shutting down";

TokenEvent failure(const std::string& why) {
    TokenEvent event;
    event.finish = FinishReason::kError;
    event.error = why;
    return event;
}

}  // namespace

EngineThread::EngineThread(const DeepSeek& model, Ops& ops, const EngineOptions& options, const SloOptions& slo)
    : engine_(model, ops, options),
      slo_(slo),
      most_{options.max_batch_rows, options.max_sequences} {
    snapshot_.load = engine_.load();
    snapshot_.limits = most_;
    thread_ = std::thread([this] { run(); });
}

void EngineThread::stop() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_one();
    if (thread_.joinable()) thread_.join();
}

uint64_t EngineThread::submit(Request request, Sink sink) {
    std::unique_lock lock(mutex_);
    const uint64_t ticket = next_ticket_++;
    if (stop_) {
        lock.unlock();
        sink(failure(kStopped));
        return ticket;
    }
    submitted_.push_back({ticket, std::move(request), std::move(sink)});
    lock.unlock();
    wake_.notify_one();
    return ticket;
}

void EngineThread::cancel(uint64_t ticket) {
    {
        const std::lock_guard lock(mutex_);
        cancelled_.push_back(ticket);
    }
    wake_.notify_one();
}

void EngineThread::forget_prefixes() {
    {
        const std::lock_guard lock(mutex_);
        forget_ = true;
    }
    wake_.notify_one();
}

EngineThread::Snapshot EngineThread::snapshot() const {
    const std::lock_guard lock(mutex_);
    Snapshot result = snapshot_;
    result.load.waiting += std::ssize(submitted_);
    for (const Submission& submission : submitted_) result.load.unread_tokens += std::ssize(submission.request.prompt);
    return result;
}

double EngineThread::expected_first_token(int64_t tokens) const {
    const Snapshot now = snapshot();
    return fathom::expected_first_token(now.step_time, now.load, now.limits, now.seconds_per_answer, tokens);
}

void EngineThread::run() {
    while (take_commands()) {
        if (!engine_.idle()) step();
        if (engine_.idle()) deliver_due();  // commands may have ended the others
        const Engine::Load load = engine_.load();
        const std::lock_guard lock(mutex_);
        snapshot_.load = load;
        snapshot_.counters = engine_.counters();
        snapshot_.step_time = step_time_;
        snapshot_.limits = {engine_.options().max_batch_rows, engine_.options().max_sequences};
        snapshot_.seconds_per_answer = seconds_per_answer_;
    }
    fail_all(kStopped);
}

// Waits while there is nothing to do. False: stop.
bool EngineThread::take_commands() {
    std::vector<Submission> submitted;
    std::vector<uint64_t> cancelled;
    {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || forget_ || !submitted_.empty() || !cancelled_.empty() || !engine_.idle(); });
        if (stop_) return false;
        submitted.swap(submitted_);
        // The next snapshot is taken when the step that begins with them has ended.
        snapshot_.load.waiting += std::ssize(submitted);
        for (const Submission& submission : submitted) snapshot_.load.unread_tokens += std::ssize(submission.request.prompt);
        cancelled.swap(cancelled_);
        if (std::exchange(forget_, false)) engine_.forget_prefixes();
    }
    for (Submission& submission : submitted) begin(submission);
    for (const uint64_t ticket : cancelled) {
        const auto found = numbers_.find(ticket);
        if (found == numbers_.end()) continue;  // it has just ended
        engine_.cancel(found->second);
        active_.erase(found->second);
        numbers_.erase(found);
    }
    return true;
}

void EngineThread::begin(Submission& submission) {
    try {
        const int64_t number = engine_.add(std::move(submission.request));
        numbers_.emplace(submission.ticket, number);
        active_.emplace(number, Active{submission.ticket, std::move(submission.sink)});
    } catch (const std::exception& error) {
        submission.sink(failure(error.what()));
    }
}

// The loop outlives whatever goes wrong in a batch: its requests fail, later ones are served.
void EngineThread::step() {
    if (slo_.tpot > 0) {
        const BatchLimits limits = limits_within(step_time_, slo_.tpot, engine_.load(), most_);
        engine_.set_batch_limits(limits.rows, limits.rows, limits.sequences);
    }
    const auto start = std::chrono::steady_clock::now();
    const int64_t rows_before = engine_.counters().rows;
    int64_t answers = 0;
    try {
        due_ = engine_.step([this] { deliver_due(); });
        answers = std::ranges::count_if(due_, [](const TokenEvent& event) { return event.finish.has_value(); });
    } catch (const std::exception& error) {
        fail_all(error.what());
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    learn(engine_.counters().rows - rows_before, answers, seconds);
    const std::lock_guard lock(mutex_);
    snapshot_.busy_seconds += seconds;
}

void EngineThread::learn(int64_t rows, int64_t answers, double seconds) {
    step_time_.add(rows, seconds);
    since_last_answer_ += seconds;
    if (answers == 0) return;
    constexpr double kNew = 0.1;
    const double each = since_last_answer_ / static_cast<double>(answers);
    seconds_per_answer_ = seconds_per_answer_ == 0 ? each : (1 - kNew) * seconds_per_answer_ + kNew * each;
    since_last_answer_ = 0;
}

void EngineThread::deliver_due() {
    for (TokenEvent& event : std::exchange(due_, {})) deliver(std::move(event));
}

void EngineThread::deliver(TokenEvent&& event) {
    const auto found = active_.find(event.request);
    if (found == active_.end()) return;
    if (!event.finish) return found->second.sink(std::move(event));
    Active last = std::move(found->second);
    active_.erase(found);
    numbers_.erase(last.ticket);
    last.sink(std::move(event));
}

void EngineThread::fail_all(const std::string& why) {
    deliver_due();
    auto active = std::exchange(active_, {});
    numbers_.clear();
    for (auto& [number, request] : active) {
        engine_.cancel(number);
        request.sink(failure(why));
    }
    const std::lock_guard lock(mutex_);
    if (!stop_) return;
    for (Submission& submission : submitted_) submission.sink(failure(why));
    submitted_.clear();
}

}  // namespace fathom
