// Panels of plain 16-bit weights: 16 rows side by side, a tensor [out / 16, 16 in] of the rows' own dtype and Weight::block
// kNone. F16: [in, 16]. BF16: [in / 2, 16, 2], pairs of columns, as products of pairs want them (cpu/gemm_pairs.h) and as 64
// bytes become two vectors of f32 by a shift and a mask. A product with few rows reads a panel along its length and has a
// column of C per lane; from rows that lie as in the file it must transpose in registers and reads 16 pages at a time. The
// numbers stay the same, and so does the order of sums in f32.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace fathom {

[[nodiscard]] inline bool is_number_panels(const Weight& w) {
    return w.scheme == Scheme::kPanels && w.block == BlockType::kNone;
}

// A matrix of F16, or of BF16 with an even number of columns, with a multiple of 16 rows.
[[nodiscard]] bool has_number_panels(const Weight& w);

// Writes rows [16 panel, 16 panel + 16) of `w` (has_number_panels) to `to`, 16 in numbers.
void pack_number_panel(uint16_t* to, const Weight& w, int64_t panel);

// y[k] = column k of row 16 panel + lane of w (is_number_panels), for all columns.
void decode_number_lane(float* y, const Weight& w, int64_t panel, int64_t lane);

}  // namespace fathom
