// Products of few wide tiles (hopper_gemm.h) in tiles of 128 x 192.
#include "cuda/hopper_gemm.cuh"

namespace fathom::hopper {

template void matmul_in_tiles<192>(void* y, Output type, const void* x, const void* w, const GroupedGemm& g,
                                   cudaStream_t stream);

}  // namespace fathom::hopper
