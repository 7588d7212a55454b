// The softmax of one row of logits.
#pragma once

#include "cuda/device.cuh"

namespace fathom::cuda {

// Largest of a row and the sum of exp(z - top).
struct RowSoftmax {
    float top, sum;
};

// Of the numbers z(0), z(1), ...: a block of 256 threads.
template <class Z>
__device__ RowSoftmax softmax_of(const Z& z, int64_t vocab, float* space) {
    float top = -INFINITY, sum = 0;
    for (int64_t c = threadIdx.x; c < vocab; c += 256) top = fmaxf(top, z(c));
    top = block_max<256>(top, space);
    for (int64_t c = threadIdx.x; c < vocab; c += 256) sum += expf(z(c) - top);
    return {top, block_sum<256>(sum, space)};
}

}  // namespace fathom::cuda
