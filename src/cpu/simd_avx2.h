// Sixteen floats in two 256-bit registers: the members of simd_avx512.h, the same bits. Include only from *_avx2.cpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "tensor/dtype.h"

namespace fathom {

struct Avx2 {
    static constexpr int kRegisters = 8;  // how many Avx2 values the processor holds
    __m256 lo, hi;

    static Avx2 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static Avx2 all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static Avx2 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static Avx2 load(const BFloat16* p) { return {bf16(load16(p)), bf16(load16(p + 8))}; }
    static Avx2 load(const Float16* p) { return {_mm256_cvtph_ps(load16(p)), _mm256_cvtph_ps(load16(p + 8))}; }
    static Avx2 load(const Float8E4M3* p) {
        return {fp8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
                fp8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
    }
    static Avx2 load(const int8_t* p) { return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    // The low nibbles of 16 bytes, and the high ones.
    static void load_nibbles(const uint8_t* p, Avx2 (&y)[2]) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), mask = _mm_set1_epi8(15);
        y[0] = widened(_mm_and_si128(bytes, mask));
        y[1] = widened(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
    }
    // The binary16 at any address, in all lanes.
    static Avx2 all_half(const void* p) {
        int16_t bits;
        __builtin_memcpy(&bits, p, sizeof bits);
        const __m256 x = _mm256_cvtph_ps(_mm_set1_epi16(bits));
        return {x, x};
    }
    // The first n of 16 elements, n in [0, 16]; the rest is 0 (load) or left alone (store).
    static Avx2 load(const float* p, int64_t n) {
        if (n >= 8) return {_mm256_loadu_ps(p), _mm256_maskload_ps(p + 8, first(n - 8))};
        return {_mm256_maskload_ps(p, first(n)), _mm256_setzero_ps()};
    }
    template <class T>
    static Avx2 load(const T* p, int64_t n) {
        T padded[16] = {};
        __builtin_memcpy(padded, p, static_cast<size_t>(n) * sizeof(T));
        return load(padded);
    }
    void store(float* p) const {
        _mm256_storeu_ps(p, lo);
        _mm256_storeu_ps(p + 8, hi);
    }
    void store(float* p, int64_t n) const {
        if (n < 8) return _mm256_maskstore_ps(p, first(n), lo);
        _mm256_storeu_ps(p, lo);
        _mm256_maskstore_ps(p + 8, first(n - 8), hi);
    }
    void store(BFloat16* p) const {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(lo));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), to_bf16(hi));
    }
    void store(Float16* p) const {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_f16(lo));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), to_f16(hi));
    }
    template <class T>
    void store(T* p, int64_t n) const {
        T padded[16];
        store(padded);
        __builtin_memcpy(p, padded, static_cast<size_t>(n) * sizeof(T));
    }

    friend Avx2 operator+(Avx2 a, Avx2 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
    friend Avx2 operator-(Avx2 a, Avx2 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
    friend Avx2 operator*(Avx2 a, Avx2 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
    friend Avx2 operator/(Avx2 a, Avx2 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
    static Avx2 fma(Avx2 a, Avx2 b, Avx2 c) {  // a b + c
        return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
    }
    static Avx2 max(Avx2 a, Avx2 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
    static Avx2 sqrt(Avx2 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
    static Avx2 round(Avx2 a) {
        constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        return {_mm256_round_ps(a.lo, kNearest), _mm256_round_ps(a.hi, kNearest)};
    }
    // a * 2^n by adding n (integral) to the exponent field: only where a and the result are normal.
    static Avx2 scale_exponent(Avx2 a, Avx2 n) { return {scale8(a.lo, n.lo), scale8(a.hi, n.hi)}; }
    // a < b ? x : y, lane by lane; false for NaN.
    static Avx2 if_less(Avx2 a, Avx2 b, Avx2 x, Avx2 y) {
        return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
                _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
    }
    static Avx2 swap_pairs(Avx2 a) { return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)}; }

    // Rows become columns.
    static void transpose(Avx2 (&r)[16]) {
        __m256 quarter[4][8];  // [2 * (rows 8..15) + (columns 8..15)]
        for (int i = 0; i < 16; ++i) {
            quarter[i / 8 * 2][i % 8] = r[i].lo;
            quarter[i / 8 * 2 + 1][i % 8] = r[i].hi;
        }
        for (auto& q : quarter) transpose8(q);
        for (int i = 0; i < 16; ++i) r[i] = {quarter[i / 8][i % 8], quarter[i / 8 + 2][i % 8]};
    }

    // Lane i + lane i+8, then i+4, i+2, i+1: the fixed tree of docs/decisions/001.
    [[nodiscard]] float sum() const {
        const __m256 a = _mm256_add_ps(lo, hi);
        const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
        return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
    }
    [[nodiscard]] float largest() const {
        const __m256 a = _mm256_max_ps(lo, hi);
        const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
        return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
    }

    // Sixteen f64 partial sums of squares.
    struct SquareSum {
        __m256d part[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
        void add(Avx2 x) {
            add4(part[0], _mm256_castps256_ps128(x.lo));
            add4(part[1], _mm256_extractf128_ps(x.lo, 1));
            add4(part[2], _mm256_castps256_ps128(x.hi));
            add4(part[3], _mm256_extractf128_ps(x.hi, 1));
        }
        void store(double* p) const {
            for (int i = 0; i < 4; ++i) _mm256_storeu_pd(p + 4 * i, part[i]);
        }

    private:
        static void add4(__m256d& sum, __m128 x) {
            const __m256d a = _mm256_cvtps_pd(x);
            sum = _mm256_fmadd_pd(a, a, sum);
        }
    };

private:
    static void transpose8(__m256 (&r)[8]) {
        __m256 t[8], u[8];
        for (int i = 0; i < 8; i += 2) {
            t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
            t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {  // u[i + c]: 128-bit lane l holds column 4l + c of rows i .. i+3
            u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
            u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
            u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
            u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
        }
        for (int c = 0; c < 4; ++c) {
            r[c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
            r[4 + c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
        }
    }
    static __m256i first(int64_t n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
    static Avx2 widened(__m128i bytes) {
        return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
    }
    static __m256 bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
    // Exponent and mantissa move into place and 2^120 corrects the bias: exact for subnormals too. 0x7f is NaN.
    static __m256 fp8(__m128i x) {
        const __m256i u = _mm256_cvtepu8_epi32(x);
        const __m256i magnitude = _mm256_and_si256(u, _mm256_set1_epi32(0x7f));
        const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(u, _mm256_set1_epi32(0x80)), 24);
        const __m256 value = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 20)), _mm256_set1_ps(0x1p120f));
        const __m256i nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
        const __m256i bits = _mm256_blendv_epi8(_mm256_castps_si256(value), _mm256_set1_epi32(0x7fc00000), nan);
        return _mm256_castsi256_ps(_mm256_or_si256(bits, sign));
    }
    static __m128i to_bf16(__m256 x) {  // to nearest even; NaN stays NaN
        const __m256i u = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
        const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        const __m256i result = _mm256_blendv_epi8(rounded, quiet, nan);
        return _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
    }
    static __m128i to_f16(__m256 x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static __m256 scale8(__m256 a, __m256 n) {
        const __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), shifted));
    }
};

}  // namespace fathom
