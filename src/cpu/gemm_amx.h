// Products of panels of bf16 in tiles (cpu/amx_tiles.h). A panel's 16 pairs of k are 16 rows of 64 bytes, the right operand of
// tdpbf16ps as it lies in memory; only activations are packed, rounded to bf16. Up to 32 rows meet two panels: four tiles of
// sums, 4 KB of operands for 64 cycles of products; rows of at most 8 (decoding) meet one, which is read once along its length.
//
// Each element of the result is one chain over ascending k of what tdpbf16ps adds for 32 columns, cut at multiples of 32 from
// the beginning whatever the block (a last tile of fewer columns ends it), so a row's bits depend neither on its batch nor on
// tiles or threads.
#pragma once

#include <algorithm>

#include "cpu/amx_tiles.h"
#include "cpu/gemm.h"
#include "cpu/gemm_operand.h"
#include "cpu/pairs_avx512.h"

namespace fathom {
namespace {

template <class Tiles, int64_t kBlock = 128>  // pairs: two panels and 32 rows of that length are 32 KB
class AmxGemm {
public:
    // As gemm_tile_avx512: `scratch` has GemmBlocking::kScratchFloats floats.
    static void multiply_tile(const GemmTile& tile, float* scratch) {
        AmxGemm self(tile, scratch);
        const GemmProduct& p = *tile.product;
        const int64_t most = tile.m1 - tile.m0, all = p.k / 2;
        const int64_t block_pairs = most <= kFewRows ? GemmBlocking::kPackedA / kFewRows : kBlock;
        for (int64_t l = 0; l < all; l += block_pairs)
            for (int64_t m0 = tile.m0; m0 < tile.m1; m0 += kPackedRows)
                self.multiply_rows({m0, std::min(m0 + kPackedRows, tile.m1), kRows}, l, std::min(block_pairs, all - l));
        Tiles::release();
    }

private:
    static constexpr int64_t kRows = 2 * kTileRows, kFewRows = 8;
    static constexpr int64_t kPairs = kTileRowBytes / sizeof(Pair);  // of a row of a tile
    static constexpr int64_t kPackedRows = GemmBlocking::kPackedA / kBlock / kRows * kRows;

    // Rows [0, rows) of a sliver times N panels over `pairs` pairs, in whole tiles or less than one.
    struct Step {
        int64_t rows, pairs;
        const Pair* a[2];  // of the first 16 rows and of the others
        const Pair* b;
        int64_t b_panel;   // pairs between panels
        const Pair* next;  // what is wanted soon, a line for each pair, or b itself
        float* c;
        int64_t c_row;
        bool from_zero;
    };

    AmxGemm(const GemmTile& tile, float* scratch) : tile_(tile), packed_(scratch) {}

    // A tile of rows after the other, each [pairs / 16, rows of the tile, 16 pairs]: its first 16 rows, then the others.
    static void pack(Pair* to, const float* a, int64_t a_row, int64_t rows, int64_t pairs) {
        const int64_t step = rows * kPairs;
        for (int64_t r = 0; r < rows; ++r, a += a_row, to += kPairs)
            for (int64_t l = 0; l < pairs; l += kPairs)
                _mm512_storeu_ps(to + l / kPairs * step, pairs_of(a + 2 * l, 2 * std::min(kPairs, pairs - l)));
    }
    static int64_t padded(int64_t pairs) { return (pairs + kPairs - 1) / kPairs * kPairs; }

    void configure(int64_t rows, int64_t pairs) {
        if (rows == rows_ && pairs == pairs_) return;
        rows_ = rows, pairs_ = pairs;
        TileConfig config;
        for (int i = 0; i < 2; ++i) {
            const int64_t count = std::clamp<int64_t>(rows - i * kTileRows, 0, kTileRows);
            if (count > 0) {
                for (int j = 0; j < 2; ++j) config.set(kTileSums + 2 * i + j, count, kTileRowBytes);
                config.set(kTileLeft + i, count, static_cast<int64_t>(sizeof(Pair)) * pairs);
            }
            config.set(kTileRight + i, pairs, kTileRowBytes);
        }
        Tiles::configure(config);
    }

    template <int I, int J, int N>
    static void start(const Step& step) {
        constexpr int kSum = kTileSums + 2 * I + J;
        if (step.from_zero)
            Tiles::template zero<kSum>();
        else
            Tiles::template load<kSum>(step.c + I * kTileRows * step.c_row + J * kPairs, bytes_of_row(step));
        if constexpr (J + 1 < N) start<I, J + 1, N>(step);
    }
    template <int I, int J, int N>
    static void finish(const Step& step) {
        Tiles::template store<kTileSums + 2 * I + J>(step.c + I * kTileRows * step.c_row + J * kPairs, bytes_of_row(step));
        if constexpr (J + 1 < N) finish<I, J + 1, N>(step);
    }
    static int64_t bytes_of_row(const Step& step) { return step.c_row * static_cast<int64_t>(sizeof(float)); }

    // M tiles of rows, N panels.
    template <int M, int N>
    static void kernel(const Step& step) {
        constexpr int kLeft = kTileLeft, kRight = kTileRight, kSum = kTileSums;
        start<0, 0, N>(step);
        if constexpr (M == 2) start<1, 0, N>(step);
        const int64_t first = M == 2 ? kTileRows : step.rows, second = step.rows - first;
        const Pair *a0 = step.a[0], *a1 = step.a[1], *b = step.b, *next = step.next;
        for (int64_t l = 0; l < step.pairs; l += kPairs, a0 += first * kPairs, a1 += second * kPairs, b += kPairs * kPairs) {
            Tiles::template load<kRight>(b, kTileRowBytes);
            Tiles::template load<kLeft>(a0, kTileRowBytes);
            if constexpr (N == 2) Tiles::template load<kRight + 1>(b + step.b_panel, kTileRowBytes);
            if constexpr (M == 2) Tiles::template load<kLeft + 1>(a1, kTileRowBytes);
            Tiles::template add_bf16<kSum, kLeft, kRight>();
            if constexpr (N == 2) Tiles::template add_bf16<kSum + 1, kLeft, kRight + 1>();
            if constexpr (M == 2) Tiles::template add_bf16<kSum + 2, kLeft + 1, kRight>();
            if constexpr (M == 2 && N == 2) Tiles::template add_bf16<kSum + 3, kLeft + 1, kRight + 1>();
            if constexpr (N == 2)
                for (int64_t i = 0; i < kPairs; ++i, next += kPairs) _mm_prefetch(next, _MM_HINT_T1);
        }
        finish<0, 0, N>(step);
        if constexpr (M == 2) finish<1, 0, N>(step);
    }

    void run(const Step& step, int64_t panels) {
        configure(step.rows, std::min(step.pairs, kPairs));
        if (step.rows > kTileRows)
            panels == 2 ? kernel<2, 2>(step) : kernel<2, 1>(step);
        else
            panels == 2 ? kernel<1, 2>(step) : kernel<1, 1>(step);
    }

    void pack_slivers(const Slivers& slivers, int64_t l, int64_t pairs) {
        const GemmProduct& p = *tile_.product;
        Pair* to = packed_;
        for (int64_t i = 0; i < slivers.count; ++i)
            for (int64_t m = slivers.at(i); m < slivers.at(i + 1); m += kTileRows) {
                const int64_t rows = std::min(kTileRows, slivers.at(i + 1) - m);
                pack(to, p.a + m * p.a_row + 2 * l, p.a_row, rows, pairs);
                to += rows * padded(pairs);
            }
    }

    // One block of k: all panels of the tile, for each all rows; while the first two slivers meet two panels, the next two are
    // fetched. What is left of the pairs after whole tiles is another step, which continues the sums.
    void multiply_rows(const Slivers& slivers, int64_t l, int64_t pairs) {
        const GemmProduct& p = *tile_.product;
        const Stored<BFloat16> b(p.b);
        const auto panel_at = [&](int64_t n) { return reinterpret_cast<const Pair*>(b.in_panel(2 * l, n)); };
        pack_slivers(slivers, l, pairs);
        const int64_t whole = pairs / kPairs * kPairs;
        const int64_t together = slivers.count == 1 && slivers.end - slivers.begin <= kFewRows ? 1 : 2;
        for (int64_t n = tile_.n0; n < tile_.n1; n += together * kPairs) {
            const int64_t panels = std::min(together, (tile_.n1 - n) / kPairs);
            const Pair* a = packed_;
            for (int64_t i = 0; i < slivers.count; ++i) {
                const int64_t m = slivers.at(i), rows = slivers.at(i + 1) - m, soon = n + (2 + i) * kPairs;
                const int64_t first = std::min(rows, kTileRows), second = rows - first;
                Step step{.rows = rows, .pairs = whole, .a = {a, a + first * padded(pairs)}, .b = panel_at(n)};
                step.b_panel = p.b.stride / 2;
                step.next = i < 2 && soon < tile_.n1 ? panel_at(soon) : step.b;
                step.c = p.c + m * p.c_row + n, step.c_row = p.c_row;
                step.from_zero = l == 0 && !p.accumulate;
                if (whole > 0) run(step, panels);
                if (whole < pairs) {
                    step.pairs = pairs - whole;
                    step.a[0] += whole * first, step.a[1] += whole * second, step.b += whole * kPairs;
                    step.from_zero = step.from_zero && whole == 0;
                    run(step, panels);
                }
                a += rows * padded(pairs);
            }
        }
    }

    const GemmTile& tile_;
    Pair* const packed_;
    int64_t rows_ = 0, pairs_ = 0;  // of the configuration
};

}  // namespace
}  // namespace fathom
