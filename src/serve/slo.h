// Service-level objectives: how large a batch may be so that tokens come in time, and when a first token will.
#pragma once

#include <cstdint>

#include "infer/engine.h"

namespace fathom {

// Seconds; 0: no objective.
struct SloOptions {
    double tpot = 0;  // between two tokens of an answer: a batch may take no longer
    double ttft = 0;  // from a request's arrival to its first token: who would wait longer is turned away
};

// How long a batch takes: seconds = fixed + per_row * rows, least squares over recent batches, older ones counting less.
class StepTime {
public:
    void add(int64_t rows, double seconds);
    [[nodiscard]] bool known() const { return weight_ > 0; }
    [[nodiscard]] double seconds(int64_t rows) const;
    // By how much of what was expected batches miss it lately: 0.5 on a machine whose other work takes half of it now and then.
    [[nodiscard]] double spread() const;
    // The most rows that are expected to take no longer; at least 1.
    [[nodiscard]] int64_t rows_within(double seconds) const;

private:
    double weight_ = 0, rows_ = 0, rows_squared_ = 0, seconds_ = 0, product_ = 0, missed_squared_ = 0;  // decayed sums

    struct Line {
        double fixed = 0, per_row = 0;
    };
    [[nodiscard]] Line line() const;
};

// How much of an objective to plan for, so that nearly all keep it although batches take now longer, now shorter: four fifths
// on a steady machine, less the more they miss what was expected.
[[nodiscard]] double planned(const StepTime& time, double objective);

struct BatchLimits {
    int64_t rows = 0, sequences = 0;
    bool operator==(const BatchLimits&) const = default;
};

// What the next batch may hold: as much as `most` while that is expected to take no longer than what is planned of `tpot`.
// Answers under way are never cut off, and prompts go on a little at a time even when there is no time left: those who wait
// would wait for ever.
[[nodiscard]] BatchLimits limits_within(const StepTime& time, double tpot, const Engine::Load& load, const BatchLimits& most);

// Seconds until a prompt of `tokens` that came now would have its first token, behind all who are here already: their prompts
// are read as fast as batches of `limits` allow. `seconds_per_answer`: between two answers that end, for when no place is free.
// Expected, not promised: who promises takes `planned` of the promise.
[[nodiscard]] double expected_first_token(const StepTime& time, const Engine::Load& load, const BatchLimits& limits,
                                          double seconds_per_answer, int64_t tokens);

}  // namespace fathom
