// A weight's rows as numbers, whatever its scheme: the definition of what a weight means.
#pragma once

#include "tensor/tensor.h"

namespace fathom {

// Element i of a tensor's memory: f32, bf16, f16 or e4m3.
[[nodiscard]] float number_at(const Tensor& x, int64_t i);

// y[0:in] = row `row` of w in host memory. All schemes but kPanels, which only its back end reads. A vector is one row.
void decode_row(float* y, const Weight& w, int64_t row);

}  // namespace fathom
