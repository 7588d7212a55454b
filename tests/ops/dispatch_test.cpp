#include "ops/op_test.h"

namespace fathom {
namespace {

using Dispatch = OpTest;
INSTANTIATE_TEST_SUITE_P(, Dispatch, testing::ValuesIn(backends()), backend_name);

TEST_P(Dispatch, ChoicesAreSortedByExpertAndThenByToken) {
    for (int i = 0; i < 2 * kCases; ++i) {
        const int64_t n = rows(), experts = coin() ? integer(1, 4) : integer(1, 64),
                      k = integer(1, std::min<int64_t>(experts, 8));
        const Pair indices = choices(n, k, experts), bounds = empty({experts + 1}, DType::kI32);
        const Pair source = empty({n * k}, DType::kI32), slot = empty({n, k}, DType::kI32);
        const Pair load = ints({experts}, std::vector<int64_t>(static_cast<size_t>(experts), 100), DType::kI64);
        run([&](Ops& o, Side at) {
            o.sort_by_expert(at(bounds), at(source), at(slot), at(indices));
            o.add_expert_load(at(load), at(bounds));
        });
        for (const Pair& x : {bounds, source, slot, load}) expect_equal(x);
    }
}

// A GPU sorts in pieces of 1024 choices, few of them otherwise than many.
TEST_P(Dispatch, ManyChoicesAreSortedAsFewAre) {
    struct Shape {
        int64_t n, k, experts;
    };
    for (const auto& [n, k, experts] : {Shape{171, 6, 64}, {683, 6, 256}, {1024, 8, 64}, {1025, 8, 64}, {2100, 6, 160}}) {
        const Pair indices = choices(n, k, experts), bounds = empty({experts + 1}, DType::kI32);
        const Pair source = empty({n * k}, DType::kI32), slot = empty({n, k}, DType::kI32);
        run([&](Ops& o, Side at) { o.sort_by_expert(at(bounds), at(source), at(slot), at(indices)); });
        for (const Pair& x : {bounds, source, slot}) expect_equal(x);
    }
}

TEST_P(Dispatch, CombineWeighsTheExpertsAnswersAndBackwardMirrorsIt) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = rows(), k = integer(1, 8), d = width(), m = n * k;
        const Pair slot = ints({n, k}, distinct(m, m)), x = random({m, d}), weights = random({n, k}), dy = random({n, d});
        const Pair y = empty({n, d}), sum = empty({n, d}), dx = empty({m, d}), dweights = empty({n, k}), base = random({n, d});
        run([&](Ops& o, Side at) {
            o.combine(at(y), at(x), at(slot), at(weights), at(base));
            o.combine(at(sum), at(x), at(slot), {}, {});
            o.combine(at(base), at(x), at(slot), at(weights), at(base));
            o.combine_backward(at(dx), at(dweights), at(dy), at(x), at(slot), at(weights));
        });
        for (const Pair& result : {y, sum, dx, dweights, base}) expect_close(result);
    }
}

TEST_P(Dispatch, TheBiasFallsAboveTheMeanLoadRisesBelowAndRestsAtIt) {
    const Pair bias = constant({5}, 0.25), load = ints({5}, {10, 0, 4, 5, 1}, DType::kI64);
    run([&](Ops& o, Side at) { o.update_router_bias(at(bias), at(load), 0.125); });
    EXPECT_EQ(device_values(bias).data, (std::vector<double>{0.125, 0.375, 0.25, 0.125, 0.375}));
    expect_equal(bias);
}

TEST_P(Dispatch, TheMeanLoadIsNotRounded) {
    const Pair bias = constant({3}, 0), load = ints({3}, {1, 1, 2}, DType::kI64);
    run([&](Ops& o, Side at) { o.update_router_bias(at(bias), at(load), 1); });
    EXPECT_EQ(device_values(bias).data, (std::vector<double>{1, 1, -1}));
}

}  // namespace
}  // namespace fathom
