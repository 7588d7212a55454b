// SwiGLU (Shazeer 2020): bound by memory once exp is vectorised.
#include "cpu/cpu_ops.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {

void CpuOps::swiglu(const Tensor& y, const Tensor& gate, const Tensor& up) {
    check_tensor("swiglu", "y", y, DType::kF32, {kAny, kAny});
    const int64_t n = y.dim(0), d = y.dim(1);
    check_tensor("swiglu", "gate", gate, DType::kF32, {n, d});
    check_tensor("swiglu", "up", up, DType::kF32, {n, d});
    pool_.parallel_for(n, rows_per_task(2 * d), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) kernels_.swiglu(row(y, i), row(gate, i), row(up, i), d);
    });
}

void CpuOps::swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy, const Tensor& gate, const Tensor& up) {
    check_tensor("swiglu_backward", "dgate", dgate, DType::kF32, {kAny, kAny});
    const int64_t n = dgate.dim(0), d = dgate.dim(1);
    check_tensor("swiglu_backward", "dup", dup, DType::kF32, {n, d});
    check_tensor("swiglu_backward", "dy", dy, DType::kF32, {n, d});
    check_tensor("swiglu_backward", "gate", gate, DType::kF32, {n, d});
    check_tensor("swiglu_backward", "up", up, DType::kF32, {n, d});
    pool_.parallel_for(n, rows_per_task(3 * d), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i)
            kernels_.swiglu_backward(row(dgate, i), row(dup, i), row(dy, i), row(gate, i), row(up, i), d);
    });
}

}  // namespace fathom
