#include "ops/shape_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>
#include <string>

namespace fathom {
namespace {

bool fits(const Tensor& tensor, std::initializer_list<int64_t> dims) {
    if (tensor.rank != static_cast<int>(dims.size())) return false;
    int i = 0;
    for (const int64_t dim : dims) {
        if (dim != kAny && tensor.dim(i) != dim) return false;
        ++i;
    }
    return tensor.rank == 0 || tensor.dim(-1) <= 1 || tensor.stride[static_cast<size_t>(tensor.rank) - 1] == 1;
}

[[noreturn]] void fail(std::string_view op, std::string_view name, const Tensor& tensor, std::string_view dtype,
                       std::initializer_list<int64_t> dims) {
    std::string expected;
    for (const int64_t dim : dims) expected += (expected.empty() ? "" : ", ") + (dim == kAny ? "*" : std::to_string(dim));
    check(false, fmt::format("{}: {} is {} (strides {}), expected {}[{}] with a contiguous last dimension", op, name,
                             tensor.describe(), std::span(tensor.stride).first(static_cast<size_t>(std::max(tensor.rank, 0))),
                             dtype, expected));
    __builtin_unreachable();
}

}  // namespace

void check_tensor(std::string_view op, std::string_view name, const Tensor& tensor, DType dtype,
                  std::initializer_list<int64_t> dims) {
    if (tensor.dtype != dtype || !fits(tensor, dims)) [[unlikely]]
        fail(op, name, tensor, name_of(dtype), dims);
}

void check_tensor(std::string_view op, std::string_view name, const Tensor& tensor, std::initializer_list<int64_t> dims) {
    if (!fits(tensor, dims)) [[unlikely]]
        fail(op, name, tensor, "any dtype ", dims);
}

void check_adamw(const Tensor& param, const Tensor& master, const Tensor& m, const Tensor& v, const Tensor& grad) {
    const auto alike = [&](const Tensor& t) { return t.contiguous() && t.size() == master.size(); };
    check(master.dtype == DType::kF32 && grad.dtype == DType::kF32 && alike(master) && alike(grad) && alike(param),
          "adamw: master and grad must be f32, and with param contiguous and of one shape");
    check((m.dtype == DType::kF32 || m.dtype == DType::kBF16) && m.dtype == v.dtype && alike(m) && alike(v),
          "adamw: m and v must be f32 or bf16, contiguous and of the master's shape");
}

}  // namespace fathom
