// AdamW (Loshchilov and Hutter 2019) and the gradient norm. AdamW moves 28 bytes per f32 parameter (read grad, m, v, master;
// write m, v, master), 8 less with moments in bf16, and 2 more for a bf16 copy: bound by memory.
#include <vector>

#include "cpu/convert.h"
#include "cpu/cpu_ops.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {
namespace {

constexpr int64_t kElementsPerTask = 16384;
constexpr int64_t kElementsPerPartial = 4096;  // the norm is summed in blocks of this many, then over blocks in order

}  // namespace

void CpuOps::adamw(const Tensor& param, const Tensor& master, const Tensor& m, const Tensor& v, const Tensor& grad,
                   const AdamWStep& step) {
    check_adamw(param, master, m, v, grad);
    const int64_t n = master.size();
    const AdamWFactors factors = adamw_factors(step);
    pool_.parallel_for(n, kElementsPerTask, [&](int64_t begin, int64_t end, int thread) {
        constexpr int64_t kChunk = 2048;  // the new master is still in L1 when it is rounded to the parameter's dtype
        const bool rounded = m.dtype != DType::kF32;
        float* const space = rounded ? scratch_.of_thread<float>(thread, 2 * kChunk) : nullptr;
        for (int64_t i = begin; i < end; i += kChunk) {
            const int64_t count = std::min(kChunk, end - i);
            const auto convert = [&](void* to, DType to_type, const void* from, DType from_type) {
                convert_row(kernels_, to, to_type, 1, from, from_type, 1, count);
            };
            const auto part = [&](const Tensor& x) { return x.as<std::byte>() + i * size_of(x.dtype); };
            float* const moments[2] = {rounded ? space : m.as<float>() + i, rounded ? space + kChunk : v.as<float>() + i};
            if (rounded) {
                convert(moments[0], DType::kF32, part(m), m.dtype);
                convert(moments[1], DType::kF32, part(v), v.dtype);
            }
            kernels_.adamw(master.as<float>() + i, moments[0], moments[1], grad.as<float>() + i, factors, count);
            if (rounded) {
                convert(part(m), m.dtype, moments[0], DType::kF32);
                convert(part(v), v.dtype, moments[1], DType::kF32);
            }
            if (param.data != master.data) convert(part(param), param.dtype, master.as<float>() + i, DType::kF32);
        }
    });
}

void CpuOps::square_norm(const Tensor& sum, const Tensor& x) {
    check_tensor("square_norm", "sum", sum, DType::kF64, {1});
    check(x.contiguous(), "square_norm: x must be contiguous");
    const int64_t n = x.size(), blocks = (n + kElementsPerPartial - 1) / kElementsPerPartial;
    auto* partial = scratch_.shared<double>(blocks);
    pool_.parallel_for(blocks, kElementsPerTask / kElementsPerPartial, [&](int64_t begin, int64_t end, int thread) {
        float* space = scratch_.of_thread<float>(thread, kElementsPerPartial);
        for (int64_t block = begin; block < end; ++block) {
            const int64_t first = block * kElementsPerPartial, count = std::min(kElementsPerPartial, n - first);
            const float* chunk = x.as<float>() + first;
            if (x.dtype != DType::kF32) {
                convert_row(kernels_, space, DType::kF32, 1, x.as<std::byte>() + first * size_of(x.dtype), x.dtype, 1, count);
                chunk = space;
            }
            partial[block] = kernels_.square_sum(chunk, count);
        }
    });
    for (int64_t block = 0; block < blocks; ++block) sum.as<double>()[0] += partial[block];
}

}  // namespace fathom
