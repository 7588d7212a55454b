// The softmax of one row of logits.
#pragma once

#include "cuda/device.cuh"

namespace fathom::cuda {

// Largest of a row and the sum of exp(z - top).
struct RowSoftmax {
    float top, sum;
};

// A row of logits, read 16 bytes at a time where it lies at a multiple of them.
struct LogitRow {
    const float* z;
    bool packed = reinterpret_cast<uintptr_t>(z) % 16 == 0;

    __device__ __forceinline__ float operator()(int64_t c) const { return z[c]; }
    __device__ __forceinline__ void four(float (&v)[4], int64_t c) const {
        if (packed) {
            const float4 all = *reinterpret_cast<const float4*>(z + c);
            v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
        } else {
            v[0] = z[c], v[1] = z[c + 1], v[2] = z[c + 2], v[3] = z[c + 3];
        }
    }
};

// The numbers z(c) to z(c + 3), -infinity from `vocab` on.
template <class Z>
__device__ __forceinline__ void four_of(float (&v)[4], const Z& z, int64_t c, int64_t vocab) {
    if constexpr (requires { z.four(v, c); }) {
        if (c + 4 <= vocab) return z.four(v, c);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = c + j < vocab ? z(c + j) : -INFINITY;
}

constexpr int kSoftmaxThreads = 512;  // of the block that has a row

// Of the numbers z(0), z(1), ...: a block of kSoftmaxThreads, in one pass (Milakov and Gimelshein 2018): a thread's sum is of
// exp(z - its own largest so far). Four times four neighbours to a thread whatever they are read from, so that the order is
// always the same. `space` has kSoftmaxThreads / 32 elements.
template <class Z>
__device__ RowSoftmax softmax_of(const Z& z, int64_t vocab, float* space) {
    constexpr int kFours = 4;
    float top = -INFINITY, sum = 0, v[kFours][4];
    for (int64_t c = 4 * static_cast<int64_t>(threadIdx.x); c < vocab; c += 4 * kFours * kSoftmaxThreads) {
#pragma unroll
        for (int i = 0; i < kFours; ++i) four_of(v[i], z, c + 4 * kSoftmaxThreads * i, vocab);
        float largest = -INFINITY, all = 0;
#pragma unroll
        for (int i = 0; i < kFours * 4; ++i) {
            largest = fmaxf(largest, v[i / 4][i % 4]);
            all += v[i / 4][i % 4];
        }
        if (largest == -INFINITY && !isnan(all)) continue;  // nothing to add, and no number to subtract; NaN goes on
        if (largest > top) {
            sum *= expf(top - largest);
            top = largest;
        }
#pragma unroll
        for (int i = 0; i < kFours * 4; ++i) sum += expf(v[i / 4][i % 4] - top);
    }
    const float all = block_max<kSoftmaxThreads>(top, space);
    return {all, block_sum<kSoftmaxThreads>(top == -INFINITY ? sum : sum * expf(top - all), space)};
}

}  // namespace fathom::cuda
