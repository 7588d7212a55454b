// Products of halves (cpu/half_product.h), with multiply-adds emulated in f32 (rounded twice), which any CPU with AVX-512 runs,
// and with those of AVX512-FP16 where the CPU has them.
#include "cpu/half_product.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cpu/isa.h"
#include "tensors.h"

namespace fathom {
namespace {

struct EmulatedHalf {
    static __m512 low(__m512i x) { return _mm512_cvtph_ps(_mm512_castsi512_si256(x)); }
    static __m512 high(__m512i x) { return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)); }
    static __m512i fma(const Float16* a, __m512i b, __m512i c) {
        const __m512 x = Avx512::all_half(a).v;
        const __m256i first = _mm512_cvtps_ph(_mm512_fmadd_ps(x, low(b), low(c)), _MM_FROUND_TO_NEAREST_INT);
        const __m256i second = _mm512_cvtps_ph(_mm512_fmadd_ps(x, high(b), high(c)), _MM_FROUND_TO_NEAREST_INT);
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

    // c (+)= rows of a [m, k] times b^T [n, k], scaled as the product wants them; n is 32 or 64.
    void multiply(const Tensor& c, const Tensor& a, const Tensor& b, TileStart start, const float* factor) {
        const int64_t m = a.dim(0), n = b.dim(0), k = a.dim(1);
        std::vector<Float16> rows(static_cast<size_t>(m * kHalfChain)), lanes(static_cast<size_t>(kHalfChain * n)),
            column(kHalfChain);
        std::vector<float> row_factors(static_cast<size_t>(m)), lane_factors(static_cast<size_t>(n));
        for (int64_t i = 0; i < m; ++i)
            row_factors[static_cast<size_t>(i)] = pack_half_row(rows.data() + i * kHalfChain, a.as<float>() + i * k, k);
        for (int64_t j = 0; j < n; ++j) {
            const float back = pack_half_row(column.data(), b.as<float>() + j * k, k, kLaneExponent);
            lane_factors[static_cast<size_t>(j)] = back;
            for (int64_t l = 0; l < k; ++l) lanes[static_cast<size_t>(l * n + j)] = column[static_cast<size_t>(l)];
        }
        const auto run = [&]<class Half>(Half /*arithmetic*/) {
            HalfProduct<Half>{c.as<float>(),      n, rows.data(),         1,     lanes.data(), n, k,
                              row_factors.data(), 1, lane_factors.data(), start, factor}
                .template run<kHalfChain>(m, n / 32);
        };
        GetParam() ? run(EmulatedHalf()) : run(Fp16());
    }
    static float largest(const Tensor& x, int64_t i) { return largest_magnitude(x.as<float>() + i * x.dim(1), x.dim(1)); }

    Tensors make_{1};
};

// The bound of half_product.h, for rows and lanes of very different sizes, and each start.
TEST_P(Halves, AreWithinTheirRounding) {
    for (int round = 0; round < 60; ++round) {
        const int64_t m = integer(1, 40), n = 32 * integer(1, 2), k = integer(1, kHalfChain);
        const Tensor a = make_.random({m, k}), b = make_.random({n, k}), c = make_.random({m, n}), factor = make_.random({n});
        for (const Tensor& x : {a, b})
            for (int64_t i = 0; i < x.size(); ++i)
                x.as<float>()[i] *= std::ldexp(1.0f, static_cast<int>(i / k * 37 % 90 - 45 + (i % 7 == 0 ? 12 : 0)));
        const auto start = static_cast<TileStart>(round % 3);
        std::vector<double> before(c.as<float>(), c.as<float>() + c.size());
        multiply(c, a, b, start, factor.as<float>());
        int64_t wrong = 0;
        for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < n; ++j) {
                const double old = before[static_cast<size_t>(i * n + j)], scaled = old * factor.as<float>()[j];
                double exact = start == TileStart::kZero ? 0 : start == TileStart::kScaled ? scaled : old, size = 0;
                for (int64_t l = 0; l < k; ++l) {
                    const double x =
                        static_cast<double>(a.as<float>()[i * k + l]) * static_cast<double>(b.as<float>()[j * k + l]);
                    exact += x;
                    size += std::fabs(x);
                }
                const double bound =
                    kHalfRelative * size +
                    kHalfAbsolute * static_cast<double>(k) * static_cast<double>(largest(a, i)) * largest(b, j) +
                    1e-6 * (std::fabs(exact) + std::fabs(old));
                wrong += !(std::fabs(c.as<float>()[i * n + j] - exact) <= bound);
            }
        EXPECT_EQ(wrong, 0) << c.describe() << " of " << k;
    }
}

// Whole numbers whose sums of 64 products have at most 11 bits.
TEST_P(Halves, OfSmallWholeNumbersAreExact) {
    for (const int64_t m : {1, 2, 11, 12, 13, 48, 64}) {
        const int64_t n = m % 2 == 0 ? 64 : 32, k = kHalfChain;
        const Tensor a = make_.random({m, k}), b = make_.random({n, k}), c = make_.random({m, n});
        for (const Tensor& x : {a, b})
            for (int64_t i = 0; i < x.size(); ++i) x.as<float>()[i] = static_cast<float>(integer(-5, 5));
        multiply(c, a, b, TileStart::kZero, nullptr);
        for (int64_t i = 0; i < m * n; ++i) {
            float exact = 0;
            for (int64_t l = 0; l < k; ++l) exact += a.as<float>()[i / n * k + l] * b.as<float>()[i % n * k + l];
            ASSERT_EQ(c.as<float>()[i], exact);
        }
    }
}

TEST_P(Halves, StayFiniteWithLargeNumbersAndKeepTinyOnes) {
    for (const float size : {1e15f, 3.9999f, 1e-15f, 0.0f}) {
        const Tensor a = make_.random({3, 64}), b = make_.random({32, 64}), c = make_.random({3, 32});
        for (const Tensor& x : {a, b}) std::fill_n(x.as<float>(), x.size(), size);
        multiply(c, a, b, TileStart::kZero, nullptr);
        const double exact = 64 * static_cast<double>(size) * static_cast<double>(size);
        for (int64_t i = 0; i < c.size(); ++i) EXPECT_NEAR(c.as<float>()[i], exact, kHalfRelative * exact);
    }
}

INSTANTIATE_TEST_SUITE_P(Isa, Halves, testing::Bool(), [](const auto& param) { return param.param ? "Emulated" : "Fp16"; });

}  // namespace
}  // namespace fathom
