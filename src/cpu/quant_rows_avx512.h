// Quantizing a row of activations with AVX-512: the bits of quantize_row (cpu/quant_rows.h). Sixteen steps of 32 columns go
// together, so that their largest numbers and their sums are found side by side.
#pragma once

#include <immintrin.h>

#include "cpu/quant_kernels.h"
#include "cpu/simd_avx512.h"

namespace fathom {
namespace {

constexpr int64_t kStepsTogether = 16;

// Lane i: max |x| of step i, 0 from step `count` on.
__m512 largest_of_steps(const float* x, int64_t count) {
    Avx512 largest[kStepsTogether];
    for (int64_t i = 0; i < kStepsTogether; ++i)
        largest[i] = i < count ? Avx512{_mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x + i * kPanelStep)),
                                                      _mm512_abs_ps(_mm512_loadu_ps(x + i * kPanelStep + 16)))}
                               : Avx512::zero();
    Avx512::transpose(largest);
    for (int64_t width = kStepsTogether / 2; width > 0; width /= 2)
        for (int64_t i = 0; i < width; ++i) largest[i] = Avx512::max(largest[i], largest[i + width]);
    return largest[0].v;
}

// The codes of two steps of 32 columns; inverse: 127 over the largest number of each.
__m512i codes_of_steps(const float* x, const float* inverse, bool second) {
    const auto code = [&](int64_t i) {
        if (i > 1 && !second) return _mm512_setzero_si512();
        return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), _mm512_set1_ps(inverse[i / 2])));
    };
    // Packing works within 128 bits: the fours of columns come out as 0, 4, 8, 12, 1, 5, ...
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(code(0), code(1)), _mm512_packs_epi32(code(2), code(3)));
    const __m512i place = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(place, packed);
}

// Of four vectors of two steps' codes: the sums of 16 codes, place 4 h + v being half h of the four halves of vector v.
__m512i sums_of_halves(const __m512i (&codes)[4]) {
    const auto fours = [&](int v) { return _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), codes[v]); };
    const auto joined = [](__m512i a, __m512i b) {
        return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    };
    const __m512i low = joined(fours(0), fours(1)), high = joined(fours(2), fours(3));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
}

// kStart: what is added to each shift.
template <int32_t kStart = 0>
void quantize_row_avx512(int8_t* q, StepFactors* factors, const float* x, int64_t n, int zero, bool half_groups) {
    for (int64_t steps = n / kPanelStep, first = 0; first < steps; first += kStepsTogether) {
        const int64_t count = steps - first < kStepsTogether ? steps - first : kStepsTogether;
        const __m512 largest = largest_of_steps(x + first * kPanelStep, count);
        const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(1e-30f), _CMP_GT_OQ);
        alignas(64) float d[kStepsTogether], inverse[kStepsTogether];
        _mm512_store_ps(d, _mm512_div_ps(largest, _mm512_set1_ps(127.0f)));
        _mm512_store_ps(inverse, _mm512_maskz_div_ps(some, _mm512_set1_ps(127.0f), largest));
        alignas(64) int32_t sums[2][16];
        for (int64_t eight = 0; eight < count; eight += 8) {
            __m512i codes[4] = {};
            for (int64_t v = 0; v < 4 && eight + 2 * v < count; ++v) {
                const int64_t i = eight + 2 * v, step = first + i;
                const bool both = i + 1 < count;
                codes[v] = codes_of_steps(x + step * kPanelStep, inverse + i, both);
                _mm512_mask_storeu_epi8(q + step * kPanelStep, both ? ~uint64_t{0} : ~uint64_t{0} >> 32, codes[v]);
            }
            _mm512_store_si512(sums[eight / 8], sums_of_halves(codes));
        }
        for (int64_t i = 0; i < count; ++i, ++factors) {
            const int32_t* const halves = sums[i / 8] + 8 * (i % 2) + i % 8 / 2;
            const int32_t sum[2] = {half_groups ? halves[0] : halves[0] + halves[4], halves[4]};
            factors->d = d[i];
            for (const int half : {0, 1}) {
                factors->shift[half] = kStart - zero * sum[half];
                factors->sum[half] = d[i] * static_cast<float>(sum[half]);
            }
        }
    }
}

}  // namespace
}  // namespace fathom
