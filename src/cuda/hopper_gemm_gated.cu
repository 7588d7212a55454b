// Gate and up projections of a SwiGLU in one product (hopper_gemm.h), in tiles of 128 rows and 128 or 88 columns of each.
#include "cuda/hopper_gemm.cuh"

namespace fathom::hopper {

namespace {

template <int kTileN>
void matmul_in_gated_tiles(void* y, const void* x, const void* w, const GroupedGemm& g, cudaStream_t stream) {
    GemmParams p = gemm_params(y, g, kTileN / 2, mean_rows(g), g.out / 2, g.in, g.y_row, 0);
    p.b_group = 1;
    launch_gemm<kTileN, Major::kK, Major::kK, false, Result::kGated>(activations(x, g, g.in, g.x_row, 0), weights(w, g), p,
                                                                     stream);
}

}  // namespace

// Narrow tiles where wide ones leave a twentieth of a pair's columns empty: experts of V2-Lite and Moonlight, 1408 wide, are 11
// wide tiles or 16 narrow ones.
void gated_matmul(void* y, const void* x, const void* w, const GroupedGemm& g, cudaStream_t stream) {
    if (g.rows == 0 || g.out == 0) return;
    check(g.in > 0 && g.out % 16 == 0, "gated product: nothing to sum over, or halves that are no multiples of 8 wide");
    constexpr int kWide = 256, kNarrow = 176;
    const auto padded = [&](int64_t tile) { return (g.out / 2 + tile - 1) / tile * tile; };
    const bool narrow = padded(kNarrow) * 20 < padded(kWide) * 19;
    (narrow ? matmul_in_gated_tiles<kNarrow> : matmul_in_gated_tiles<kWide>)(y, x, w, g, stream);
}

}  // namespace fathom::hopper
