// Panels of plain 16-bit weights: 16 rows side by side, [out / 16, in, 16], a tensor [out / 16, 16 in] of the rows' own dtype
// and Weight::block kNone. A product with few rows reads a panel along its length and has a column of C per lane; from rows
// that lie as in the file it must transpose in registers and reads 16 pages at a time. The numbers and the order of sums stay
// the same.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace fathom {

[[nodiscard]] inline bool is_number_panels(const Weight& w) {
    return w.scheme == Scheme::kPanels && w.block == BlockType::kNone;
}

// A matrix of BF16 or F16 with a multiple of 16 rows.
[[nodiscard]] bool has_number_panels(const Weight& w);

// Writes rows [16 panel, 16 panel + 16) of `w` (has_number_panels) to `to`, 16 in numbers.
void pack_number_panel(uint16_t* to, const Weight& w, int64_t panel);

// y[k] = column k of row 16 panel + lane of w (is_number_panels), for all columns.
void decode_number_lane(float* y, const Weight& w, int64_t panel, int64_t lane);

}  // namespace fathom
