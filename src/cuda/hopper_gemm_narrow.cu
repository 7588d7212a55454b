// Products of few wide tiles (hopper_gemm.h) in tiles of 128 x 64: four times as many multiprocessors read the weights.
#include "cuda/hopper_gemm.cuh"

namespace fathom::hopper {

void narrow_matmul(void* y, Output type, const void* x, const void* w, const GroupedGemm& g, cudaStream_t stream) {
    constexpr int kNarrow = 64;
    forward<kNarrow>(y, type, x, w, g, stream);
}

}  // namespace fathom::hopper
