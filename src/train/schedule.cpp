#include <algorithm>
#include <cmath>
#include <numbers>

#include "train/config.h"

namespace fathom {
namespace {

// Half a cosine from 1 at `begin` to `end_value` at `end`.
double cosine(double progress, double begin, double end, double end_value) {
    const double t = std::clamp((progress - begin) / (end - begin), 0.0, 1.0);
    return end_value + (1 - end_value) * 0.5 * (1 + std::cos(std::numbers::pi * t));
}

// DeepSeek-V3 4.2 in shares of its 14.8 T tokens: 10 T constant, 4.3 T of cosine, 333 B, 167 B.
double v3_factor(double progress) {
    constexpr double kDecay = 10.0 / 14.8, kLow = 14.3 / 14.8, kLowest = 14.633 / 14.8;
    if (progress < kLow) return cosine(progress, kDecay, kLow, 0.1);
    return progress < kLowest ? 0.1 : 7.3e-6 / 2.2e-4;
}

}  // namespace

double schedule_factor(const ScheduleConfig& schedule, int64_t step, int64_t steps) {
    if (step < schedule.warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(schedule.warmup_steps);
    const double progress = static_cast<double>(step) / static_cast<double>(std::max<int64_t>(steps, 1));
    const auto last = static_cast<double>(std::max<int64_t>(steps - 1, 1)), at_step = static_cast<double>(step);
    switch (schedule.kind) {
        case ScheduleKind::kConstant:
            return 1;
        case ScheduleKind::kCosine:
            return cosine(at_step, std::min(static_cast<double>(schedule.warmup_steps), last - 1), last, schedule.min_ratio);
        case ScheduleKind::kWsd: {  // the last `decay` steps go down by equal parts, the very last one is at min_ratio
            const double decay = std::max(1.0, std::round(schedule.decay_fraction * static_cast<double>(steps)));
            return 1 + (schedule.min_ratio - 1) * std::clamp((at_step - last + decay) / decay, 0.0, 1.0);
        }
        case ScheduleKind::kStep:
            return std::pow(schedule.decay_factor, static_cast<double>(std::ranges::count_if(
                                                       schedule.decay_at, [&](double at) { return progress >= at; })));
        case ScheduleKind::kV3:
            return v3_factor(progress);
    }
    return 1;
}

}  // namespace fathom
