// Products of panels of bf16 in pairs (cpu/gemm_pairs_avx512.cpp) and in tiles (cpu/gemm_amx.h) against the f32 ones, which
// round no activation.
#include <gtest/gtest.h>

#include <cmath>

#include "cpu/cpu_ops.h"
#include "tensors.h"

namespace fathom {
namespace {

class Pairs : public testing::TestWithParam<std::tuple<Isa, int>> {  // threads
protected:
    void SetUp() override {
        if (!supports(isa_)) GTEST_SKIP() << "this CPU has no " << name_of(isa_);
    }
    Weight weight(int64_t out, int64_t in) {
        const Tensor w = tensors_.empty(DType::kBF16, {out, in});
        for (int64_t i = 0; i < w.size(); ++i) w.as<BFloat16>()[i] = BFloat16(static_cast<float>(tensors_.rng().normal()));
        return w;
    }
    int64_t integer(int64_t low, int64_t high) {  // both included
        return low + static_cast<int64_t>(tensors_.rng().below(static_cast<uint64_t>(high - low + 1)));
    }

    Isa isa_ = std::get<0>(GetParam());
    Tensors tensors_{1};
    Arena arena_{"panels", Buffer::host, int64_t{1} << 20};
    ThreadPool pool_{std::get<1>(GetParam())};
    CpuOps pairs_{pool_, isa_, false}, numbers_{pool_, Isa::kAvx512, true};
};

// Rounding an activation to bf16 errs by 2^-8 of it at most; each of K additions by 2^-24 of the partial sums, twice (a pair's
// products are added one by one), and the f32 chain by as much.
void expect_close(const Tensor& y, const Tensor& exact, const Tensor& x, const Weight& w) {
    const int64_t in = w.in_features();
    const double relative = std::ldexp(1, -8) + static_cast<double>(in) * std::ldexp(1, -22);
    int64_t wrong = 0;
    for (int64_t i = 0; i < y.dim(0); ++i)
        for (int64_t j = 0; j < y.dim(1); ++j) {
            double size = 0;
            for (int64_t k = 0; k < in; ++k)
                size += std::fabs(static_cast<double>(x.as<float>()[i * in + k]) *
                                  static_cast<double>(static_cast<float>(w.codes.as<BFloat16>()[j * in + k])));
            const int64_t at = i * y.dim(1) + j;
            wrong += !(std::fabs(y.as<float>()[at] - exact.as<float>()[at]) <= relative * size);
        }
    EXPECT_EQ(wrong, 0) << y.describe() << " from " << x.describe();
}

TEST_P(Pairs, AreWithinTheRoundingOfActivations) {
    for (int round = 0; round < 48; ++round) {
        const ArenaScope scope(arena_);
        const bool wide = round % 8 == 0;
        const int64_t n = wide ? integer(1, 300) : integer(0, 40), in = 2 * integer(1, wide ? 700 : 80),
                      out = 16 * integer(1, 9);
        const Weight w = weight(out, in), panels = pairs_.pack(w, arena_);
        const Tensor x = tensors_.random({n, in}), y = tensors_.random({n, out}), exact = tensors_.random({n, out});
        pairs_.matmul(y, x, panels);
        numbers_.matmul(exact, x, panels);
        expect_close(y, exact, x, w);
    }
}

// More rows and columns than one block of a tile holds, and chains longer than one.
TEST_P(Pairs, OfWholeNumbersAreExact) {
    for (const auto& [n, in, out] : {std::array<int64_t, 3>{1, 12290, 32}, {8, 13000, 16}, {300, 1100, 560}, {9, 514, 1040}}) {
        const ArenaScope scope(arena_);
        const Weight w = weight(out, in);
        const Tensor x = tensors_.empty(DType::kF32, {n, in}), y = tensors_.random({n, out}), exact = tensors_.random({n, out});
        for (int64_t i = 0; i < x.size(); ++i) x.as<float>()[i] = static_cast<float>(integer(-16, 16));
        for (int64_t i = 0; i < w.codes.size(); ++i) w.codes.as<BFloat16>()[i] = BFloat16(static_cast<float>(integer(-16, 16)));
        const Weight panels = pairs_.pack(w, arena_);
        pairs_.matmul(y, x, panels);
        numbers_.matmul(exact, x, panels);
        EXPECT_EQ(bytes_of(y), bytes_of(exact)) << y.describe();
    }
}

TEST_P(Pairs, GiveARowTheSameBitsInEveryBatch) {
    const ArenaScope scope(arena_);
    const int64_t in = 1300, out = 96;
    const Weight panels = pairs_.pack(weight(out, in), arena_);
    const Tensor x = tensors_.random({61, in}), alone = tensors_.random({61, out});
    for (int64_t i = 0; i < 61; ++i) pairs_.matmul(alone.slice(0, i, i + 1), x.slice(0, i, i + 1), panels);
    for (const int64_t n : {2, 3, 5, 8, 9, 14, 15, 29, 61}) {
        const Tensor y = tensors_.random({n, out});
        pairs_.matmul(y, x.slice(0, 0, n), panels);
        EXPECT_EQ(bytes_of(y), bytes_of(alone.slice(0, 0, n))) << n;
    }
}

TEST_P(Pairs, OfExpertsAreThoseOfEachExpert) {
    const int64_t in = 96, out = 48;
    std::vector<Weight> experts;
    for (int e = 0; e < 4; ++e) experts.push_back(pairs_.pack(weight(out, in), arena_));
    const Tensor x = tensors_.random({40, in}), y = tensors_.random({40, out}), expected = tensors_.random({40, out});
    const std::vector<int32_t> offsets = {0, 1, 1, 30, 40};
    pairs_.grouped_matmul(y, x, experts, tensors_.ints(offsets));
    for (size_t e = 0; e < 4; ++e)
        pairs_.matmul(expected.slice(0, offsets[e], offsets[e + 1]), x.slice(0, offsets[e], offsets[e + 1]), experts[e]);
    EXPECT_EQ(bytes_of(y), bytes_of(expected));
}

TEST_P(Pairs, AreNotMadeDeterministicallyNorOfRows) {
    CpuOps deterministic(pool_, isa_, true);
    const Weight w = weight(32, 64), panels = pairs_.pack(w, arena_);
    const Tensor x = tensors_.random({5, 64}), y = tensors_.random({5, 32}), exact = tensors_.random({5, 32});
    numbers_.matmul(exact, x, w);
    deterministic.matmul(y, x, panels);
    EXPECT_EQ(bytes_of(y), bytes_of(exact));
    pairs_.matmul(y, x, w);
    EXPECT_EQ(bytes_of(y), bytes_of(exact));
    pairs_.matmul(y, x, panels);
    EXPECT_NE(bytes_of(y), bytes_of(exact));
}

// Weights become bf16 as well, by the same 2^-8. 1040 x 1040 is more than is decoded at a time.
TEST_P(Pairs, ByTheTransposeAreWithinTheRoundingOfBothFactors) {
    for (const BlockType type : {BlockType::kNone, BlockType::kQ80})
        for (const auto& [n, out, in] : {std::array<int64_t, 3>{1, 16, 32}, {5, 48, 64}, {40, 512, 128}, {17, 1040, 1056}}) {
            const ArenaScope scope(arena_);
            Weight w = weight(out, in), size = weight(out, in);
            for (int64_t i = 0; i < w.codes.size(); ++i) {
                const float x = static_cast<float>(w.codes.as<BFloat16>()[i]);
                size.codes.as<BFloat16>()[i] = BFloat16(std::fabs(x));
            }
            if (type == BlockType::kQ80) {
                for (Weight* blocks : {&w, &size}) *blocks = Weight(tensors_.empty(DType::kU8, {out, in / 32 * 34}), type);
                for (int64_t i = 0; i < w.codes.size(); ++i) {
                    const bool half = i % 34 < 2;
                    const auto code = static_cast<int8_t>(integer(-127, 127));
                    w.codes.as<uint8_t>()[i] = half ? 0x20 : static_cast<uint8_t>(code);  // 0x2020: 0.0082
                    size.codes.as<uint8_t>()[i] = half ? 0x20 : static_cast<uint8_t>(std::abs(code));
                }
            }
            const Tensor x = tensors_.random({n, out}), positive = tensors_.random({n, out}), y = tensors_.random({n, in}),
                         exact = tensors_.random({n, in}), sizes = tensors_.random({n, in});
            for (int64_t i = 0; i < x.size(); ++i) positive.as<float>()[i] = std::fabs(x.as<float>()[i]);
            const Weight panels = pairs_.pack(w, arena_);
            ASSERT_EQ(panels.scheme, Scheme::kPanels);
            pairs_.matmul_dgrad(y, x, panels);
            numbers_.matmul_dgrad(exact, x, panels);
            numbers_.matmul_dgrad(sizes, positive, size);
            const double relative = std::ldexp(1, -7) + std::ldexp(1, -14) + static_cast<double>(out) * std::ldexp(1, -22);
            int64_t wrong = 0, equal = 0;
            for (int64_t i = 0; i < y.size(); ++i) {
                wrong += !(std::fabs(y.as<float>()[i] - exact.as<float>()[i]) <= relative * sizes.as<float>()[i]);
                equal += y.as<float>()[i] == exact.as<float>()[i];
            }
            EXPECT_EQ(wrong, 0) << y.describe();
            EXPECT_LT(equal, y.size() / 2 + 1) << "not in pairs";
        }
}

INSTANTIATE_TEST_SUITE_P(Isas, Pairs,
                         testing::Combine(testing::Values(Isa::kAvx512Bf16, Isa::kAmxBf16), testing::Values(1, 3)));

}  // namespace
}  // namespace fathom
