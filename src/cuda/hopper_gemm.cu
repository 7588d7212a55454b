// Grouped bf16 products (hopper_gemm.h) in tiles of 128 x 256; dense ones of few such tiles in narrower ones
// (hopper_gemm_*.cu).
#include "cuda/hopper_gemm.cuh"

namespace fathom::hopper {

extern template void matmul_in_tiles<64>(void*, Output, const void*, const void*, const GroupedGemm&, cudaStream_t);
extern template void matmul_in_tiles<96>(void*, Output, const void*, const void*, const GroupedGemm&, cudaStream_t);
extern template void matmul_in_tiles<128>(void*, Output, const void*, const void*, const GroupedGemm&, cudaStream_t);
extern template void matmul_in_tiles<160>(void*, Output, const void*, const void*, const GroupedGemm&, cudaStream_t);
extern template void matmul_in_tiles<192>(void*, Output, const void*, const void*, const GroupedGemm&, cudaStream_t);

namespace {

constexpr int kWide = 256;

struct Width {
    int columns;
    void (*matmul)(void*, Output, const void*, const void*, const GroupedGemm&, cudaStream_t);
};
constexpr Width kWidths[] = {{kWide, matmul_in_tiles<kWide>}, {192, matmul_in_tiles<192>}, {160, matmul_in_tiles<160>},
                             {128, matmul_in_tiles<128>},     {96, matmul_in_tiles<96>},   {64, matmul_in_tiles<64>}};

// About how long a dense product takes in tiles of 128 x `width`: rounds of all pairs of blocks, each a tile's columns and what
// a tile costs however wide it is.
int64_t cost(const GroupedGemm& g, int width) {
    constexpr int64_t kPerTile = 48;
    const int64_t pairs = pairs_of(g.rows, g.out, width, g.groups), at_once = blocks_for(g) / 2;
    return (pairs + at_once - 1) / at_once * (width + kPerTile);
}

// The wider of two is taken unless the narrower one gains a twentieth: it reads less for each product.
const Width& best_width(const GroupedGemm& g) {
    const Width* best = kWidths;
    if (g.offsets != nullptr) return *best;
    for (const Width& other : kWidths)
        if (cost(g, other.columns) * 20 < cost(g, best->columns) * 19) best = &other;
    return *best;
}

}  // namespace

bool prefers_gated(const GroupedGemm& g) { return best_width(g).columns == kWide; }

void grouped_matmul(void* y, Output type, const void* x, const void* w, const GroupedGemm& g, cudaStream_t stream) {
    if (g.rows == 0 || g.out == 0) return;
    check(g.in > 0, "grouped product: nothing to sum over");
    best_width(g).matmul(y, type, x, w, g, stream);
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
