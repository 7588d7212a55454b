// A weight's rows as numbers, whatever its scheme: the definition of what a weight means.
#pragma once

#include "tensor/tensor.h"

namespace fathom {

// y[0:in] = row `row` of w in host memory. All schemes but kPanels, which only its back end reads. A vector is one row.
void decode_row(float* y, const Weight& w, int64_t row);

}  // namespace fathom
