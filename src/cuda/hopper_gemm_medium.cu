// Products of few wide tiles (hopper_gemm.h) in tiles of 128 x 128.
#include "cuda/hopper_gemm.cuh"

namespace fathom::hopper {

void medium_matmul(void* y, Output type, const void* x, const void* w, const GroupedGemm& g, cudaStream_t stream) {
    constexpr int kMedium = 128;
    forward<kMedium>(y, type, x, w, g, stream);
}

}  // namespace fathom::hopper
