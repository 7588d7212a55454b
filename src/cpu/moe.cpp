// Dispatch to experts and back, and how evenly they are used.
#include <cstring>
#include <vector>

#include "cpu/cpu_ops.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {

// Counting sort: count, prefix sum, place in order of tokens. One thread: n K is some 10^4.
void CpuOps::sort_by_expert(const Tensor& offsets, const Tensor& source, const Tensor& slot, const Tensor& indices) {
    check_tensor("sort_by_expert", "indices", indices, DType::kI32, {kAny, kAny});
    const int64_t n = indices.dim(0), chosen = indices.dim(1), experts = offsets.dim(0) - 1;
    check_tensor("sort_by_expert", "offsets", offsets, DType::kI32, {kAny});
    check_tensor("sort_by_expert", "source", source, DType::kI32, {n * chosen});
    check_tensor("sort_by_expert", "slot", slot, DType::kI32, {n, chosen});
    auto* offset = offsets.as<int32_t>();
    std::fill_n(offset, experts + 1, 0);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t k = 0; k < chosen; ++k) {
            const int32_t expert = row<int32_t>(indices, i)[k];
            check(expert >= 0 && expert < experts, "sort_by_expert: an expert index is out of range");
            ++offset[expert + 1];
        }
    for (int64_t e = 0; e < experts; ++e) offset[e + 1] += offset[e];
    auto* next = scratch_.shared<int32_t>(experts);
    std::copy_n(offset, experts, next);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t k = 0; k < chosen; ++k) {
            const int32_t at = next[row<int32_t>(indices, i)[k]]++;
            source.as<int32_t>()[at] = static_cast<int32_t>(i);
            row<int32_t>(slot, i)[k] = at;
        }
}

void CpuOps::combine(const Tensor& y, const Tensor& x, const Tensor& slot, const Tensor& weights, const Tensor& base) {
    check_tensor("combine", "y", y, DType::kF32, {kAny, kAny});
    const int64_t n = y.dim(0), d = y.dim(1), chosen = slot.dim(1);
    check_tensor("combine", "x", x, DType::kF32, {kAny, d});
    check_tensor("combine", "slot", slot, DType::kI32, {n, kAny});
    if (weights) check_tensor("combine", "weights", weights, DType::kF32, {n, chosen});
    if (base) check_tensor("combine", "base", base, DType::kF32, {n, d});
    pool_.parallel_for(n, rows_per_task(chosen * d), [&](int64_t begin, int64_t end, int thread) {
        const auto** rows = scratch_.of_thread<const float*>(thread, chosen);
        std::vector<float> sum(static_cast<size_t>(base ? d : 0));  // y may be base
        for (int64_t i = begin; i < end; ++i) {
            for (int64_t k = 0; k < chosen; ++k) rows[k] = row(x, row<int32_t>(slot, i)[k]);
            kernels_.weighted_sum(base ? sum.data() : row(y, i), rows, weights ? row(weights, i) : nullptr, chosen, d);
            if (base) kernels_.add(row(y, i), sum.data(), row(base, i), d);
        }
    });
}

void CpuOps::combine_backward(const Tensor& dx, const Tensor& dweights, const Tensor& dy, const Tensor& x, const Tensor& slot,
                              const Tensor& weights) {
    check_tensor("combine_backward", "dy", dy, DType::kF32, {kAny, kAny});
    const int64_t n = dy.dim(0), d = dy.dim(1), chosen = slot.dim(1);
    check_tensor("combine_backward", "dx", dx, DType::kF32, {kAny, d});
    check_tensor("combine_backward", "x", x, DType::kF32, {dx.dim(0), d});
    check_tensor("combine_backward", "slot", slot, DType::kI32, {n, kAny});
    check_tensor("combine_backward", "weights", weights, DType::kF32, {n, chosen});
    check_tensor("combine_backward", "dweights", dweights, DType::kF32, {n, chosen});
    pool_.parallel_for(n, rows_per_task(2 * chosen * d), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i)
            for (int64_t k = 0; k < chosen; ++k) {
                const int32_t at = row<int32_t>(slot, i)[k];
                row(dweights, i)[k] = kernels_.dot(row(dy, i), row(x, at), d);
                kernels_.scale(row(dx, at), row(dy, i), row(weights, i)[k], d);
            }
    });
}

void CpuOps::add_expert_load(const Tensor& load, const Tensor& offsets) {
    check_tensor("add_expert_load", "load", load, DType::kI64, {kAny});
    const int64_t experts = load.dim(0);
    check_tensor("add_expert_load", "offsets", offsets, DType::kI32, {experts + 1});
    const auto* offset = offsets.as<int32_t>();
    for (int64_t e = 0; e < experts; ++e) load.as<int64_t>()[e] += offset[e + 1] - offset[e];
}

void CpuOps::update_router_bias(const Tensor& bias, const Tensor& load, double gamma) {
    check_tensor("update_router_bias", "bias", bias, DType::kF32, {kAny});
    const int64_t experts = bias.dim(0);
    check_tensor("update_router_bias", "load", load, DType::kI64, {experts});
    const auto* count = load.as<int64_t>();
    int64_t total = 0;
    for (int64_t e = 0; e < experts; ++e) total += count[e];
    for (int64_t e = 0; e < experts; ++e) {  // in integers: load E against the sum of loads
        const int64_t excess = count[e] * experts - total;
        if (excess != 0) bias.as<float>()[e] += static_cast<float>(excess > 0 ? -gamma : gamma);
    }
}

}  // namespace fathom
