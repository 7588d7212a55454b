// The loops of CpuOps that are compiled once per instruction set: everything on rows of floats. Ops check shapes, split rows
// over threads and call these. Both tables give the same bits.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "ops/adamw_factors.h"
#include "tensor/blocks.h"
#include "tensor/dtype.h"

namespace fathom {

// Blocks that a cache may consist of: Q8_0 and Q4_0, a half and 32 codes of 8 or 4 bits.
inline constexpr int64_t kCacheBlock = 32;
[[nodiscard]] constexpr int64_t cache_block_bytes(BlockType type) { return type == BlockType::kQ80 ? 34 : 18; }

// n elements each. Sums inside a row follow docs/decisions/001 (16 partials, fixed tree).
struct Kernels {
    // y = x for f32, bf16 and f16 on one side and f32 on the other (widen also reads e4m3).
    void (*widen)(float* y, const void* x, DType type, int64_t n);
    // The same from Q8_0 or Q4_0 blocks; n may end inside a block.
    void (*widen_blocks)(float* y, const void* x, BlockType type, int64_t n);
    void (*narrow)(void* y, DType type, const float* x, int64_t n);
    void (*add)(float* y, const float* a, const float* b, int64_t n);  // y = a + b, y may be either
    void (*scale)(float* y, const float* x, float factor, int64_t n);  // y = factor x
    // y = sum_i weights[i] rows[i] in order of i, one fused multiply-add each; weights may be null: 1.
    void (*weighted_sum)(float* y, const float* const* rows, const float* weights, int64_t count, int64_t n);
    float (*dot)(const float* a, const float* b, int64_t n);
    double (*square_sum)(const float* x, int64_t n);  // in f64

    void (*rms_norm)(float* y, const float* x, const float* w, float r, int64_t n);  // y = w (r x)
    // dx = r g - x r^3 mean(g x), g = dy w, and dw += dy (r x).
    void (*rms_norm_backward)(float* dx, float* dw, const float* dy, const float* x, const float* w, float r, int64_t n);

    float (*largest)(const float* x, int64_t n);
    float (*sum_exp)(const float* x, float shift, int64_t n);                            // sum exp(x - shift)
    void (*exp_scaled)(float* y, const float* x, float shift, float factor, int64_t n);  // y = factor exp(x - shift)
    void (*sigmoid)(float* y, const float* x, int64_t n);

    void (*swiglu)(float* y, const float* gate, const float* up, int64_t n);
    void (*swiglu_backward)(float* dgate, float* dup, const float* dy, const float* gate, const float* up, int64_t n);

    void (*adamw)(float* master, float* m, float* v, const float* grad, const AdamWFactors& factors, int64_t n);
};

[[nodiscard]] const Kernels& kernels_avx2();
[[nodiscard]] const Kernels& kernels_avx512();
[[nodiscard]] inline const Kernels& kernels_of(Isa isa) { return has_avx512(isa) ? kernels_avx512() : kernels_avx2(); }

}  // namespace fathom
