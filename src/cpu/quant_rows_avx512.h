// Quantizing a row of activations with AVX-512: the bits of quantize_row (cpu/quant_rows.h), an eighth of its time.
#pragma once

#include <immintrin.h>

#include "cpu/quant_kernels.h"

namespace fathom {
namespace {

void quantize_row_avx512(int8_t* q, StepFactors* factors, const float* x, int64_t n, int zero, bool half_groups) {
    for (int64_t at = 0; at < n; at += kPanelStep, ++factors) {
        const __m512 first = _mm512_loadu_ps(x + at), second = _mm512_loadu_ps(x + at + 16);
        const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(first), _mm512_abs_ps(second)));
        const __m512 inverse = _mm512_set1_ps(largest > 1e-30f ? 127.0f / largest : 0.0f);
        const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse));
        const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q + at), _mm512_cvtepi32_epi8(low));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q + at + 16), _mm512_cvtepi32_epi8(high));
        const int32_t sum[2] = {_mm512_reduce_add_epi32(half_groups ? low : _mm512_add_epi32(low, high)),
                                _mm512_reduce_add_epi32(high)};
        factors->d = largest / 127.0f;
        for (const int half : {0, 1}) {
            factors->shift[half] = -zero * sum[half];
            factors->sum[half] = factors->d * static_cast<float>(sum[half]);
        }
    }
}

}  // namespace
}  // namespace fathom
