// SwiGLU (Shazeer 2020) of an element, for the op of its own and for products that end with it.
#pragma once

#include <cuda_bf16.h>

namespace fathom::cuda {

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float swiglu(float gate, float up) { return gate * sigmoid(gate) * up; }

// Of a product's sums in f32, rounded as if both had been stored in between.
__device__ __forceinline__ float swiglu_of_sums(float gate, float up) {
    const auto stored = [](float x) { return __bfloat162float(__float2bfloat16_rn(x)); };
    return swiglu(stored(gate), stored(up));
}

}  // namespace fathom::cuda
