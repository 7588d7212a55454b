// Products with panels (cpu/quant_panel.h): activations become int8, integers are multiplied exactly, and their sums are joined
// in f32.
//
// Per row of activations and step of 32 columns: d = max |x| / 127, q = x / d rounded to nearest even. Then per lane, over
// ascending groups of columns (16 or 32):
//   y = fma(d, scale * float(sum_k code q), y);  with an offset, then y = fma(offset, d * float(sum_k q), y)
// Integer sums are exact in any order, so every instruction set, tiling and number of rows gives these bits.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/quant_panel.h"

namespace fathom {

// What a step of one quantized row needs besides its 32 bytes; per half step, or of the whole step in [0] where groups have 32
// columns.
struct StepFactors {
    float d;           // of the activations
    int32_t shift[2];  // -zero times the sum of q, plus what the kernels begin their sums with
    float sum[2];      // d * float(sum of q)
};

// Rows of activations times panels: y[i, 16 j + lane].
struct PanelTile {
    BlockType type;
    const uint8_t* panels;  // the first of them
    int64_t panel_bytes;    // of one
    int64_t steps;          // columns / 32
    int64_t panel_count;
    const int8_t* q;             // [rows, 32 steps]
    const StepFactors* factors;  // [rows, steps]
    int64_t rows;
    float* y;
    int64_t y_row;
};

// Many rows meet panels that were unpacked for them to a byte per code and f32 factors, of which so many bytes stay in L2.
inline constexpr int64_t kUnpackedBytes = 384 << 10;
[[nodiscard]] constexpr int64_t unpacked_panel_bytes(const PanelTraits& traits, int64_t steps) {
    constexpr auto kFloats = static_cast<int64_t>(sizeof(float)) * kPanelLanes;
    return steps * (kPanelStep * kPanelLanes + kFloats * traits.groups_per_step() * (traits.has_offset() ? 2 : 1));
}
// Scratch memory that `multiply` needs, in bytes.
[[nodiscard]] constexpr int64_t panel_scratch_bytes(const PanelTraits& traits, int64_t steps) {
    const int64_t panel = unpacked_panel_bytes(traits, steps);
    return panel < kUnpackedBytes ? kUnpackedBytes : panel;
}

struct QuantKernels {
    // q [n], factors [n / 32] of one row x [n].
    void (*quantize_row)(int8_t* q, StepFactors* factors, const float* x, int64_t n, int zero, bool half_groups);
    void (*multiply)(const PanelTile& tile, uint8_t* scratch);  // panel_scratch_bytes, 64-byte aligned
    // All rows of a panel: decode_panel (cpu/quant_panel.h).
    void (*decode)(float* y, int64_t stride, BlockType type, const uint8_t* panel, int64_t steps);
};

inline void decode_all_rows(float* y, int64_t stride, BlockType type, const uint8_t* panel, int64_t steps) {
    decode_panel(y, stride, type, panel, steps, 0, kPanelLanes);
}
void decode_all_rows_avx512(float* y, int64_t stride, BlockType type, const uint8_t* panel, int64_t steps);  // the same bits

[[nodiscard]] const QuantKernels& quant_kernels_avx2();
[[nodiscard]] const QuantKernels& quant_kernels_vnni_avx2();
// fetch_ahead: few rows ask for a panel's bytes before they are met (same bits).
[[nodiscard]] const QuantKernels& quant_kernels_vnni_avx512(bool fetch_ahead = false);
[[nodiscard]] const QuantKernels& quant_kernels_amx();
// The set for an instruction set: AVX-512 without VNNI uses the AVX2 one.
[[nodiscard]] const QuantKernels& quant_kernels_of(Isa isa);

// Does fetching ahead read panels faster from memory on this machine? Measured once in a process, on the caller's thread, in
// some milliseconds. Wants AVX512-VNNI.
[[nodiscard]] bool fetching_ahead_pays();

}  // namespace fathom
