// Cross-entropy of one row of logits: m = max, s = sum exp(z - m); loss = m + log s - z_t; dz = scale (exp(z - m) / s -
// onehot).
#include <cmath>
#include <cstring>

#include "cpu/cpu_ops.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {
namespace {

int64_t check_cross_entropy(const char* op, const Tensor& logits, const Tensor& targets) {
    check_tensor(op, "logits", logits, DType::kF32, {kAny, kAny});
    check_tensor(op, "targets", targets, DType::kI32, {logits.dim(0)});
    for (int64_t i = 0; i < logits.dim(0); ++i)
        check(targets.as<int32_t>()[i] < logits.dim(1), "cross_entropy: a target is not below the vocabulary's size");
    return logits.dim(1);
}

}  // namespace

void CpuOps::cross_entropy(const Tensor& loss, const Tensor& logits, const Tensor& targets) {
    const int64_t n = logits.dim(0), vocab = check_cross_entropy("cross_entropy", logits, targets);
    check_tensor("cross_entropy", "loss", loss, DType::kF32, {n});
    pool_.parallel_for(n, rows_per_task(4 * vocab), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int32_t target = targets.as<int32_t>()[i];
            loss.as<float>()[i] = 0;
            if (target < 0) continue;
            const float* z = row(logits, i);
            const float shift = kernels_.largest(z, vocab), sum = kernels_.sum_exp(z, shift, vocab);
            // log s is added to the small difference, not to the large maximum.
            loss.as<float>()[i] = static_cast<float>(std::log(static_cast<double>(sum)) + (double{shift} - double{z[target]}));
        }
    });
}

void CpuOps::cross_entropy_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets, double scale) {
    const int64_t n = logits.dim(0), vocab = check_cross_entropy("cross_entropy_backward", logits, targets);
    check_tensor("cross_entropy_backward", "dlogits", dlogits, DType::kF32, {n, vocab});
    pool_.parallel_for(n, rows_per_task(6 * vocab), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const int32_t target = targets.as<int32_t>()[i];
            float* dz = row(dlogits, i);
            if (target < 0) {
                std::memset(dz, 0, static_cast<size_t>(vocab) * sizeof(float));
                continue;
            }
            const float* z = row(logits, i);
            const float shift = kernels_.largest(z, vocab), sum = kernels_.sum_exp(z, shift, vocab);
            kernels_.exp_scaled(dz, z, shift, static_cast<float>(scale / static_cast<double>(sum)), vocab);
            dz[target] -= static_cast<float>(scale);
        }
    });
}

}  // namespace fathom
