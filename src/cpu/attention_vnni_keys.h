// Keys of int8 and int4 blocks as attention_vnni_avx512.cpp multiplies them. Include only from *_avx512.cpp.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "cpu/attention_vnni_spans.h"
#include "cpu/kernels.h"
#include "cpu/simd_avx512.h"

namespace fathom {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kQuads = kCacheBlock / 4;
constexpr int64_t kMaxBlocks = kMaxHeadWidth / kCacheBlock;  // even
constexpr int64_t kKeyStride = kMaxHeadWidth + 64;           // bytes between staged keys: 10 cache lines
constexpr int64_t kGroup = 16;                               // keys staged together
constexpr int64_t kTiles = kSpan / kKeyTile;
constexpr int64_t kValueStride = kSpan * kCacheBlock + 128;  // bytes between blocks: not a multiple of 4096
constexpr int64_t kScaleStride = kSpan + kLanes;             // floats between blocks

// What code 0 is stored as where the product wants bytes without a sign.
constexpr int zero_of(BlockType type) { return type == BlockType::kQ80 ? 128 : 8; }

// ---- a span's memory -----------------------------------------------------------------------------------------------------

// What is made of a span's keys, and what lies between the two products.
struct Staged {
    alignas(64) uint8_t keys[kGroup * kKeyStride];          // of a group, codes without a sign
    alignas(64) uint16_t half[kMaxBlocks * kGroup];         // their scales
    alignas(64) float d[kMaxBlocks * kScaleStride];         // scales of the span
    alignas(64) uint8_t values[kMaxBlocks * kValueStride];  // codes with a sign; per block [128 fours of keys, 2, 16 x 4 bytes]
    alignas(64) float scores[kQueryLanes * kKeyTile];       // of a tile: [vectors, 64, 16]
    alignas(64) uint16_t p[kSpan * kQueryLanes];            // [fours of keys, vectors, 2, 16 x 2]: keys 0 and 2, 1 and 3
    alignas(64) int32_t e[kSpan];                           // [fours of keys, 4]: keys 0 and 2, 1 and 3, nothing
    alignas(64) int32_t weights[kSpan / 4 * kQueryLanes];   // [fours of keys, vectors, 16 x 4 bytes]
    alignas(64) float top[kTiles * kQueryLanes];            // of each tile, then its f
    alignas(64) float factor[kTiles * kQueryLanes];         // f d_max / 255
    float most[kTiles];                                     // d_max / 255
};

// ---- keys ----------------------------------------------------------------------------------------------------------------

uint16_t half_of(const std::byte* block) {
    uint16_t half;
    std::memcpy(&half, block, sizeof half);
    return half;
}

// The codes of two blocks: with a sign, in [-127, 127], or without, in [0, 15].
template <BlockType kType>
__m512i codes_of(const std::byte* first, const std::byte* second) {
    if constexpr (kType == BlockType::kQ80) {
        const auto load = [](const std::byte* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 2)); };
        return _mm512_inserti64x4(_mm512_castsi256_si512(load(first)), load(second), 1);
    }
    const auto load = [](const std::byte* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 2)); };
    const __m512i bytes = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load(first)), 0xff00, load(second));
    const __m512i shift =
        _mm512_setr_epi64(0, 0, 0x0004000400040004, 0x0004000400040004, 0, 0, 0x0004000400040004, 0x0004000400040004);
    return _mm512_and_si512(_mm512_srlv_epi16(bytes, shift), _mm512_set1_epi8(15));
}

// kGroup rows of `width` channels, the `first`-th key of the span on: codes without a sign, and scales.
template <BlockType kType>
void stage(Staged& to, const std::byte* const* rows, int64_t first, int64_t blocks, int64_t width) {
    constexpr int64_t kBytes = cache_block_bytes(kType);
    const int64_t last = (width - 1) / kCacheBlock * kBytes;
    for (int64_t t = 0; t < kGroup; ++t)
        for (int64_t g = 0; g < blocks; g += 2) {
            const int64_t next = (g + 1) * kBytes;
            const std::byte *const one = rows[t] + g * kBytes, *const two = rows[t] + (next < last ? next : last);
            const __m512i sign = kType == BlockType::kQ80 ? _mm512_set1_epi8(-128) : _mm512_setzero_si512();
            _mm512_store_si512(to.keys + t * kKeyStride + g * kCacheBlock, _mm512_xor_si512(codes_of<kType>(one, two), sign));
            to.half[g * kGroup + t] = half_of(one);
            to.half[(g + 1) * kGroup + t] = half_of(two);
        }
    for (int64_t g = 0; g < blocks; ++g)
        Avx512::load(reinterpret_cast<const Float16*>(to.half + g * kGroup)).store(to.d + g * kScaleStride + first);
}

// The values of blocks g and g + 1 of four staged keys, `t` to t + 3 of the group. Four keys' bytes side by side, 16 channels
// to 64 bytes: {0-3, 16-19, 4-7, 20-23} and {8-11, 24-27, 12-15, 28-31}. Codes have the sign of their scale, whose magnitude
// is in the weights.
template <BlockType kType>
[[gnu::always_inline]] inline void interleave(uint8_t* to, const Staged& from, int64_t t, int64_t g) {
    __m512i row[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        row[i] = _mm512_load_si512(from.keys + (t + i) * kKeyStride + g * kCacheBlock);
        if constexpr (kType == BlockType::kQ80) {
            row[i] = _mm512_xor_si512(row[i], _mm512_set1_epi8(-128));
        } else {
            const uint16_t* const half = from.half + g * kGroup + t + i;
            const __m512i plain = _mm512_sub_epi8(row[i], _mm512_set1_epi8(8));
            const __mmask64 minus = (0 - (uint64_t{half[0]} >> 15)) >> 32 | (0 - (uint64_t{half[kGroup]} >> 15)) << 32;
            row[i] = _mm512_mask_sub_epi8(plain, minus, _mm512_setzero_si512(), plain);
        }
    }
    const __m512i low01 = _mm512_unpacklo_epi8(row[0], row[1]), high01 = _mm512_unpackhi_epi8(row[0], row[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(row[2], row[3]), high23 = _mm512_unpackhi_epi8(row[2], row[3]);
    const __m512i out[4] = {_mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                            _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + 32 * i), _mm512_castsi512_si256(out[i]));
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + kValueStride + 32 * i), _mm512_extracti64x4_epi64(out[i], 1));
    }
}

}  // namespace
}  // namespace fathom
