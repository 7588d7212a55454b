// Small products of halves, C[m, n] (+)= rows x lanes, as tile_product.h has them in f32: 32 lanes to a register, twice as many
// multiply-adds. A chain of at most kHalfChain multiply-adds runs in halves from 0, then it is widened and joins C in f32.
//
// Rows and lanes come scaled by powers of two (`scale_to`) that bring the largest of a row's below 2^4 and the largest of a
// lane's below 2^5: 64 products stay below 2^15 and are finite, and what is 2^-17 of the largest is still a normal half.
//
// Error of a chain over a and b, the largest of which are A and B: a and b are rounded, 2^-11 each, and so are at most 64 sums:
// kHalfRelative of the sum of |a b|. Below the normal halves a rounding is off by 2^-25 instead: with a scaled to [2^3, 2^4)
// and b to [2^4, 2^5) that is 2^-28 A |b| + 2^-29 B |a| + 2^-32 A B a product, less than kHalfAbsolute A B.
//
// `Half::fma(a, b, c)`: c + *a b; tests emulate it. Include only from *_avx512.cpp.
#pragma once

#include <immintrin.h>

#include "cpu/halves.h"
#include "cpu/simd_avx512.h"
#include "cpu/tile_product.h"

namespace fathom {
namespace {

struct Fp16 {
    // GCC 12 loads a factor that two registers meet by vpbroadcastw, which takes a unit that multiplies: 283 instead of 446
    // GFLOP/s. As an operand it costs nothing.
    [[gnu::always_inline]] static __m512i fma(const Float16* a, __m512i b, __m512i c) {
        asm("vfmadd231ph %2%{1to32%}, %1, %0" : "+v"(c) : "v"(b), "m"(*a));
        return c;
    }
};

// A power of two and its inverse.
struct HalfScale {
    float factor, inverse;
};
constexpr int kRowExponent = 3, kLaneExponent = 4;

// Brings numbers of which `largest` is the largest magnitude to [2^exponent, 2^(exponent + 1)); those below 2^-100 count as
// 2^-100.
inline HalfScale scale_to(int exponent, float largest) {
    const int of_largest = static_cast<int>(__builtin_bit_cast(uint32_t, largest) >> 23) - 127;
    const int shift = exponent - (of_largest > -100 ? of_largest : -100);
    const auto power = [](int n) { return __builtin_bit_cast(float, static_cast<uint32_t>(n + 127) << 23); };
    return {power(shift), power(-shift)};
}

inline float largest_magnitude(const float* x, int64_t n) {
    Avx512 largest = Avx512::zero();
    for (int64_t i = 0; i < n; i += 16)
        largest = Avx512::max(largest, {_mm512_abs_ps(Avx512::load(x + i, n - i < 16 ? n - i : 16).v)});
    return largest.largest();
}

inline void store_halves(Float16* to, Avx512 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

// to[0:n] = x[0:n] scaled; returns what takes the scale back. Writes zeros behind its end, up to a multiple of 16.
inline float pack_half_row(Float16* to, const float* x, int64_t n, int exponent = kRowExponent) {
    const HalfScale scale = scale_to(exponent, largest_magnitude(x, n));
    for (int64_t i = 0; i < n; i += 16)
        store_halves(to + i, Avx512::load(x + i, n - i < 16 ? n - i : 16) * Avx512::all(scale.factor));
    return scale.inverse;
}

// C[i, j] = start + rows[i] lanes[j] sum over k <= kHalfChain of A[i, k] B[k, j].
template <class Half>
struct HalfProduct {
    float* c;
    int64_t c_row;
    const Float16* a;
    int64_t a_k;  // distance of A's columns; that of its rows is a template argument
    const Float16* b;
    int64_t b_row;
    int64_t k;
    const float* rows;  // row i's at i rows_step
    int64_t rows_step;
    const float* lanes;
    TileStart start;
    const float* factor;  // kScaled

    static constexpr int64_t kLanes = 32;
    static constexpr int kRows = 12, kVectors = 2;  // with two of B's, 26 of 32 registers

    [[gnu::always_inline]] void add_to(int i, int64_t j, __m256i sum) const {
        float* const to = c + i * c_row + j;
        Avx512 before = start == TileStart::kZero ? Avx512::zero() : Avx512::load(to);
        if (start == TileStart::kScaled) before = before * Avx512::load(factor + j);
        const Avx512 row{_mm512_mul_ps(_mm512_cvtph_ps(sum), _mm512_set1_ps(rows[i * rows_step]))};
        Avx512::fma(row, Avx512::load(lanes + j), before).store(to);
    }

    template <int kRowStep, int R, int N>
    static void kernel(const HalfProduct& p) {
        __m512i sum[R][N];
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < N; ++j) sum[i][j] = _mm512_setzero_si512();
        const Float16 *a = p.a, *b = p.b;
        for (int64_t k = p.k; k > 0; --k, a += p.a_k, b += p.b_row) {
            __m512i right[N];
#pragma GCC unroll 2
            for (int j = 0; j < N; ++j) right[j] = _mm512_loadu_si512(b + j * kLanes);
#pragma GCC unroll 12
            for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
                for (int j = 0; j < N; ++j) sum[i][j] = Half::fma(a + i * kRowStep, right[j], sum[i][j]);
        }
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < N; ++j) {
                p.add_to(i, j * kLanes, _mm512_castsi512_si256(sum[i][j]));
                p.add_to(i, j * kLanes + 16, _mm512_extracti64x4_epi64(sum[i][j], 1));
            }
    }

    // The kernel for `count` <= R rows: a descent through the instantiations.
    template <int kRowStep, int N, int R>
    static void with_rows(const HalfProduct& p, int64_t count) {
        if constexpr (R > 1) {
            if (count < R) return with_rows<kRowStep, N, R - 1>(p, count);
        }
        kernel<kRowStep, R, N>(p);
    }

    // m rows; 1 or 2 vectors of lanes. A[i, l] = a[i kRowStep + l a_k].
    template <int kRowStep>
    void run(int64_t m, int64_t vectors) const {
        HalfProduct part = *this;
        for (int64_t i = 0; i < m; i += kRows) {
            part.c = c + i * c_row;
            part.a = a + i * kRowStep;
            part.rows = rows + i * rows_step;
            const int64_t count = m - i < kRows ? m - i : kRows;
            vectors == 1 ? with_rows<kRowStep, 1, kRows>(part, count) : with_rows<kRowStep, kVectors, kRows>(part, count);
        }
    }
};

}  // namespace
}  // namespace fathom
