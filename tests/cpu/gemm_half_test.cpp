// Products of panels of F16 in halves (cpu/gemm_half.h), with multiply-adds emulated in f32 (rounded twice), which any CPU with
// AVX-512 runs, and with those of AVX512-FP16 where the CPU has them.
#include "cpu/gemm_half.h"

#include <gtest/gtest.h>

#include "cpu/cpu_ops.h"
#include "tensors.h"

namespace fathom {
namespace {

struct EmulatedHalf {
    static __m512 low(__m512i x) { return _mm512_cvtph_ps(_mm512_castsi512_si256(x)); }
    static __m512 high(__m512i x) { return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)); }
    static __m512i fma(__m512i a, __m512i b, __m512i c) {
        const __m256i first = _mm512_cvtps_ph(_mm512_fmadd_ps(low(a), low(b), low(c)), _MM_FROUND_TO_NEAREST_INT);
        const __m256i second = _mm512_cvtps_ph(_mm512_fmadd_ps(high(a), high(b), high(c)), _MM_FROUND_TO_NEAREST_INT);
        return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
    }
};

class Halves : public testing::TestWithParam<bool> {  // emulated?
protected:
    void SetUp() override {
        const Isa isa = GetParam() ? Isa::kAvx512 : Isa::kAvx512Fp16;
        if (!supports(isa)) GTEST_SKIP() << "this CPU has no " << name_of(isa);
    }
    int64_t integer(int64_t low, int64_t high) {  // both included
        return low + static_cast<int64_t>(make_.rng().below(static_cast<uint64_t>(high - low + 1)));
    }
    template <class Number>
    Weight weight(int64_t out, int64_t in, Number number) {
        const Tensor w = make_.empty(DType::kF16, {out, in});
        for (int64_t i = 0; i < w.size(); ++i) w.as<Float16>()[i] = Float16(static_cast<float>(number()));
        return w;
    }
    void multiply(const Tensor& y, const Tensor& x, const Weight& panels) {
        GemmProduct p{.c = y.as<float>(), .c_row = y.stride[0], .a = x.as<float>(), .a_row = x.stride[0]};
        p.b = {panels.codes.data, DType::kF16, panels.codes.stride[0], true};
        p.b.panels = true;
        p.m = x.dim(0), p.n = y.dim(1), p.k = x.dim(1);
        const Tensor scratch = make_.empty(DType::kF32, {GemmBlocking::kScratchFloats});
        (GetParam() ? HalfGemm<EmulatedHalf>::multiply_tile : gemm_tile_fp16_avx512)({&p, 0, p.m, 0, p.n}, scratch.as<float>());
    }

    Tensors make_{1};
    Arena arena_{"panels", Buffer::host, int64_t{1} << 20};
    ThreadPool pool_{2};
    CpuOps numbers_{pool_, Isa::kAvx512, true};
};

// The bound of gemm_half.h, for rows and weights of very different sizes.
TEST_P(Halves, AreWithinTheirRounding) {
    for (int round = 0; round < 40; ++round) {
        const ArenaScope scope(arena_);
        const int64_t n = integer(1, round % 8 == 0 ? 300 : 30), in = integer(1, round % 4 == 0 ? 700 : 90),
                      out = 16 * integer(1, 5);
        const double w_size = std::ldexp(1, static_cast<int>(integer(-9, 8)));
        const Weight w = weight(out, in, [&] { return w_size * make_.rng().normal(); }), panels = numbers_.pack(w, arena_);
        const Tensor x = make_.random({n, in}), y = make_.random({n, out}), exact = make_.random({n, out});
        for (int64_t i = 0; i < n * in; ++i) x.as<float>()[i] *= std::ldexp(1.0f, static_cast<int>(i / in * 37 % 90 - 45));
        multiply(y, x, panels);
        numbers_.matmul(exact, x, panels);
        int64_t wrong = 0;
        for (int64_t i = 0; i < n * out; ++i) {
            const float* row = x.as<float>() + i / out * in;
            const Float16* column = w.codes.as<Float16>() + i % out * in;
            double size = 0, largest = 0, weights = 0;
            for (int64_t k = 0; k < in; ++k) {
                size += std::fabs(row[k] * static_cast<float>(column[k]));
                largest = std::max<double>(largest, std::fabs(row[k]));
                weights += std::fabs(static_cast<float>(column[k]));
            }
            const double bound = size * 18 * std::ldexp(1, -11) +
                                 largest * (static_cast<double>(in) * std::ldexp(1, -19) + weights * std::ldexp(1, -19));
            wrong += !(std::fabs(y.as<float>()[i] - exact.as<float>()[i]) <= bound);
        }
        EXPECT_EQ(wrong, 0) << y.describe() << " from " << x.describe();
    }
}

// Whole numbers whose sums of 16 products have at most 11 bits.
TEST_P(Halves, OfSmallWholeNumbersAreExact) {
    for (const auto& [n, in, out] : {std::array<int64_t, 3>{1, 40, 16}, {9, 1000, 48}, {10, 272, 32}, {400, 300, 80}}) {
        const ArenaScope scope(arena_);
        const Weight w = weight(out, in, [&] { return integer(-8, 8); }), panels = numbers_.pack(w, arena_);
        const Tensor x = make_.empty(DType::kF32, {n, in}), y = make_.random({n, out}), exact = make_.random({n, out});
        for (int64_t i = 0; i < x.size(); ++i) x.as<float>()[i] = static_cast<float>(integer(-15, 15));
        multiply(y, x, panels);
        numbers_.matmul(exact, x, panels);
        EXPECT_EQ(bytes_of(y) == bytes_of(exact), true) << y.describe() << " from " << x.describe();
    }
}

TEST_P(Halves, StayFiniteWithTheLargestHalves) {
    const Weight panels = numbers_.pack(weight(32, 320, [] { return 65504; }), arena_);
    const Tensor x = make_.empty(DType::kF32, {3, 320}), y = make_.random({3, 32});
    std::fill_n(x.as<float>(), x.size(), 1e30f);
    multiply(y, x, panels);
    for (int64_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y.as<float>()[i] / (320 * 65504.0 * 1e30), 1, 1e-2);
}

TEST_P(Halves, GiveARowTheSameBitsInEveryBatch) {
    const int64_t in = 550, out = 48;
    const Weight panels = numbers_.pack(weight(out, in, [&] { return make_.rng().normal(); }), arena_);
    const Tensor x = make_.random({200, in}), alone = make_.random({200, out});
    for (int64_t i = 0; i < 200; ++i) multiply(alone.slice(0, i, i + 1), x.slice(0, i, i + 1), panels);
    for (const int64_t n : {2, 9, 10, 28, 200}) {
        const Tensor y = make_.random({n, out});
        multiply(y, x.slice(0, 0, n), panels);
        EXPECT_EQ(bytes_of(y) == bytes_of(alone.slice(0, 0, n)), true) << n;
    }
}

TEST_P(Halves, AreMadeByTheirInstructionSetAlone) {
    if (GetParam()) GTEST_SKIP() << "of AVX512-FP16 itself";
    CpuOps halves(pool_, Isa::kAvx512Fp16, false), deterministic(pool_, Isa::kAvx512Fp16, true);
    const Weight panels = numbers_.pack(weight(32, 64, [&] { return make_.rng().normal(); }), arena_);
    const Tensor x = make_.random({5, 64}), y = make_.random({5, 32}), expected = make_.random({5, 32});
    multiply(expected, x, panels);
    halves.matmul(y, x, panels);
    EXPECT_EQ(bytes_of(y), bytes_of(expected));
    numbers_.matmul(expected, x, panels);
    deterministic.matmul(y, x, panels);
    EXPECT_EQ(bytes_of(y), bytes_of(expected));
}

INSTANTIATE_TEST_SUITE_P(Isa, Halves, testing::Bool(), [](const auto& param) { return param.param ? "Emulated" : "Fp16"; });

}  // namespace
}  // namespace fathom
