// How fast registers multiply halves (cpu/roofline.h).
#include <immintrin.h>

#include "cpu/roofline.h"

namespace fathom {
namespace {

constexpr int kChains = 12;  // latency 4, two units

float fp16(int64_t rounds) {
    __m512h x[kChains];
    const auto a = reinterpret_cast<__m512h>(_mm512_set1_epi16(0x3800)),
               b = reinterpret_cast<__m512h>(_mm512_set1_epi16(0x2000));
    for (int c = 0; c < kChains; ++c) x[c] = a;
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12  // or the chains live in memory
        for (int c = 0; c < kChains; ++c) x[c] = _mm512_fmadd_ph(x[c], a, b);
    }
    for (int c = 1; c < kChains; ++c) x[0] = _mm512_fmadd_ph(x[c], a, x[0]);
    return static_cast<float>(_mm512_reduce_add_ph(x[0]));
}

}  // namespace

ProductLoop fp16_loop_avx512() { return {fp16, int64_t{2} * 32 * kChains}; }

}  // namespace fathom
