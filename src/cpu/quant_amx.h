// Products of quantized panels in tiles (cpu/amx_tiles.h), with the bits of every other instruction set: integer sums are
// exact, and their factors are met in the same order (cpu/quant_kernels.h). An unpacked step's eight quads are eight rows of 64
// bytes, a right operand of tdpbssd; 16 rows of activations with a step's 32 bytes each are the left one. A product of two
// tiles takes 16 cycles and leaves 16 x 16 integers, stored to L1 while the ones before become f32: load and convert, multiply,
// fma for each row, 24 cycles. Groups of 16 columns would need two such products a step, which vpdpbusd beats: they are left to
// it.
//
// For blocks of 1024 columns: 16 rows of activations are packed (22 KB, they stay in L1), then met by all panels of a chunk.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "cpu/amx_tiles.h"
#include "cpu/quant_steps_avx512.h"

namespace fathom {
namespace {

template <class Tiles>
class AmxQuant {
public:
    [[nodiscard]] static bool multiplies(BlockType type) { return !panel_traits(type).half_groups; }
    // PanelTile and scratch of QuantKernels::multiply.
    static void multiply(const PanelTile& tile, uint8_t* scratch) { kTypes[static_cast<size_t>(tile.type) - 1](tile, scratch); }

private:
    static constexpr int64_t kBlockSteps = 32;
    static constexpr int64_t kProducts = kTileRows * kPanelLanes;

    // A step of 16 rows.
    struct alignas(64) Step {
        int8_t q[kTileRows][kPanelStep];
        float d[kTileRows];
        float sum[kTileRows];
    };

    // Rows of one sliver times the steps [0, count) of a panel, unpacked.
    struct Block {
        const Step* left;
        const uint8_t* right;
        int64_t count, rows;
        float* y;
        int64_t y_row;
        bool from_zero;
    };

    // Row after row, whose bytes are one stream. Rows that do not exist are zeros.
    template <bool HasOffset>
    static void pack(Step* to, const PanelTile& tile, int64_t row, int64_t rows, int64_t s0, int64_t count) {
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = (row + r) * tile.steps + s0;
            const int8_t* q = tile.q + at * kPanelStep;
            const StepFactors* factors = tile.factors + at;
            for (int64_t s = 0; s < count; ++s) {
                std::memcpy(to[s].q[r], q + s * kPanelStep, kPanelStep);
                to[s].d[r] = factors[s].d;
                if constexpr (HasOffset) to[s].sum[r] = factors[s].sum[0];
            }
        }
        for (int64_t s = 0; s < count && rows < kTileRows; ++s) {
            std::memset(to[s].q[rows], 0, static_cast<size_t>((kTileRows - rows) * kPanelStep));
            for (int64_t r = rows; r < kTileRows; ++r) to[s].d[r] = to[s].sum[r] = 0;
        }
    }

    // products = the integers of a step, in the tiles of this Turn: those of the other one are still in use.
    template <int Turn>
    static void multiply_step(int32_t* products, const Step& left, const uint8_t* right) {
        constexpr int kSum = kTileSums + Turn, kLeft = kTileLeft + Turn, kRight = kTileRight + Turn;
        Tiles::template load<kLeft>(left.q[0], kPanelStep);
        Tiles::template load<kRight>(right, kTileRowBytes);
        Tiles::template zero<kSum>();
        Tiles::template add_int8<kSum, kLeft, kRight>();
        Tiles::template store<kSum>(products, kTileRowBytes);
    }

    template <class S>
    [[gnu::always_inline]] static inline void add_step(__m512 (&y)[kTileRows], const int32_t* products, const Step& left,
                                                       const uint8_t* right) {
        const S step(right);
        const __m512 scale = step.scale(0);
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(products + r * kPanelLanes));
            y[r] = _mm512_fmadd_ps(_mm512_set1_ps(left.d[r]), _mm512_mul_ps(scale, sum), y[r]);
        }
        if constexpr (S::kHasOffset) {
            const __m512 offset = step.offset(0);
#pragma GCC unroll 16
            for (int r = 0; r < kTileRows; ++r) y[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(left.sum[r]), y[r]);
        }
    }

    // A step's products are under way while the ones before are added.
    template <class S>
    static void multiply_block(const Block& block) {
        alignas(64) int32_t even[kProducts], odd[kProducts];
        __m512 y[kTileRows];
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r)
            y[r] = block.from_zero || r >= block.rows ? _mm512_setzero_ps() : _mm512_loadu_ps(block.y + r * block.y_row);
        const Step* left = block.left;
        const uint8_t* right = block.right;
        multiply_step<0>(even, *left, right);
        for (int64_t s = 0; s < block.count; s += 2, left += 2, right += 2 * S::kBytes) {
            if (s + 1 < block.count) multiply_step<1>(odd, left[1], right + S::kBytes);
            add_step<S>(y, even, *left, right);
            if (s + 1 == block.count) break;
            if (s + 2 < block.count) multiply_step<0>(even, left[2], right + 2 * S::kBytes);
            add_step<S>(y, odd, left[1], right + S::kBytes);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r)
            if (r < block.rows) _mm512_storeu_ps(block.y + r * block.y_row, y[r]);
    }

    // All rows times `count` unpacked panels, the first of them the tile's panel `first`.
    template <class S>
    static void multiply_panels(const PanelTile& tile, const uint8_t* panels, int64_t first, int64_t count, Step* left) {
        const int64_t slivers = (tile.rows + kTileRows - 1) / kTileRows;
        for (int64_t s = 0; s < tile.steps; s += kBlockSteps)
            for (int64_t i = 0; i < slivers; ++i) {
                const int64_t row = tile.rows * i / slivers, rows = tile.rows * (i + 1) / slivers - row;
                Block block{left, panels + s * S::kBytes, std::min(kBlockSteps, tile.steps - s), rows};
                pack<S::kHasOffset>(left, tile, row, rows, s, block.count);
                block.y = tile.y + row * tile.y_row + first * kPanelLanes, block.y_row = tile.y_row;
                block.from_zero = s == 0;
                for (int64_t panel = 0; panel < count; ++panel, block.right += tile.steps * S::kBytes, block.y += kPanelLanes)
                    multiply_block<S>(block);
            }
    }

    static TileConfig config() {
        TileConfig result;
        for (int i = 0; i < 2; ++i) {
            result.set(kTileSums + i, kTileRows, kTileRowBytes);
            result.set(kTileLeft + i, kTileRows, kPanelStep);
            result.set(kTileRight + i, kPanelStep / 4, kTileRowBytes);
        }
        return result;
    }

    template <BlockType T>
    static void multiply_type(const PanelTile& tile, uint8_t* scratch) {
        alignas(64) Step left[kBlockSteps];
        const int64_t bytes = unpacked_panel_bytes(kTraits<T>, tile.steps),
                      chunk = std::max<int64_t>(1, kUnpackedBytes / bytes);
        Tiles::configure(config());
        for (int64_t first = 0; first < tile.panel_count; first += chunk) {
            const int64_t count = std::min(chunk, tile.panel_count - first);
            for (int64_t i = 0; i < count; ++i)
                unpack_panel<T, true>(scratch + i * bytes, tile.panels + (first + i) * tile.panel_bytes, tile.steps);
            multiply_panels<Unpacked<T>>(tile, scratch, first, count, left);
        }
        Tiles::release();
    }

    using Multiply = void (*)(const PanelTile& tile, uint8_t* scratch);
    template <size_t... I>
    static constexpr std::array<Multiply, sizeof...(I)> make_types(std::index_sequence<I...>) {
        return {of_type<static_cast<BlockType>(I + 1)>()...};
    }
    template <BlockType T>
    static constexpr Multiply of_type() {
        if constexpr (kTraits<T>.half_groups)
            return nullptr;
        else
            return &multiply_type<T>;
    }
    static constexpr auto kTypes = make_types(std::make_index_sequence<static_cast<size_t>(kLastBlockType)>{});
};

}  // namespace
}  // namespace fathom
