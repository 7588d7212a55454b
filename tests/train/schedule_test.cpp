#include <gtest/gtest.h>

#include <cmath>

#include "train/config.h"

namespace fathom {
namespace {

constexpr int64_t kSteps = 14800;  // a step is a billion tokens of DeepSeek-V3's 14.8 T

ScheduleConfig of(ScheduleKind kind, int64_t warmup = 0) {
    ScheduleConfig schedule;
    schedule.kind = kind;
    schedule.warmup_steps = warmup;
    return schedule;
}

TEST(Schedule, WarmupIsLinearAndReachesThePeakAtItsLastStep) {
    for (const ScheduleKind kind :
         {ScheduleKind::kConstant, ScheduleKind::kCosine, ScheduleKind::kWsd, ScheduleKind::kStep, ScheduleKind::kV3}) {
        const ScheduleConfig schedule = of(kind, 10);
        for (int64_t step = 0; step < 10; ++step) {
            EXPECT_DOUBLE_EQ(schedule_factor(schedule, step, 100), static_cast<double>(step + 1) / 10);
        }
        EXPECT_DOUBLE_EQ(schedule_factor(schedule, 10, 100), 1);
    }
}

TEST(Schedule, NoStepOfAnyKindExceedsThePeakOrRisesAfterWarmup) {
    for (const ScheduleKind kind :
         {ScheduleKind::kConstant, ScheduleKind::kCosine, ScheduleKind::kWsd, ScheduleKind::kStep, ScheduleKind::kV3}) {
        double last = 1;
        for (int64_t step = 5; step <= 200; ++step) {
            const double factor = schedule_factor(of(kind, 5), step, 200);
            EXPECT_GT(factor, 0);
            EXPECT_LE(factor, last);
            last = factor;
        }
    }
}

// DeepSeek-V3 4.2: 2.2e-4 until 10 T tokens, cosine to 2.2e-5 over 4.3 T, 2.2e-5 for 333 B, 7.3e-6 for the last 167 B.
TEST(Schedule, V3HasTheMilestonesOfThePaper) {
    const auto rate = [](int64_t step) { return 2.2e-4 * schedule_factor(of(ScheduleKind::kV3), step, kSteps); };
    EXPECT_DOUBLE_EQ(rate(0), 2.2e-4);
    EXPECT_DOUBLE_EQ(rate(10000), 2.2e-4);
    EXPECT_LT(rate(10001), 2.2e-4);
    EXPECT_NEAR(rate(10000 + 2150), (2.2e-4 + 2.2e-5) / 2, 1e-12);  // half of the cosine
    EXPECT_NEAR(rate(14299), 2.2e-5, 1e-9);
    EXPECT_DOUBLE_EQ(rate(14300), 2.2e-5);
    EXPECT_DOUBLE_EQ(rate(14632), 2.2e-5);
    EXPECT_DOUBLE_EQ(rate(14633), 7.3e-6);
    EXPECT_DOUBLE_EQ(rate(14799), 7.3e-6);
}

TEST(Schedule, CosineFallsFromTheEndOfWarmupToMinRatio) {
    ScheduleConfig schedule = of(ScheduleKind::kCosine, 20);
    schedule.min_ratio = 0.2;
    EXPECT_DOUBLE_EQ(schedule_factor(schedule, 20, 121), 1);
    EXPECT_NEAR(schedule_factor(schedule, 70, 121), 0.6, 1e-12);
    EXPECT_NEAR(schedule_factor(schedule, 45, 121), 0.2 + 0.8 * 0.5 * (1 + std::sqrt(0.5)), 1e-12);
    EXPECT_NEAR(schedule_factor(schedule, 120, 121), 0.2, 1e-12) << "the last step";
}

TEST(Schedule, WsdIsConstantAndThenLinear) {
    ScheduleConfig schedule = of(ScheduleKind::kWsd);
    schedule.decay_fraction = 0.4;
    schedule.min_ratio = 0.05;
    EXPECT_DOUBLE_EQ(schedule_factor(schedule, 59, 100), 1);
    EXPECT_NEAR(schedule_factor(schedule, 60, 100), 1 - 0.95 / 40, 1e-12) << "forty steps of decay";
    EXPECT_NEAR(schedule_factor(schedule, 79, 100), 0.525, 1e-12);
    EXPECT_NEAR(schedule_factor(schedule, 99, 100), 0.05, 1e-12) << "the last step";
}

// DeepSeekMoE 4.1.2 and V2 3.1.2: times 0.316 at 80 % and at 90 %.
TEST(Schedule, StepsMultiplyAtTheirFractions) {
    const ScheduleConfig schedule = of(ScheduleKind::kStep);
    EXPECT_DOUBLE_EQ(schedule_factor(schedule, 79, 100), 1);
    EXPECT_DOUBLE_EQ(schedule_factor(schedule, 80, 100), 0.316);
    EXPECT_DOUBLE_EQ(schedule_factor(schedule, 89, 100), 0.316);
    EXPECT_DOUBLE_EQ(schedule_factor(schedule, 90, 100), 0.316 * 0.316);
}

}  // namespace
}  // namespace fathom
