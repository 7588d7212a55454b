// Rows from one dtype to another.
#pragma once

#include "cpu/kernels.h"
#include "tensor/tensor.h"

namespace fathom {

// y[i ystep] = x[i xstep] for i < n, rounded to nearest even where y's type is narrower. Any numeric dtypes; a step may be 0
// (x) or anything (in elements).
void convert_row(const Kernels& kernels, void* y, DType y_type, int64_t y_step, const void* x, DType x_type, int64_t x_step,
                 int64_t n);

// A contiguous vector of parameters as f32: itself, or converted into `space`.
[[nodiscard]] inline const float* widened(const Tensor& x, float* space, const Kernels& kernels) {
    if (x.dtype == DType::kF32) return x.as<float>();
    convert_row(kernels, space, DType::kF32, 1, x.data, x.dtype, 1, x.size());
    return space;
}

}  // namespace fathom
