#include "serve/slo.h"

#include <gtest/gtest.h>

namespace fathom {
namespace {

TEST(StepTime, FindsTheFixedPartAndThePartPerRow) {
    StepTime time;
    EXPECT_FALSE(time.known());
    EXPECT_GT(time.rows_within(0.001), 1000000);
    for (int i = 0; i < 200; ++i) {
        const int64_t rows = 1 + i % 40;
        time.add(rows, 0.002 + 0.0001 * static_cast<double>(rows));
    }
    EXPECT_NEAR(time.seconds(0), 0.002, 1e-9);
    EXPECT_NEAR(time.seconds(100), 0.012, 1e-9);
    EXPECT_EQ(time.rows_within(0.01205), 100);
    EXPECT_EQ(time.rows_within(0.001), 1);
}

TEST(StepTime, BatchesThatWereAllAlikeAreTakenToBeProportional) {
    StepTime time;
    for (int i = 0; i < 50; ++i) time.add(4, 0.008);
    EXPECT_NEAR(time.seconds(8), 0.016, 1e-9);
    EXPECT_EQ(time.rows_within(0.0161), 8);
}

TEST(StepTime, ForgetsWhatTheMachineWasLikeBefore) {
    StepTime time;
    for (int i = 0; i < 300; ++i) time.add(1 + i % 8, 0.001 * static_cast<double>(1 + i % 8));
    for (int i = 0; i < 600; ++i) time.add(1 + i % 8, 0.003 * static_cast<double>(1 + i % 8));
    EXPECT_NEAR(time.seconds(8), 0.024, 1e-4);
    time.add(8, 5.0);  // somebody stopped the process for a while
    EXPECT_NEAR(time.seconds(8), 0.024, 1e-4);
    time.add(0, 1.0);
    time.add(8, -1.0);
    EXPECT_NEAR(time.seconds(8), 0.024, 1e-4);
}

TEST(StepTime, AMachineThatIsDisturbedPlansForLess) {
    StepTime steady, disturbed;
    for (int i = 0; i < 400; ++i) {
        steady.add(1 + i % 8, 0.001 * static_cast<double>(1 + i % 8));
        disturbed.add(1 + i % 8, (i % 2 == 0 ? 0.0005 : 0.0015) * static_cast<double>(1 + i % 8));
    }
    EXPECT_NEAR(steady.spread(), 0, 1e-6);
    EXPECT_NEAR(planned(steady, 1), 0.8, 1e-6);
    EXPECT_GT(disturbed.spread(), 0.3);
    EXPECT_LT(disturbed.spread(), 0.7);
    EXPECT_NEAR(planned(disturbed, 1), 0.8 / (1 + disturbed.spread()), 1e-9);
}

StepTime linear() {
    StepTime time;
    for (int i = 0; i < 100; ++i) time.add(1 + i % 64, 0.001 + 0.0005 * static_cast<double>(1 + i % 64));
    return time;
}

TEST(Slo, BatchesShrinkToWhatTheObjectiveAllows) {
    constexpr double kObjective = 0.0265;  // four fifths of it are a batch of 40 rows, and a little
    const BatchLimits most{512, 256};
    Engine::Load load{.running = 10, .decoding = 8};
    EXPECT_EQ(limits_within(linear(), 0, load, most), most);
    EXPECT_EQ(limits_within(linear(), kObjective, load, most), (BatchLimits{40, 40}));
    load.decoding = 60;  // nobody is cut off, prompts go on a little, and nobody new begins
    EXPECT_EQ(limits_within(linear(), kObjective, load, most), (BatchLimits{68, 40}));
    load.decoding = 0;  // prompts alone hold nobody up
    EXPECT_EQ(limits_within(linear(), kObjective, load, most), most);
    EXPECT_EQ(limits_within(StepTime(), 0.001, {.running = 4, .decoding = 4}, most), most);
}

TEST(Slo, TheFirstTokenComesWhenThoseBeforeAreRead) {
    const BatchLimits limits{64, 4};
    EXPECT_EQ(expected_first_token(StepTime(), {}, limits, 1, 1000), 0);
    EXPECT_NEAR(expected_first_token(linear(), {}, limits, 1, 64), 0.033, 1e-6);
    EXPECT_NEAR(expected_first_token(linear(), {}, limits, 1, 128), 0.066, 1e-6);
    // 24 rows of each batch are decoding: 40 are left for 400 tokens.
    EXPECT_NEAR(expected_first_token(linear(), {.running = 1, .decoding = 24, .unread_tokens = 300}, limits, 1, 100), 0.33,
                1e-6);
    // All four places are taken and two wait: three must end before.
    const double free = expected_first_token(linear(), {.running = 3}, limits, 2, 10),
                 full = expected_first_token(linear(), {.running = 4, .waiting = 2}, limits, 2, 10);
    EXPECT_NEAR(full - free, 6, 1e-6);
}

}  // namespace
}  // namespace fathom
