// Pairs of bf16 in the 32-bit lanes of a register, and vdpbf16ps on them. Kernels hold them in arrays of float, whose bits are
// two bf16 then.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "cpu/simd_avx512.h"

namespace fathom {
namespace {

using Pair = float;

// 32 floats of which `count` exist, rounded: 16 pairs of neighbours.
inline __m512 pairs_of(const float* from, int64_t count, Avx512 factor = Avx512::all(1)) {
    const Avx512 low = Avx512::load(from, std::min<int64_t>(count, 16)) * factor;
    const Avx512 high = Avx512::load(from + 16, std::max<int64_t>(count - 16, 0)) * factor;
    return reinterpret_cast<__m512>(_mm512_cvtne2ps_pbh(high.v, low.v));
}

// Lane by lane (x, y), rounded.
inline __m512 pairs_of(Avx512 x, Avx512 y) {
    alignas(64) static constexpr int16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(y.v, x.v));
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both));
}

// sum + a.x b.x + a.y b.y
inline __m512 add_pairs(__m512 sum, __m512 a, __m512 b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

}  // namespace
}  // namespace fathom
