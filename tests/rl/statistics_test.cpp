#include "rl/statistics.h"

#include <gtest/gtest.h>

namespace fathom {
namespace {

TEST(Mcnemar, IsTheTwoSidedBinomialTail) {
    EXPECT_EQ(mcnemar(0, 0), 1);
    EXPECT_EQ(mcnemar(5, 5), 1);
    EXPECT_NEAR(mcnemar(5, 0), 2.0 / 32, 1e-12);
    EXPECT_NEAR(mcnemar(1, 7), 2.0 * 9 / 256, 1e-12);
    EXPECT_EQ(mcnemar(30, 10), mcnemar(10, 30));
    EXPECT_NEAR(mcnemar(30, 10), 0.0022217, 1e-6);
}

TEST(PassAtK, IsTheChanceThatADrawHoldsARightOne) {
    EXPECT_DOUBLE_EQ(pass_at_k(10, 3, 1), 0.3);
    EXPECT_DOUBLE_EQ(pass_at_k(4, 1, 2), 0.5);
    EXPECT_NEAR(pass_at_k(5, 2, 2), 1 - 3.0 / 10, 1e-12);
    EXPECT_EQ(pass_at_k(5, 0, 3), 0);
    EXPECT_EQ(pass_at_k(5, 3, 3), 1);
}

}  // namespace
}  // namespace fathom
