// RMSNorm (Zhang and Sennrich 2019). With r = 1 / sqrt(mean(x^2) + eps) and g = dy w:
//   y = w (r x),  dx = r g - x r^3 mean(g x),  dw = sum_i dy_i (r_i x_i).
#include <cmath>
#include <cstring>

#include "cpu/convert.h"
#include "cpu/cpu_ops.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {
namespace {

constexpr int64_t kRowsPerPartial = 64;  // dw is summed in blocks of this many rows, then over blocks in order

float inverse_rms(const Kernels& kernels, const float* x, int64_t d, double eps) {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(kernels.dot(x, x, d)) / static_cast<double>(d) + eps));
}

}  // namespace

void CpuOps::rms_norm(const Tensor& y, const Tensor& x, const Tensor& w, double eps) {
    check_tensor("rms_norm", "y", y, DType::kF32, {kAny, kAny});
    const int64_t n = y.dim(0), d = y.dim(1);
    check_tensor("rms_norm", "x", x, DType::kF32, {n, d});
    check_tensor("rms_norm", "w", w, {d});
    const float* weight = widened(w, scratch_.shared<float>(d), kernels_);
    pool_.parallel_for(n, rows_per_task(2 * d), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i)
            kernels_.rms_norm(row(y, i), row(x, i), weight, inverse_rms(kernels_, row(x, i), d, eps), d);
    });
}

void CpuOps::rms_norm_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                               double eps) {
    check_tensor("rms_norm_backward", "dx", dx, DType::kF32, {kAny, kAny});
    const int64_t n = dx.dim(0), d = dx.dim(1), blocks = (n + kRowsPerPartial - 1) / kRowsPerPartial;
    check_tensor("rms_norm_backward", "dw", dw, DType::kF32, {d});
    check_tensor("rms_norm_backward", "dy", dy, DType::kF32, {n, d});
    check_tensor("rms_norm_backward", "x", x, DType::kF32, {n, d});
    check_tensor("rms_norm_backward", "w", w, {d});
    float* partial = scratch_.shared<float>((blocks + 1) * d);
    const float* weight = widened(w, partial + blocks * d, kernels_);
    pool_.parallel_for(blocks, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t block = begin; block < end; ++block) {
            float* sum = partial + block * d;
            std::memset(sum, 0, static_cast<size_t>(d) * sizeof(float));
            for (int64_t i = block * kRowsPerPartial; i < std::min(n, (block + 1) * kRowsPerPartial); ++i)
                kernels_.rms_norm_backward(row(dx, i), sum, row(dy, i), row(x, i), weight,
                                           inverse_rms(kernels_, row(x, i), d, eps), d);
        }
    });
    for (int64_t block = 0; block < blocks; ++block) kernels_.add(dw.as<float>(), dw.as<float>(), partial + block * d, d);
}

}  // namespace fathom
