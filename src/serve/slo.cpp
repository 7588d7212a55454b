#include "serve/slo.h"

#include <algorithm>
#include <cmath>

namespace fathom {
namespace {

constexpr double kDecay = 0.98;      // per batch: about the last fifty count
constexpr int64_t kLeastPrompt = 8;  // rows of prompts that every batch may have
// What is expected is a mean: planned up to the objective itself, half of the answers would miss it (the median was 0.99 of the
// objective and the 99th percentile 1.27).
constexpr double kPlanned = 0.8;

}  // namespace

void StepTime::add(int64_t rows, double seconds) {
    if (rows <= 0 || !(seconds > 0)) return;
    const auto n = static_cast<double>(rows);
    // A batch that was held up by something else says nothing about its rows.
    if (weight_ > 10 && seconds > 10 * this->seconds(rows)) return;
    if (const double expected = this->seconds(rows); weight_ > 10 && expected > 0) {
        const double missed = seconds / expected - 1;
        missed_squared_ = missed_squared_ * kDecay + missed * missed * (1 - kDecay);
    }
    weight_ = weight_ * kDecay + 1;
    rows_ = rows_ * kDecay + n;
    rows_squared_ = rows_squared_ * kDecay + n * n;
    seconds_ = seconds_ * kDecay + seconds;
    product_ = product_ * kDecay + n * seconds;
}

// Where all batches were alike, and where a line would fall or begin below zero, all time is taken to be the rows': larger
// batches are then expected to take longer than they will, and the first of them teach better.
StepTime::Line StepTime::line() const {
    const double spread = weight_ * rows_squared_ - rows_ * rows_;
    const Line proportional{0, seconds_ / rows_};
    if (spread <= 1e-3 * rows_ * rows_) return proportional;
    const double per_row = (weight_ * product_ - rows_ * seconds_) / spread, fixed = (seconds_ - per_row * rows_) / weight_;
    if (per_row <= 0) return {seconds_ / weight_, 0};
    return fixed < 0 ? proportional : Line{fixed, per_row};
}

double StepTime::seconds(int64_t rows) const {
    if (!known()) return 0;
    const Line time = line();
    return time.fixed + time.per_row * static_cast<double>(rows);
}

int64_t StepTime::rows_within(double seconds) const {
    constexpr int64_t kAll = int64_t{1} << 40;
    if (!known()) return kAll;
    const Line time = line();
    if (time.per_row <= 0) return time.fixed <= seconds ? kAll : 1;
    return static_cast<int64_t>(std::clamp(std::floor((seconds - time.fixed) / time.per_row), 1.0, static_cast<double>(kAll)));
}

double StepTime::spread() const { return std::sqrt(missed_squared_); }

double planned(const StepTime& time, double objective) { return kPlanned * objective / (1 + time.spread()); }

BatchLimits limits_within(const StepTime& time, double tpot, const Engine::Load& load, const BatchLimits& most) {
    if (tpot <= 0 || load.decoding == 0) return most;  // nobody waits for a next token
    const int64_t rows = time.rows_within(planned(time, tpot));
    return {std::min(std::max(rows, load.decoding + kLeastPrompt), most.rows), std::clamp<int64_t>(rows, 1, most.sequences)};
}

double expected_first_token(const StepTime& time, const Engine::Load& load, const BatchLimits& limits,
                            double seconds_per_answer, int64_t tokens) {
    if (!time.known()) return 0;
    const auto ahead = static_cast<double>(load.unread_tokens + tokens);
    const int64_t rows = std::max<int64_t>(limits.rows - load.decoding, 1);  // of prompts in a batch
    const double batches = std::max(1.0, std::ceil(ahead / static_cast<double>(rows)));
    const double used = std::min(static_cast<double>(rows), ahead);
    double seconds = batches * time.seconds(load.decoding + static_cast<int64_t>(used));
    const int64_t excess = load.running + load.waiting + 1 - limits.sequences;
    if (excess > 0) seconds += static_cast<double>(excess) * seconds_per_answer;
    return seconds;
}

}  // namespace fathom
