#include "base/progress.h"

#include <gtest/gtest.h>

namespace fathom {
namespace {

TEST(Human, CountsHaveADecimalPrefix) {
    EXPECT_EQ(human_count(0), "0");
    EXPECT_EQ(human_count(999), "999");
    EXPECT_EQ(human_count(1230), "1.23 k");
    EXPECT_EQ(human_count(4'560'000), "4.56 M");
    EXPECT_EQ(human_count(671e9), "671 G");
    EXPECT_EQ(human_count(-1500), "-1.5 k");
}

TEST(Human, BytesHaveABinaryPrefix) {
    EXPECT_EQ(human_bytes(0), "0 B");
    EXPECT_EQ(human_bytes(1023), "1023 B");
    EXPECT_EQ(human_bytes(1536), "1.50 KiB");
    EXPECT_EQ(human_bytes(24.0 * 1024 * 1024 * 1024), "24.00 GiB");
}

TEST(Human, DurationsReadLikeAClock) {
    EXPECT_EQ(human_duration(0), "00:00");
    EXPECT_EQ(human_duration(59.6), "01:00");
    EXPECT_EQ(human_duration(3723), "1:02:03");
    EXPECT_EQ(human_duration(-5), "00:00");
}

TEST(Progress, PrintsNothingWhenQuiet) {
    testing::internal::CaptureStderr();
    {
        Progress progress("load", 10, "tensors", ProgressMode::kQuiet);
        progress.update(5);
        progress.finish();
    }
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(Progress, EndsWithOneLineThatSaysHowMuchAndHowLong) {
    testing::internal::CaptureStderr();
    {
        Progress progress("load", 10, "tensors");
        progress.update(5);  // too soon after the start for a line of its own
        progress.update(10);
        progress.finish("done");
        progress.finish("again");  // ignored
    }
    const std::string text = testing::internal::GetCapturedStderr();
    EXPECT_NE(text.find("load 100.0 %  10 tensors"), std::string::npos) << text;
    EXPECT_NE(text.find("took 00:00  done"), std::string::npos) << text;
    EXPECT_EQ(text.find("again"), std::string::npos);
}

}  // namespace
}  // namespace fathom
