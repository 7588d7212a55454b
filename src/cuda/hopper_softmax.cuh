// Softmax over scores as wgmma leaves them in registers: a thread holds two rows (side 0 and 1, 8 apart), four threads (a quad)
// share them; register 4 j + 2 side + i is column 8 j + 2 (lane % 4) + i.
#pragma once

#include <cmath>

#include "cuda/hopper_ptx.cuh"

namespace fathom::hopper {

constexpr float kLog2E = 1.4426950408889634F, kLn2 = 0.6931471805599453F;

// 2^x by the hardware (error 2^-22); exp2f would also care for denormal results.
__device__ __forceinline__ float fast_exp2(float x) {
    float y = 0;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffU, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffU, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(0xffffffffU, v, 1);
    return v + __shfl_xor_sync(0xffffffffU, v, 2);
}

// Running maximum and sum of a thread's two rows (the sum: of this thread's columns).
struct Softmax {
    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
};

// s becomes 2^(scale (s - max)), scale in base 2; returns what earlier results are multiplied by. Rows without a visible key
// stay 0.
template <int kCount>
__device__ __forceinline__ float2 softmax_step(float (&s)[kCount], Softmax& state, float scale_log2) {
    float alpha[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        float top = state.max[side];
#pragma unroll
        for (int i = 2 * side; i < kCount; i += 4) top = fmaxf(top, fmaxf(s[i], s[i + 1]));
        top = quad_max(top);
        const float base = top == -INFINITY ? 0.F : top * scale_log2;
        alpha[side] = fast_exp2(fmaf(state.max[side], scale_log2, -base));
        state.max[side] = top;
        float sum = 0;
#pragma unroll
        for (int i = 2 * side; i < kCount; i += 4) {
            s[i] = fast_exp2(fmaf(s[i], scale_log2, -base));
            s[i + 1] = fast_exp2(fmaf(s[i + 1], scale_log2, -base));
            sum += s[i] + s[i + 1];
        }
        state.sum[side] = fmaf(state.sum[side], alpha[side], sum);
    }
    return {alpha[0], alpha[1]};
}

// The A operand of a product whose summed index is the columns: 16 columns are four registers.
template <int kCount>
__device__ __forceinline__ void pack_rows(uint32_t (&p)[kCount / 2], const float (&s)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

// Most blocks leave the maximum alone, and multiplying by 1 changes nothing.
template <int kCount>
__device__ __forceinline__ void rescale(float (&o)[kCount], float2 alpha) {
    if (!__any_sync(0xffffffffU, alpha.x != 1.F || alpha.y != 1.F)) return;
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
        o[i] *= alpha.x;
        o[i + 1] *= alpha.x;
        o[i + 2] *= alpha.y;
        o[i + 3] *= alpha.y;
    }
}

}  // namespace fathom::hopper
