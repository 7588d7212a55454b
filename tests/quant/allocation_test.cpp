#include "quant/allocation.h"

#include <gtest/gtest.h>
#include <cmath>
#include <limits>

#include "base/rng.h"

namespace fathom {
namespace {

using Parts = std::vector<std::vector<StorageChoice>>;

StorageChoice sum_of(const Parts& parts, const std::vector<size_t>& chosen) {
    StorageChoice sum;
    for (size_t i = 0; i < parts.size(); ++i) {
        sum.bytes += parts[i][chosen[i]].bytes;
        sum.cost += parts[i][chosen[i]].cost;
    }
    return sum;
}

// The least cost of all ways.
double least_cost(const Parts& parts, int64_t budget, size_t from = 0) {
    if (from == parts.size()) return budget >= 0 ? 0 : std::numeric_limits<double>::infinity();
    double least = std::numeric_limits<double>::infinity();
    for (const StorageChoice& choice : parts[from])
        least = std::min(least, choice.cost + least_cost(parts, budget - choice.bytes, from + 1));
    return least;
}

TEST(Allocation, SpendsBytesWhereTheySaveMost) {
    const Parts parts{{{10, 5.0}, {20, 1.0}}, {{10, 9.0}, {20, 0.5}}, {{10, 0.2}, {20, 0.1}}};
    EXPECT_EQ(allocate_bytes(parts, 30), (std::vector<size_t>{0, 0, 0}));
    EXPECT_EQ(allocate_bytes(parts, 45), (std::vector<size_t>{0, 1, 0}));
    EXPECT_EQ(allocate_bytes(parts, 50), (std::vector<size_t>{1, 1, 0}));
    EXPECT_EQ(allocate_bytes(parts, 1000), (std::vector<size_t>{1, 1, 1}));
    EXPECT_TRUE(allocate_bytes(parts, 29).empty());
}

TEST(Allocation, TakesNoLargerChoiceThatIsWorse) {
    EXPECT_EQ(allocate_bytes(Parts{{{10, 1.0}, {20, 2.0}, {30, 1.0}}}, 100), std::vector<size_t>{0});
    EXPECT_EQ(allocate_bytes(Parts{{{20, 2.0}, {10, 1.0}}}, 100), std::vector<size_t>{1});
}

TEST(Allocation, StaysInTheBudgetAndNearTheBestOfAllWays) {
    Rng rng(1);
    double ours = 0, best = 0;
    for (int round = 0; round < 60; ++round) {
        Parts parts(5);
        for (auto& choices : parts) {
            const auto size = static_cast<int64_t>(20 + rng.uniform() * 100);
            const double worth = rng.uniform();
            for (const int64_t bits : {3, 4, 5, 8})  // cost falls by four per bit, unevenly
                choices.push_back(
                    {size * bits, worth * std::pow(0.25, static_cast<double>(bits)) * (0.7 + 0.6 * rng.uniform())});
        }
        int64_t most = 0;
        for (const auto& choices : parts) most += choices.back().bytes;
        const auto budget = static_cast<int64_t>(static_cast<double>(most) * (0.45 + 0.5 * rng.uniform()));
        const auto chosen = allocate_bytes(parts, budget);
        ASSERT_EQ(chosen.size(), 5u);
        EXPECT_LE(sum_of(parts, chosen).bytes, budget);
        ours += sum_of(parts, chosen).cost;
        best += least_cost(parts, budget);
    }
    EXPECT_LT(ours, 1.25 * best);
}

}  // namespace
}  // namespace fathom
