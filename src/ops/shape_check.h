// What every back end asks of its arguments: the shapes and dtypes that ops.h promises.
#pragma once

#include <initializer_list>
#include <string_view>

#include "tensor/tensor.h"

namespace fathom {

inline constexpr int64_t kAny = -1;  // a dimension that the op leaves free

// LogicError "rms_norm: w is F32[8], expected F32[16]" unless `tensor` has this dtype and shape and a contiguous last
// dimension.
void check_tensor(std::string_view op, std::string_view name, const Tensor& tensor, DType dtype,
                  std::initializer_list<int64_t> dims);
// The same for any dtype.
void check_tensor(std::string_view op, std::string_view name, const Tensor& tensor, std::initializer_list<int64_t> dims);

}  // namespace fathom
