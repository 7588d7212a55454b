// Sixteen floats in one 512-bit register. simd_avx2.h has the same members and gives the same bits; kernels are templates over
// the two, so that each is written once. Include only from *_avx512.cpp: the type's name keeps the linker from mixing the
// instantiations.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "tensor/dtype.h"

namespace fathom {

struct Avx512 {
    static constexpr int kRegisters = 32;  // how many Avx512 values the processor holds
    __m512 v;

    static Avx512 zero() { return {_mm512_setzero_ps()}; }
    static Avx512 all(float x) { return {_mm512_set1_ps(x)}; }
    static Avx512 load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Avx512 load(const BFloat16* p) {
        return bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));  //
    }
    static Avx512 load(const Float16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
    static Avx512 load(const Float8E4M3* p) { return fp8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static Avx512 load(const int8_t* p) {
        return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
    }
    // The low nibbles of 16 bytes, and the high ones.
    static void load_nibbles(const uint8_t* p, Avx512 (&y)[2]) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), mask = _mm_set1_epi8(15);
        y[0].v = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(bytes, mask)));
        y[1].v = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask)));
    }
    // The binary16 at any address, in all lanes.
    static Avx512 all_half(const void* p) {
        int16_t bits;
        __builtin_memcpy(&bits, p, sizeof bits);
        return {_mm512_cvtph_ps(_mm256_set1_epi16(bits))};
    }
    // The first n of 16 elements, n in [0, 16]; the rest is 0 (load) or left alone (store).
    static Avx512 load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
    static Avx512 load(const BFloat16* p, int64_t n) { return bf16(_mm256_maskz_loadu_epi16(first(n), p)); }
    static Avx512 load(const Float16* p, int64_t n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))}; }
    static Avx512 load(const Float8E4M3* p, int64_t n) { return fp8(_mm_maskz_loadu_epi8(first(n), p)); }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, first(n), v); }
    void store(BFloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16()); }
    void store(BFloat16* p, int64_t n) const { _mm256_mask_storeu_epi16(p, first(n), to_bf16()); }
    void store(Float16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16()); }
    void store(Float16* p, int64_t n) const { _mm256_mask_storeu_epi16(p, first(n), to_f16()); }

    friend Avx512 operator+(Avx512 a, Avx512 b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend Avx512 operator-(Avx512 a, Avx512 b) { return {_mm512_sub_ps(a.v, b.v)}; }
    friend Avx512 operator*(Avx512 a, Avx512 b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend Avx512 operator/(Avx512 a, Avx512 b) { return {_mm512_div_ps(a.v, b.v)}; }
    static Avx512 fma(Avx512 a, Avx512 b, Avx512 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a b + c
    static Avx512 max(Avx512 a, Avx512 b) { return {_mm512_max_ps(a.v, b.v)}; }
    static Avx512 sqrt(Avx512 a) { return {_mm512_sqrt_ps(a.v)}; }
    static Avx512 round(Avx512 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
    // a * 2^n by adding n (integral) to the exponent field: only where a and the result are normal.
    static Avx512 scale_exponent(Avx512 a, Avx512 n) {
        const __m512i shifted = _mm512_slli_epi32(_mm512_cvtps_epi32(n.v), 23);
        return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), shifted))};
    }
    // a < b ? x : y, lane by lane; false for NaN.
    static Avx512 if_less(Avx512 a, Avx512 b, Avx512 x, Avx512 y) {
        return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
    }
    static Avx512 swap_pairs(Avx512 a) { return {_mm512_permute_ps(a.v, 0xb1)}; }  // lanes (2i, 2i + 1) change places

    // Rows become columns.
    static void transpose(Avx512 (&r)[16]) {
        __m512 t[16], u[16];
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
            t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
        }
        for (int i = 0; i < 16; i += 4) {  // u[i + c]: 128-bit lane l holds column 4l + c of rows i .. i+3
            u[i] = unpacklo2(t[i], t[i + 2]);
            u[i + 1] = unpackhi2(t[i], t[i + 2]);
            u[i + 2] = unpacklo2(t[i + 1], t[i + 3]);
            u[i + 3] = unpackhi2(t[i + 1], t[i + 3]);
        }
        for (int c = 0; c < 4; ++c) {
            const __m512 even0 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88),
                         even1 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
            const __m512 odd0 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd),
                         odd1 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
            r[c].v = _mm512_shuffle_f32x4(even0, even1, 0x88);
            r[4 + c].v = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
            r[8 + c].v = _mm512_shuffle_f32x4(even0, even1, 0xdd);
            r[12 + c].v = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
        }
    }

    // Lane i + lane i+8, then i+4, i+2, i+1: the fixed tree of docs/decisions/001.
    [[nodiscard]] float sum() const { return sum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))); }
    [[nodiscard]] float largest() const {
        const __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
        const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
        return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
    }

    // Sixteen f64 partial sums of squares.
    struct SquareSum {
        __m512d lo = _mm512_setzero_pd(), hi = _mm512_setzero_pd();
        void add(Avx512 x) {
            const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(x.v));
            const __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1));
            lo = _mm512_fmadd_pd(a, a, lo);
            hi = _mm512_fmadd_pd(b, b, hi);
        }
        void store(double* p) const {
            _mm512_storeu_pd(p, lo);
            _mm512_storeu_pd(p + 8, hi);
        }
    };

private:
    static __m512 unpacklo2(__m512 a, __m512 b) {
        return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    }
    static __m512 unpackhi2(__m512 a, __m512 b) {
        return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    }
    static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
    static Avx512 bf16(__m256i x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))}; }
    // Exponent and mantissa move into place and 2^120 corrects the bias: exact for subnormals too. 0x7f is NaN.
    static Avx512 fp8(__m128i x) {
        const __m512i u = _mm512_cvtepu8_epi32(x);
        const __m512i magnitude = _mm512_and_si512(u, _mm512_set1_epi32(0x7f));
        const __m512i sign = _mm512_slli_epi32(_mm512_and_si512(u, _mm512_set1_epi32(0x80)), 24);
        const __m512 value = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(magnitude, 20)), _mm512_set1_ps(0x1p120f));
        const __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
        const __m512i bits = _mm512_mask_blend_epi32(nan, _mm512_castps_si512(value), _mm512_set1_epi32(0x7fc00000));
        return {_mm512_castsi512_ps(_mm512_or_si512(bits, sign))};
    }
    [[nodiscard]] __m256i to_bf16() const {  // to nearest even; NaN stays NaN
        const __m512i u = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
        const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, quiet));
    }
    [[nodiscard]] __m256i to_f16() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static float sum8(__m256 a) {
        const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
        return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
    }
};

}  // namespace fathom
