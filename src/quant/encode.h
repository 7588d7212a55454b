// Numbers -> blocks: the inverse of decode_blocks (tensor/blocks.h).
#pragma once

#include <cstdint>

#include "tensor/blocks.h"

namespace fathom {

// Encodes x[0:n], n a multiple of the type's elements, to `codes`. Round to nearest with the scale that fits best: Q8_0, Q4_0,
// Q4_1, Q5_0 and Q5_1 give the bytes of the Python package gguf (and of ggml's reference); the others search scales (and mins)
// for the least squared error, each column weighted by importance[k] where that is given (mean square of the column's
// activations, an "importance matrix"; n numbers, not negative). NaN and infinities are the caller's to exclude.
void encode_blocks(BlockType type, const float* x, void* codes, int64_t n, const float* importance = nullptr);

}  // namespace fathom
