// Numbers to blocks of 32 by rounding to nearest: the types whose encoding needs no search. quant/encode.h has all types.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tensor/blocks.h"
#include "tensor/dtype.h"

namespace fathom {

// Encodes x[0:n], n a multiple of 32, to `codes`: Q8_0, Q4_0, Q4_1, Q5_0 or Q5_1, the bytes of the Python package gguf (and of
// ggml's reference). NaN and infinities are the caller's to exclude: they give some code.
void encode_nearest(BlockType type, const float* x, void* codes, int64_t n);

// What encoders are written with:
inline void put_half(uint8_t* to, float value) {
    const Float16 half(value);
    std::memcpy(to, &half.bits, sizeof half.bits);
}
[[nodiscard]] inline int clamped(float value, int low, int high) {
    return static_cast<int>(std::clamp(value, static_cast<float>(low), static_cast<float>(high)));
}
// 0 where 1 / d would not be finite.
[[nodiscard]] inline float inverse(float d) { return std::fabs(d) < 1e-38f ? 0 : 1 / d; }
// The number of largest magnitude, with its sign.
[[nodiscard]] inline float extreme(const float* x, int n) {
    return *std::max_element(x, x + n, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
}
// 32 codes as nibbles: the low ones are columns 0 to 15, the high ones 16 to 31.
inline void put_nibbles(uint8_t* to, const int* codes) {
    for (int i = 0; i < 16; ++i) to[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

}  // namespace fathom
