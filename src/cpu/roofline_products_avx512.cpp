// How fast registers and tiles multiply pairs of bf16 and fours of bytes (cpu/roofline.h).
#include <immintrin.h>

#include "cpu/amx_tiles.h"
#include "cpu/roofline.h"

namespace fathom {
namespace {

constexpr int kChains = 12;  // latency of up to 6, two units

float bf16(int64_t rounds) {
    __m512 x[kChains];
    for (int c = 0; c < kChains; ++c) x[c] = _mm512_set1_ps(static_cast<float>(c));
    const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3c003c00));  // twice 2^-7
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12  // or the chains live in memory
        for (int c = 0; c < kChains; ++c) x[c] = _mm512_dpbf16_ps(x[c], a, a);
    }
    for (int c = 1; c < kChains; ++c) x[0] = _mm512_add_ps(x[0], x[c]);
    return _mm512_reduce_add_ps(x[0]);
}

float int8(int64_t rounds) {
    __m512i x[kChains];
    for (int c = 0; c < kChains; ++c) x[c] = _mm512_set1_epi32(c);
    const __m512i a = _mm512_set1_epi8(1);
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
        for (int c = 0; c < kChains; ++c) x[c] = _mm512_dpbusd_epi32(x[c], a, a);
    }
    for (int c = 1; c < kChains; ++c) x[0] = _mm512_add_epi32(x[0], x[c]);
    return static_cast<float>(_mm512_reduce_add_epi32(x[0]));
}

// Four tiles of sums from two operands on each side, all zeros: `add` multiplies Sum, Left and Right.
template <class Add>
float tiles(int64_t rounds, Add add) {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) config.set(tile, kTileRows, kTileRowBytes);
    AmxTiles::configure(config);
    for (int64_t i = 0; i < rounds; ++i) {
        add.template operator()<0, 4, 6>();
        add.template operator()<1, 4, 7>();
        add.template operator()<2, 5, 6>();
        add.template operator()<3, 5, 7>();
    }
    alignas(64) int32_t sum[kTileRows][16];
    AmxTiles::store<0>(sum, kTileRowBytes);
    AmxTiles::release();
    return static_cast<float>(sum[0][0]);
}
float bf16_tiles(int64_t rounds) {
    return tiles(rounds, []<int S, int L, int R>() { AmxTiles::add_bf16<S, L, R>(); });
}
float int8_tiles(int64_t rounds) {
    return tiles(rounds, []<int S, int L, int R>() { AmxTiles::add_int8<S, L, R>(); });
}

}  // namespace

ProductLoop bf16_loop_amx() { return {bf16_tiles, int64_t{4} * 2 * 16 * 16 * 32}; }
ProductLoop int8_loop_amx() { return {int8_tiles, int64_t{4} * 2 * 16 * 16 * 64}; }
ProductLoop bf16_loop_avx512() { return {bf16, int64_t{4} * 16 * kChains}; }
ProductLoop int8_loop_avx512() { return {int8, int64_t{8} * 16 * kChains}; }

}  // namespace fathom
