#include "base/rng.h"

#include <gtest/gtest.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace fathom {
namespace {

using Block = std::array<uint32_t, 4>;

// The known answers published with the paper's library, Random123 (kat_vectors, philox4x32 10). Our counter is {index, stream}.
TEST(Philox, GivesTheKnownAnswersOfItsAuthors) {
    EXPECT_EQ((Philox{0, 0}(0)), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    EXPECT_EQ((Philox{~0ull, ~0ull}(~0ull)), (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    EXPECT_EQ((Philox{0x299f31d0a4093822ull, 0x0370734413198a2eull}(0x85a308d3243f6a88ull)),
              (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, ContinuesFromItsThreeIntegers) {
    Rng rng(7, 3);
    for (int i = 0; i < 10; ++i) (void)rng.uniform();
    Rng restored(7, 3);
    restored.index = rng.index;
    EXPECT_EQ(rng.uniform(), restored.uniform());
    EXPECT_EQ(rng.normal(), restored.normal());
    EXPECT_EQ(rng.below(1000), restored.below(1000));
}

TEST(Rng, StreamsAndSeedsDiffer) {
    EXPECT_NE(Rng(1, 0).uniform(), Rng(1, 1).uniform());
    EXPECT_NE(Rng(1, 0).uniform(), Rng(2, 0).uniform());
}

TEST(Rng, UniformsFillTheUnitInterval) {
    Rng rng(11);
    constexpr int kCount = 200'000, kCells = 100;
    std::vector<double> cells(kCells);
    for (int i = 0; i < kCount; ++i) {
        const double u = rng.uniform();
        ASSERT_TRUE(u >= 0 && u < 1);
        ++cells[static_cast<size_t>(u * kCells)];
    }
    double chi_square = 0;  // 99 degrees of freedom: mean 99, standard deviation 14
    for (const double cell : cells) chi_square += std::pow(cell - 1.0 * kCount / kCells, 2) / (1.0 * kCount / kCells);
    EXPECT_GT(chi_square, 99 - 5 * 14);
    EXPECT_LT(chi_square, 99 + 5 * 14);
}

TEST(Rng, NormalsHaveTheMomentsOfTheBellCurve) {
    Rng rng(12);
    constexpr int kCount = 400'000;
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0;
    for (int i = 0; i < kCount; ++i) {
        const double z = rng.normal();
        ASSERT_TRUE(std::isfinite(z));
        m1 += z / kCount, m2 += z * z / kCount, m3 += z * z * z / kCount, m4 += z * z * z * z / kCount;
    }
    EXPECT_NEAR(m1, 0, 0.01);
    EXPECT_NEAR(m2, 1, 0.015);
    EXPECT_NEAR(m3, 0, 0.03);
    EXPECT_NEAR(m4, 3, 0.08);
}

TEST(Rng, BelowIsUniformAndInRange) {
    Rng rng(13);
    std::array<int, 7> seen{};
    for (int i = 0; i < 70'000; ++i) ++seen.at(rng.below(7));
    for (const int count : seen) EXPECT_NEAR(count, 10'000, 500);
    EXPECT_EQ(rng.below(1), 0u);
    for (int i = 0; i < 100; ++i) EXPECT_LT(rng.below(1ull << 63), 1ull << 63);
}

}  // namespace
}  // namespace fathom
