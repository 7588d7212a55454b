#include "cpu/gemm.h"

#include <algorithm>

namespace fathom {
namespace {

constexpr int64_t kTilesPerThread = 4;           // more balance better, fewer pack less
constexpr int64_t kSmallest = int64_t{1} << 16;  // multiply-adds that are not worth another thread: about 2 us
constexpr int64_t kColumnStep = 32;              // panels of both instruction sets end here
constexpr int64_t kMostRows = 1024;  // of a tile: so packing B costs at most 1/1024 of a tile's loads per multiply-add

struct TileSize {
    int64_t m, n;
};

int64_t halves(int64_t size, int64_t step) { return ((size + 1) / 2 + step - 1) / step * step; }

// Halves the longer side until a tile costs no more than `cost` multiply-adds.
TileSize tile_size(const GemmProduct& p, int64_t cost) {
    TileSize tile{std::min(p.m, kMostRows), std::min(p.n, GemmBlocking::kMaxN)};
    while (tile.m * tile.n * p.k > cost) {
        const bool cut_rows = tile.m > tile.n && tile.m > kColumnStep;
        if (!cut_rows && tile.n <= kColumnStep) break;
        if (cut_rows)
            tile.m = halves(tile.m, 1);
        else
            tile.n = halves(tile.n, kColumnStep);
    }
    return tile;
}

using MultiplyTile = void (*)(const GemmTile& tile, float* scratch);

MultiplyTile kernel_of(const GemmProduct& p, Isa isa) {
    const bool panels = p.b.panels && p.k > 0;
    if (panels && p.b.dtype == DType::kBF16 && has_pairs(isa)) return has_tiles(isa) ? gemm_tile_amx : gemm_tile_pairs_avx512;
    return has_avx512(isa) ? gemm_tile_avx512 : gemm_tile_avx2;
}

}  // namespace

std::vector<GemmTile> plan_gemm(std::span<const GemmProduct> products, int threads) {
    int64_t total = 0;
    for (const GemmProduct& p : products) total += p.m * p.n * p.k;
    const int64_t cost = threads == 1 ? total : std::max(total / (threads * kTilesPerThread), kSmallest);
    std::vector<GemmTile> tiles;
    for (const GemmProduct& p : products) {
        const TileSize size = tile_size(p, cost);
        for (int64_t n = 0; n < p.n; n += size.n)
            for (int64_t m = 0; m < p.m; m += size.m)
                tiles.push_back({&p, m, std::min(m + size.m, p.m), n, std::min(n + size.n, p.n)});
    }
    const auto work = [](const GemmTile& t) { return (t.m1 - t.m0) * (t.n1 - t.n0) * t.product->k; };
    std::ranges::stable_sort(tiles, std::greater{}, work);
    return tiles;
}

void run_gemm(std::span<const GemmProduct> products, ThreadPool& pool, Isa isa, Scratch& scratch) {
    const std::vector<GemmTile> tiles = plan_gemm(products, pool.size());
    pool.parallel_for(static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end, int thread) {
        auto* const memory = scratch.of_thread<float>(thread, GemmBlocking::kScratchFloats);
        for (int64_t i = begin; i < end; ++i) {
            const GemmTile& tile = tiles[static_cast<size_t>(i)];
            kernel_of(*tile.product, isa)(tile, memory);
        }
    });
}

}  // namespace fathom
