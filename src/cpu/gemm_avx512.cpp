// AVX-512: 16 lanes, 14 x 2 accumulators of 32 registers.
#include <immintrin.h>

#include "cpu/gemm_tile.h"

namespace fathom {
namespace {

struct Lanes16 {
    using Float = __m512;
    static constexpr int kLanes = 16, kRows = 14;
    static constexpr int kStreamRows = 8, kFewRows = 24;  // gemm_stream.h

    static Float zero() { return _mm512_setzero_ps(); }
    static Float broadcast(float x) { return _mm512_set1_ps(x); }
    static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static void store(float* to, Float x) { _mm512_storeu_ps(to, x); }
    static void store_first(float* to, Float x, int count) { _mm512_mask_storeu_ps(to, first(count), x); }
    static void prefetch(const void* from) { _mm_prefetch(from, _MM_HINT_T0); }
    static void prefetch_to_l2(const void* from) { _mm_prefetch(from, _MM_HINT_T1); }

    static __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
    static Float load(const float* from) { return _mm512_loadu_ps(from); }
    static Float load_first(const float* from, int count) { return _mm512_maskz_loadu_ps(first(count), from); }

    static Float widen(const BFloat16*, __m256i x) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
    }
    static Float widen(const Float16*, __m256i x) { return _mm512_cvtph_ps(x); }
    // e4m3 as an IEEE half: same sign, exponent and mantissa bits, 2^8 too small (biases 7 and 15); 0x7f is NaN. The byte's
    // sign is spread over the upper byte first, so that one shift moves all of it.
    static Float widen(const Float8E4M3*, __m128i x) {
        const __m256i code = _mm256_cvtepi8_epi16(x), ones = _mm256_set1_epi16(0x7f);
        __m256i half = _mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
        const __mmask16 nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(code, ones), ones);
        half = _mm256_or_si256(half, _mm256_maskz_set1_epi16(nan, 0x7c00));
        return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
    }
    template <class T>
    static Float load(const T* from) {
        if constexpr (sizeof(T) == 1)
            return widen(from, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        else
            return widen(from, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    template <class T>
    static Float load_first(const T* from, int count) {
        if constexpr (sizeof(T) == 1)
            return widen(from, _mm_maskz_loadu_epi8(first(count), from));
        else
            return widen(from, _mm256_maskz_loadu_epi16(first(count), from));
    }

    // bf16 pairs (2i, 2i + 1) as 32-bit units.
    static Float load_pairs(const BFloat16* from) { return _mm512_castsi512_ps(_mm512_loadu_si512(from)); }
    static Float load_first_pairs(const BFloat16* from, int count) {
        return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << count) - 1), from));
    }
    static Float even_of_pairs(Float x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 16)); }
    static Float odd_of_pairs(Float x) {
        return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(static_cast<int>(0xffff0000))));
    }

    // 16 x 16: 32-bit, then 64-bit units within 128-bit lanes, then the lanes.
    static void transpose(Float (&r)[16]) {
        __m512d t[16];
#pragma GCC unroll 8
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_castps_pd(_mm512_unpacklo_ps(r[i], r[i + 1]));
            t[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(r[i], r[i + 1]));
        }
#pragma GCC unroll 4
        for (int i = 0; i < 16; i += 4) {  // r[i + j]: element j of each lane's quadruple, rows i .. i + 3
            r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(t[i], t[i + 2]));
            r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(t[i], t[i + 2]));
            r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(t[i + 1], t[i + 3]));
            r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(t[i + 1], t[i + 3]));
        }
        __m512 u[16];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            u[j] = _mm512_shuffle_f32x4(r[j], r[j + 4], 0x88);           // lanes 0, 2 of rows 0-3, 4-7
            u[j + 4] = _mm512_shuffle_f32x4(r[j], r[j + 4], 0xdd);       // lanes 1, 3
            u[j + 8] = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0x88);  // the same of rows 8-11, 12-15
            u[j + 12] = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0xdd);
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            r[j] = _mm512_shuffle_f32x4(u[j], u[j + 8], 0x88);
            r[j + 4] = _mm512_shuffle_f32x4(u[j + 4], u[j + 12], 0x88);
            r[j + 8] = _mm512_shuffle_f32x4(u[j], u[j + 8], 0xdd);
            r[j + 12] = _mm512_shuffle_f32x4(u[j + 4], u[j + 12], 0xdd);
        }
    }
};

}  // namespace

void gemm_tile_avx512(const GemmTile& tile, float* scratch) { multiply_tile<Lanes16>(tile, scratch); }

}  // namespace fathom
