// The thread that owns the model: requests go in from any thread, what the model says comes out on this one.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "infer/engine.h"
#include "serve/slo.h"

namespace fathom {

class EngineThread {
public:
    // Called on the engine's thread for every event of one request; must not block. The last event has `finish`.
    using Sink = std::function<void(TokenEvent&& event)>;

    // All three must outlive it.
    EngineThread(const DeepSeek& model, Ops& ops, const EngineOptions& options, const SloOptions& slo = {});
    ~EngineThread() { stop(); }
    // Requests that are not done, and those that come later, get an error. Not from the engine's thread.
    void stop();
    EngineThread(const EngineThread&) = delete;
    EngineThread& operator=(const EngineThread&) = delete;

    // Everything below: from any thread.
    // Throws what Engine::validate throws.
    void validate(const Request& request) const { engine_.validate(request); }
    [[nodiscard]] int64_t max_length() const { return engine_.max_length(); }
    // Returns a ticket to cancel with. The request must be valid.
    uint64_t submit(Request request, Sink sink);
    // No event comes once the engine has seen it.
    void cancel(uint64_t ticket);
    void forget_prefixes();

    struct Snapshot {
        Engine::Load load;  // `waiting` counts those that the engine has not seen yet, too
        Engine::Counters counters;
        double busy_seconds = 0;  // in steps, since the start
        StepTime step_time;
        BatchLimits limits;             // of the next batch
        double seconds_per_answer = 0;  // of busy time, lately
    };
    [[nodiscard]] Snapshot snapshot() const;
    // Seconds that a prompt of `tokens` would wait for its first token if it came now, as far as can be told.
    [[nodiscard]] double expected_first_token(int64_t tokens) const;
    // Of an objective for that, how much is to be planned for.
    [[nodiscard]] double planned(double objective) const { return fathom::planned(snapshot().step_time, objective); }

private:
    struct Submission {
        uint64_t ticket;
        Request request;
        Sink sink;
    };
    struct Active {
        uint64_t ticket;
        Sink sink;
    };

    Engine engine_;
    SloOptions slo_;
    BatchLimits most_;
    mutable std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<Submission> submitted_;
    std::vector<uint64_t> cancelled_;
    bool forget_ = false, stop_ = false;
    uint64_t next_ticket_ = 1;
    Snapshot snapshot_;

    // Of the thread alone.
    std::unordered_map<int64_t, Active> active_;     // by the engine's number
    std::unordered_map<uint64_t, int64_t> numbers_;  // of tickets
    std::vector<TokenEvent> due_;                    // of the last step: handed out while the device works on the next one
    StepTime step_time_;
    double since_last_answer_ = 0, seconds_per_answer_ = 0;
    std::thread thread_;

    void run();
    [[nodiscard]] bool take_commands();
    void begin(Submission& submission);
    void step();
    void learn(int64_t rows, int64_t answers, double seconds);
    void deliver_due();
    void deliver(TokenEvent&& event);
    void fail_all(const std::string& why);
};

}  // namespace fathom
