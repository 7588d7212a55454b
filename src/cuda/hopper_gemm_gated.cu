// Gate and up projections of a SwiGLU in one product (hopper_gemm.h), in tiles of 128 rows and 128 columns of each.
#include "cuda/hopper_gemm.cuh"

namespace fathom::hopper {

void gated_matmul(void* y, const void* x, const void* w, const GroupedGemm& g, cudaStream_t stream) {
    if (g.rows == 0 || g.out == 0) return;
    check(g.in > 0 && g.out % 16 == 0, "gated product: nothing to sum over, or halves that are no multiples of 8 wide");
    constexpr int kWide = 256;
    GemmParams p = gemm_params(y, g, kWide / 2, mean_rows(g), g.out / 2, g.in, g.y_row, 0);
    p.b_group = 1;
    launch_gemm<kWide, Major::kK, Major::kK, false, Result::kGated>(activations(x, g, g.in, g.x_row, 0), weights(w, g), p,
                                                                    stream);
}

}  // namespace fathom::hopper
