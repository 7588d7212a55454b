// Products of panels of F16 with multiply-adds in half precision, twice as many as in f32: 32 lanes, 16 columns of two panels.
// They lose bits, so the kernel is used by FATHOM_CPU_ISA=avx512-fp16 alone. Chains are short: 16 columns in halves, then one
// multiply-add in f32, which also takes back the power of two by which a row's 256 columns are scaled. It brings the largest of
// them below 2^-5, where 16 products with any half stay finite.
//
// Error: 17 roundings to 2^-11 of the sum of |x w| of 16 columns, or where that is below the normal halves 2^-25 each, which is
// 2^-19 of the row's largest of the 256; so much, times |w|, small x lose as well. Cuts are at multiples of 16 and 256 from the
// beginning: a row's bits depend neither on its batch nor on tiles.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "cpu/gemm.h"
#include "cpu/gemm_operand.h"
#include "cpu/simd_avx512.h"

namespace fathom {
namespace {

// Half::fma(a, b, c) of 32 halves in a register.
template <class Half>
class HalfGemm {
public:
    // As gemm_tile_avx512.
    static void multiply_tile(const GemmTile& tile, float* scratch) {
        const GemmProduct& p = *tile.product;
        for (int64_t l = 0; l < p.k; l += kBlock)
            for (int64_t m0 = tile.m0; m0 < tile.m1; m0 += kPackedRows)
                multiply_block(tile, {m0, std::min(m0 + kPackedRows, tile.m1), kRows}, l, std::min(kBlock, p.k - l), scratch);
    }

private:
    static constexpr int kRows = 9;  // with two sums in f32 and one in halves each
    static constexpr int64_t kLanes = 16, kChain = 16, kBlock = 256, kLargest = -6;
    static constexpr int64_t kPackedRows = GemmBlocking::kPackedA / kBlock / kRows * kRows;

    struct Step {
        const float* a;  // [k, R], a half twice in each
        const float* factor;
        const Float16 *left, *right;  // panels
        int64_t k;
        float* c;
        int64_t c_row;
        bool from_zero, two;
    };

    // to[l rows + r] = a[r, l] times a power of two, the inverse of which is factor[r].
    static void pack(float* to, float* factor, const float* a, int64_t a_row, int64_t rows, int64_t k) {
        for (int64_t r = 0; r < rows; ++r, a += a_row) {
            float largest = 0;
            for (int64_t l = 0; l < k; ++l) largest = std::max(largest, std::fabs(a[l]));
            const int exponent = largest > 0 ? std::clamp(std::ilogb(largest), -120, 120) : 0;
            const float scale = std::ldexp(1.0f, static_cast<int>(kLargest) - exponent);
            factor[r] = 1 / scale;
            for (int64_t l = 0; l < k; l += kLanes) {
                const Avx512 x = Avx512::load(a + l, std::min(kLanes, k - l)) * Avx512::all(scale);
                const __m512i half = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
                alignas(64) float twice[kLanes];
                _mm512_store_si512(twice, _mm512_or_si512(half, _mm512_slli_epi32(half, 16)));
                for (int64_t i = 0; i < std::min(kLanes, k - l); ++i) to[(l + i) * rows + r] = twice[i];
            }
        }
    }

    template <int R>
    static void kernel(const Step& step) {
        __m512 sum[R][2];
#pragma GCC unroll 9
        for (int r = 0; r < R; ++r) {
            float* const c = step.c + r * step.c_row;
            sum[r][0] = step.from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(c);
            sum[r][1] = step.from_zero || !step.two ? _mm512_setzero_ps() : _mm512_loadu_ps(c + kLanes);
        }
        const float* a = step.a;
        for (int64_t l = 0; l < step.k; l += kChain) {
            __m512i chain[R];
#pragma GCC unroll 9
            for (int r = 0; r < R; ++r) chain[r] = _mm512_setzero_si512();
            const int64_t end = std::min(l + kChain, step.k);
            for (int64_t i = l; i < end; ++i, a += R) {
                const __m512i b = _mm512_inserti64x4(_mm512_castsi256_si512(half_vector(step.left + i * kLanes)),
                                                     half_vector(step.right + i * kLanes), 1);
#pragma GCC unroll 9
                for (int r = 0; r < R; ++r) chain[r] = Half::fma(_mm512_castps_si512(_mm512_set1_ps(a[r])), b, chain[r]);
            }
#pragma GCC unroll 9
            for (int r = 0; r < R; ++r) {
                const __m512 factor = _mm512_set1_ps(step.factor[r]);
                sum[r][0] = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(chain[r])), factor, sum[r][0]);
                sum[r][1] = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(chain[r], 1)), factor, sum[r][1]);
            }
        }
#pragma GCC unroll 9
        for (int r = 0; r < R; ++r) {
            _mm512_storeu_ps(step.c + r * step.c_row, sum[r][0]);
            if (step.two) _mm512_storeu_ps(step.c + r * step.c_row + kLanes, sum[r][1]);
        }
    }
    static __m256i half_vector(const Float16* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

    using Kernel = void (*)(const Step&);
    template <int... I>
    static constexpr std::array<Kernel, sizeof...(I)> make_kernels(std::integer_sequence<int, I...>) {
        return {&kernel<I + 1>...};
    }

    static void multiply_block(const GemmTile& tile, const Slivers& slivers, int64_t l, int64_t k, float* scratch) {
        static constexpr auto kKernels = make_kernels(std::make_integer_sequence<int, kRows>{});
        const GemmProduct& p = *tile.product;
        const Stored<Float16> b(p.b);
        float* const factors = scratch + GemmBlocking::kPackedA;
        for (int64_t i = 0; i < slivers.count; ++i) {
            const int64_t m = slivers.at(i), at = m - slivers.begin;
            pack(scratch + at * k, factors + at, p.a + m * p.a_row + l, p.a_row, slivers.at(i + 1) - m, k);
        }
        for (int64_t n = tile.n0; n < tile.n1; n += 2 * kLanes)
            for (int64_t i = 0; i < slivers.count; ++i) {
                const int64_t m = slivers.at(i), at = m - slivers.begin;
                Step step{.a = scratch + at * k, .factor = factors + at, .left = b.in_panel(l, n), .right = nullptr, .k = k};
                step.two = n + kLanes < tile.n1;
                step.right = step.two ? b.in_panel(l, n + kLanes) : step.left;
                step.c = p.c + m * p.c_row + n, step.c_row = p.c_row;
                step.from_zero = l == 0 && !p.accumulate;
                kKernels[static_cast<size_t>(slivers.at(i + 1) - m - 1)](step);
            }
    }
};

}  // namespace
}  // namespace fathom
