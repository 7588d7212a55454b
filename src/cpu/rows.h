// Rows of tensors, and how many of them one task takes.
#pragma once

#include <algorithm>

#include "tensor/tensor.h"

namespace fathom {

template <class T = float>
[[nodiscard]] T* row(const Tensor& x, int64_t i) {
    return x.as<T>() + i * x.stride[0];
}
template <class T = float>
[[nodiscard]] T* row(const Tensor& x, int64_t i, int64_t j) {
    return x.as<T>() + i * x.stride[0] + j * x.stride[1];
}
// The same for a dtype that only run time knows.
[[nodiscard]] inline std::byte* row_bytes(const Tensor& x, int64_t i) {
    return x.as<std::byte>() + i * x.stride[0] * size_of(x.dtype);
}

// Rows per task when a row costs about `work` elementary steps: tasks of some 10 us, so that handing them out (about 1 us)
// does not show.
[[nodiscard]] inline int64_t rows_per_task(int64_t work) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(work, 1)); }

}  // namespace fathom
