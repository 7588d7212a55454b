#include "ops/op_test.h"

namespace fathom {
namespace {

using NormRope = OpTest;
INSTANTIATE_TEST_SUITE_P(, NormRope, testing::ValuesIn(backends()), backend_name);

TEST_P(NormRope, RmsNormFollowsItsFormula) {
    for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
        for (int i = 0; i < kCases; ++i) {
            const int64_t n = rows(), d = width();
            const Pair x = random({n, d}), y = empty({n, d}), w = random({d}, 0.5, 1, type);
            run([&](Ops& o, Side at) { o.rms_norm(at(y), at(x), at(w), 1e-6); });
            expect_close(y);
        }
    }
}

TEST_P(NormRope, RmsNormWorksInPlace) {
    const Pair x = random({9, 100}), w = random({100}, 0.5, 1);
    run([&](Ops& o, Side at) { o.rms_norm(at(x), at(x), at(w), 1e-5); });
    expect_close(x);
}

TEST_P(NormRope, ASumsNormLeavesTheSumToo) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = rows(), d = i == 0 ? 5003 : width();
        const Pair a = random({n, d}), b = random({n, d}), w = random({d}, 0.5, 1), y = empty({n, d}), sum = empty({n, d});
        run([&](Ops& o, Side at) {
            o.add_rms_norm(at(y), at(sum), at(a), at(b), at(w), 1e-6);
            o.add_rms_norm(at(b), at(a), at(a), at(b), at(w), 1e-6);
        });
        for (const Pair& result : {y, sum, a, b}) expect_close(result);
    }
}

TEST_P(NormRope, EpsKeepsARowOfZerosAtZero) {
    const Pair x = constant({2, 40}, 0), y = empty({2, 40}), w = random({40});
    run([&](Ops& o, Side at) { o.rms_norm(at(y), at(x), at(w), 1e-6); });
    expect_equal(y);
}

TEST_P(NormRope, EpsCountsWhereTheRowIsSmall) {
    const Pair x = random({5, 33}, 1e-3), y = empty({5, 33}), w = random({33});
    run([&](Ops& o, Side at) { o.rms_norm(at(y), at(x), at(w), 1e-5); });
    expect_close(y);
}

TEST_P(NormRope, RmsNormBackwardAccumulatesTheWeightsGradient) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = rows(), d = width();
        const Pair x = random({n, d}), w = random({d}, 0.5, 1), dy = random({n, d}), dx = empty({n, d}), dw = random({d});
        run([&](Ops& o, Side at) { o.rms_norm_backward(at(dx), at(dw), at(dy), at(x), at(w), 1e-6); });
        expect_close(dx, 1, 1);
        expect_close(dw, 2);
    }
}

TEST_P(NormRope, TheTableHoldsCosinesThenSinesOfAnglesRoundedToF32) {
    std::vector<int64_t> positions{0, 1, 2, 4095, 163839};
    for (int i = 0; i < 50; ++i) positions.push_back(integer(0, 1 << 20));
    const auto n = static_cast<int64_t>(positions.size());
    for (const int64_t half : {1, 4, 13, 32}) {
        std::vector<double> frequencies;
        for (int64_t j = 0; j < half; ++j)
            frequencies.push_back(std::pow(10000.0, -static_cast<double>(j) / static_cast<double>(half)));
        const Pair at_positions = ints({n}, positions), frequency = values({half}, frequencies, DType::kF32);
        const Pair table = empty({n, 2 * half});
        run([&](Ops& o, Side at) { o.rope_table(at(table), at(at_positions), at(frequency), 1.25); });
        expect_close(table);
    }
}

TEST_P(NormRope, RopeRotatesEveryHeadByBothPairings) {
    for (const RopePairing pairing : {RopePairing::kInterleaved, RopePairing::kHalves}) {
        for (int i = 0; i < kCases; ++i) {
            const int64_t n = rows(), d = 2 * integer(1, 40);
            const int64_t heads = integer(1, 5);
            const Pair x = random({n, heads, d}), table = random({n, d}), y = empty({n, heads, d});
            run([&](Ops& o, Side at) {
                o.rope(at(y), at(x), at(table), pairing, i % 2 == 1);
                o.rope(at(x), at(x), at(table), pairing, i % 2 == 0);
            });
            expect_close(x);
            expect_close(y);
        }
    }
}

TEST_P(NormRope, TheInverseRotationUndoesRope) {
    const Pair x = random({20, 3, 16}), positions = ints({20}, distinct(20, 4096)), frequency = random({8}, 0.1, 0.5);
    const Pair table = empty({20, 16});
    const Values<double> before(x.reference);
    run([&](Ops& o, Side at) { o.rope_table(at(table), at(positions), at(frequency), 1); });
    for (const bool inverse : {false, true}) ops->rope(x.device, x.device, table.device, RopePairing::kInterleaved, inverse);
    before.store(x.reference);
    expect_close(x);
}

}  // namespace
}  // namespace fathom
