// What every back end asks of its arguments: the shapes and dtypes that ops.h promises.
#pragma once

#include <concepts>
#include <initializer_list>
#include <source_location>
#include <string_view>

#include "base/error.h"
#include "tensor/tensor.h"

namespace fathom {

inline constexpr int64_t kAny = -1;  // a dimension that the op leaves free

// LogicError "rms_norm: w is F32[8], expected F32[16]" unless `tensor` has this dtype and shape and a contiguous last
// dimension.
void check_tensor(std::string_view op, std::string_view name, const Tensor& tensor, DType dtype,
                  std::initializer_list<int64_t> dims);
// The same for any dtype.
void check_tensor(std::string_view op, std::string_view name, const Tensor& tensor, std::initializer_list<int64_t> dims);

// What ops.h says of adamw's tensors.
void check_adamw(const Tensor& param, const Tensor& master, const Tensor& m, const Tensor& v, const Tensor& grad);

// check() with a message that is put together when it is wanted: a step checks thousands of products, and to format takes as
// long as to launch a kernel.
template <std::invocable Message>
void require(bool condition, const Message& message, const std::source_location& where = std::source_location::current()) {
    if (!condition) [[unlikely]]
        check(false, message(), where);
}

}  // namespace fathom
