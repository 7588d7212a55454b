// Products of halves with an A and a B of many blocks: rows meet 64 columns at a time, whose sums stay in L1 from block to
// block.
#include "cpu/halves.h"

#include "cpu/half_product.h"

namespace fathom {
namespace {

constexpr int64_t kTileRows = 48, kTileColumns = 64;  // 12 KB of sums, 6 KB of A and 8 KB of B at a time

using Product = HalfProduct<Fp16>;

void multiply(const HalfTile& tile, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    alignas(64) float lanes[kTileColumns];
    for (int64_t l = 0; l < tile.k; l += kHalfChain) {
        const int64_t block = l / kHalfChain, place = block * tile.a_block + row;
        for (int64_t j = 0; j < columns; j += 16) Avx512::all(tile.b_factors[block]).store(lanes + j);
        Product{.c = tile.c + row * tile.c_row + column,
                .c_row = tile.c_row,
                .a = tile.a + place * kHalfChain,
                .a_k = 1,
                .b = tile.b + l * tile.n + column,
                .b_row = tile.n,
                .k = tile.k - l < kHalfChain ? tile.k - l : kHalfChain,
                .rows = tile.a_factors + place,
                .rows_step = 1,
                .lanes = lanes,
                .start = l == 0 ? TileStart::kZero : TileStart::kAccumulate,
                .factor = nullptr}
            .run<kHalfChain>(rows, columns / Product::kLanes);
    }
}

}  // namespace

void pack_half_row_avx512(Float16* to, float* factors, int64_t a_block, const float* x, int64_t k) {
    for (int64_t l = 0; l < k; l += kHalfChain, to += a_block * kHalfChain, factors += a_block)
        *factors = pack_half_row(to, x + l, k - l < kHalfChain ? k - l : kHalfChain);
}

void pack_half_block_avx512(Float16* to, float* factor, const float* x, int64_t count) {
    *factor = pack_half_row(to, x, count, kLaneExponent);
}

void multiply_halves_avx512(const HalfTile& tile) {
    for (int64_t row = 0; row < tile.rows; row += kTileRows) {
        const int64_t rows = tile.rows - row < kTileRows ? tile.rows - row : kTileRows;
        for (int64_t column = 0; column < tile.n; column += kTileColumns)
            multiply(tile, row, rows, column, tile.n - column < kTileColumns ? tile.n - column : kTileColumns);
    }
}

}  // namespace fathom
