// The eight tile registers of AMX: up to 16 rows of up to 64 bytes each. Kernels are templates over a class like AmxTiles, so
// that tests run their loops on CPUs without AMX (tests/cpu/emulated_tiles.h).
#pragma once

#include <cstdint>

namespace fathom {

// How kernels use them: sums 0 to 3, left operands (rows of activations) 4 and 5, right ones (panels of weights) 6 and 7.
inline constexpr int kTileSums = 0, kTileLeft = 4, kTileRight = 6;
inline constexpr int64_t kTileRows = 16, kTileRowBytes = 64;

// What ldtilecfg reads.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t row_count, int64_t bytes) {
        rows[tile] = static_cast<uint8_t>(row_count);
        row_bytes[tile] = static_cast<uint16_t>(bytes);
    }
};
static_assert(sizeof(TileConfig) == 64);

// The instructions themselves; GCC's intrinsics take a tile's number as a token only. A thread that configured its tiles
// releases them when it is done: the operating system saves 8 KB less at every switch.
struct AmxTiles {
    // Tiles become zeros.
    static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
    static void release() { asm volatile("tilerelease" ::); }

    template <int T>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" ::"i"(T));
    }
    // Rows `stride` bytes apart.
    template <int T>
    static void load(const void* from, int64_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
    }
    template <int T>
    static void store(void* to, int64_t stride) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
    }
    // sum[m, n] += over ascending k of left[m, 2 k + i] right[k, 2 n + i] in two chains of f32 from 0, i = 0 and 1, which are
    // added to each other and then to the sum; subnormal numbers count as 0.
    template <int Sum, int Left, int Right>
    static void add_bf16() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Left), "i"(Right));
    }
    // sum[m, n] += left[m, 4 k + i] right[k, 4 n + i], signed bytes.
    template <int Sum, int Left, int Right>
    static void add_int8() {
        asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Left), "i"(Right));
    }
};

}  // namespace fathom
