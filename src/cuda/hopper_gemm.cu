// Grouped bf16 products (hopper_gemm.h) in tiles of 128 x 256; dense ones of few tiles in hopper_gemm_medium.cu and
// hopper_gemm_narrow.cu.
#include "cuda/hopper_gemm.cuh"

namespace fathom::hopper {

namespace {

constexpr int kNarrow = 64, kMedium = 128, kWide = 256;

// About how long dense products take in tiles of 128 x `width`: rounds of all multiprocessors, each a tile's columns and what a
// tile costs however wide it is.
int64_t cost(const GroupedGemm& g, int64_t width) {
    constexpr int64_t kPerTile = 48;
    const int64_t tiles = (g.rows + kTileM - 1) / kTileM * ((g.out + width - 1) / width) * g.groups;
    const int64_t at_once = blocks_for(g);
    return (tiles + at_once - 1) / at_once * (width + kPerTile);
}

}  // namespace

bool prefers_gated(const GroupedGemm& g) {
    return g.offsets != nullptr || cost(g, kWide) <= std::min(cost(g, kMedium), cost(g, kNarrow));
}

void grouped_matmul(void* y, Output type, const void* x, const void* w, const GroupedGemm& g, cudaStream_t stream) {
    if (g.rows == 0 || g.out == 0) return;
    check(g.in > 0, "grouped product: nothing to sum over");
    if (g.offsets == nullptr) {
        const int64_t narrow = cost(g, kNarrow), medium = cost(g, kMedium), wide = cost(g, kWide);
        if (narrow <= medium && narrow < wide) return narrow_matmul(y, type, x, w, g, stream);
        if (medium < wide) return medium_matmul(y, type, x, w, g, stream);
    }
    forward<kWide>(y, type, x, w, g, stream);
}

void grouped_dgrad(void* dx, Output type, const void* dy, const void* w, const GroupedGemm& g, cudaStream_t stream) {
    if (g.rows == 0 || g.in == 0) return;
    check(g.out > 0, "grouped product: nothing to sum over");
    const int64_t x_group = g.offsets == nullptr ? g.x_group : 0;
    GemmParams p = gemm_params(dx, g, kWide, mean_rows(g), g.in, g.out, g.x_row, x_group);
    p.b_group = 1;
    const TensorMap3 a = activations(dy, g, g.out, g.y_row, g.y_group), b = weights(w, g);
    if (type == Output::kBf16)
        launch_gemm<kWide, Major::kK, Major::kMN, false, Result::kBf16>(a, b, p, stream);
    else
        launch_gemm<kWide, Major::kK, Major::kMN, false, Result::kF32>(a, b, p, stream);
}

void grouped_wgrad(float* dw, const void* dy, const void* x, const GroupedGemm& g, bool accumulate, cudaStream_t stream) {
    if (g.rows == 0 || g.out == 0 || g.in == 0) return;
    GemmParams p = gemm_params(dw, g, kWide, g.out, g.in, 0, g.w_row, g.w_group);
    p.accumulate = accumulate;
    const TensorMap3 a = activations(dy, g, g.out, g.y_row, g.y_group), b = activations(x, g, g.in, g.x_row, g.x_group);
    launch_gemm<kWide, Major::kMN, Major::kMN, true, Result::kF32>(a, b, p, stream);
}

}  // namespace fathom::hopper
