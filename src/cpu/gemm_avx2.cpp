// AVX2: 8 lanes, 6 x 2 accumulators of 16 registers.
#include <immintrin.h>

#include "cpu/gemm_tile.h"

namespace fathom {
namespace {

struct Lanes8 {
    using Float = __m256;
    static constexpr int kLanes = 8, kRows = 6;
    static constexpr int kStreamRows = 4, kFewRows = 12;  // gemm_stream.h

    static Float zero() { return _mm256_setzero_ps(); }
    static Float broadcast(float x) { return _mm256_set1_ps(x); }
    static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
    static void store(float* to, Float x) { _mm256_storeu_ps(to, x); }
    static void store_first(float* to, Float x, int count) { _mm256_maskstore_ps(to, first(count), x); }
    static void prefetch(const void* from) { _mm_prefetch(from, _MM_HINT_T0); }
    static void prefetch_to_l2(const void* from) { _mm_prefetch(from, _MM_HINT_T1); }

    static __m256i first(int count) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static Float load(const float* from) { return _mm256_loadu_ps(from); }
    static Float load_first(const float* from, int count) { return _mm256_maskload_ps(from, first(count)); }

    static Float widen(const BFloat16*, __m128i x) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
    }
    static Float widen(const Float16*, __m128i x) { return _mm256_cvtph_ps(x); }
    // e4m3 as an IEEE half: same sign, exponent and mantissa bits, 2^8 too small (biases 7 and 15); 0x7f is NaN.
    static Float widen(const Float8E4M3*, __m128i x) {
        const __m128i code = _mm_cvtepu8_epi16(x);
        const __m128i magnitude = _mm_and_si128(code, _mm_set1_epi16(0x7f));
        const __m128i nan = _mm_and_si128(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7c00));
        const __m128i sign = _mm_slli_epi16(_mm_and_si128(code, _mm_set1_epi16(0x80)), 8);
        const __m128i half = _mm_or_si128(_mm_or_si128(sign, nan), _mm_slli_epi16(magnitude, 7));
        return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
    }
    template <class T>
    static Float load(const T* from) {
        if constexpr (sizeof(T) == 1)
            return widen(from, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
        else
            return widen(from, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    // No masked loads below 32 bits: through the stack.
    template <class T>
    static Float load_first(const T* from, int count) {
        T whole[kLanes] = {};
        std::memcpy(static_cast<void*>(whole), from, sizeof(T) * static_cast<size_t>(count));
        return load(whole);
    }

    // bf16 pairs (2i, 2i + 1) as 32-bit units.
    static Float load_pairs(const BFloat16* from) {
        return _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    static Float load_first_pairs(const BFloat16* from, int count) {
        BFloat16 whole[2 * kLanes] = {};
        std::memcpy(static_cast<void*>(whole), from, sizeof(BFloat16) * static_cast<size_t>(count));
        return load_pairs(whole);
    }
    static Float even_of_pairs(Float x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16)); }
    static Float odd_of_pairs(Float x) {
        return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000))));
    }

    // 8 x 8: 32-bit, then 64-bit units within 128-bit lanes, then the lanes.
    static void transpose(Float (&r)[8]) {
        __m256d t[8];
#pragma GCC unroll 4
        for (int i = 0; i < 8; i += 2) {
            t[i] = _mm256_castps_pd(_mm256_unpacklo_ps(r[i], r[i + 1]));
            t[i + 1] = _mm256_castps_pd(_mm256_unpackhi_ps(r[i], r[i + 1]));
        }
        __m256 u[8];
#pragma GCC unroll 2
        for (int i = 0; i < 8; i += 4) {  // u[i + j]: element j of each lane's quadruple, rows i .. i + 3
            u[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(t[i], t[i + 2]));
            u[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(t[i], t[i + 2]));
            u[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(t[i + 1], t[i + 3]));
            u[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(t[i + 1], t[i + 3]));
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            r[j] = _mm256_permute2f128_ps(u[j], u[j + 4], 0x20);
            r[j + 4] = _mm256_permute2f128_ps(u[j], u[j + 4], 0x31);
        }
    }
};

}  // namespace

void gemm_tile_avx2(const GemmTile& tile, float* scratch) { multiply_tile<Lanes8>(tile, scratch); }

}  // namespace fathom
