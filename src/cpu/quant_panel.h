// Panels: quantized weights in the order in which the CPU multiplies them. 16 rows stand side by side, so that lanes run over
// output columns (docs/decisions/001) and one row of activations is broadcast, four bytes at a time, against them.
//
// A panel holds 16 rows of all blocks: first the codes of every step of 32 columns, then the factors of every block.
//   codes of a step   unsigned bytes in eight quads: quad q, byte 4 r + j is column 4 q + j of row r. Nibble types put quad 2 v
//                     into the low and quad 2 v + 1 into the high nibbles of vector v; Q5_0 adds 8 x 64 high bits, Q6_K two
//                     vectors of 2-bit parts, quad 4 h + j in bits 2 j of vector h.
//   factors of a block  16 halves d (Q4_K: then 16 halves dmin), then per group of columns 16 bytes of scales (Q4_K: then all
//   mins)
// The bytes are those of the file but for Q4_K, whose 6-bit scales take 8 bits here (148 bytes a block and row instead of 144).
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace fathom {

inline constexpr int64_t kPanelStep = 32;   // columns that share a scale of the activations
inline constexpr int64_t kPanelLanes = 16;  // rows of weights

struct PanelTraits {
    int64_t step_bytes;    // codes of a step
    int64_t factor_bytes;  // factors of a block
    int zero;              // code of the number 0
    bool half_groups;      // a scale per 16 columns instead of 32
    bool has_offset;
};
[[nodiscard]] PanelTraits panel_traits(BlockType type);

// A weight of kBlocks that has panels: a type with traits_of(type).panel_bytes, a multiple of 16 rows.
[[nodiscard]] bool has_panels(const Weight& w);

// Writes rows [16 panel, 16 panel + 16) of `w` (kBlocks) to `to`, traits_of(w.block).panel_bytes times the blocks of a row.
void pack_panel(uint8_t* to, const Weight& w, int64_t panel);

// One step of a panel as signed integers and factors: number = scale[k / 16] code + offset, for each lane.
struct PanelStep {
    int16_t code[kPanelStep][kPanelLanes];
    float scale[2][kPanelLanes];
    float offset[kPanelLanes];
};
// `panel`: its first byte; `steps`: of a row.
void unpack_step(PanelStep& out, BlockType type, const uint8_t* panel, int64_t steps, int64_t step);

}  // namespace fathom
