// The products of panels in 256-bit registers, two of them for the 16 rows of a panel: a panel is unpacked once per tile, to a
// byte a code and f32 factors, then meets up to three rows of activations at a time. One template; instruction sets differ in
// Dot, how four bytes are multiplied and added:
//   Codes, Row                 what a register of codes, and four bytes of a row in every lane, are prepared to
//   add(sum, codes, row)       sum + the four products of each 32-bit lane
// Everything has internal linkage (see gemm_tile.h).
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "cpu/quant_kernels.h"
#include "cpu/quant_panel.h"

namespace fathom {
namespace {

template <class Dot>
struct Lanes8 {
    static constexpr int kRows = 3, kQuads = kPanelStep / 4;
    static constexpr int64_t kCodes = kPanelStep * kPanelLanes;

    // ---- unpacking: as AVX512's UnpackedSteps, 512 codes, the scales of the step's groups, their offsets if there are any
    // ----

    static void unpack_codes(uint8_t* to, const uint8_t* codes, const PanelTraits& traits, const PanelTable& table) {
        constexpr int64_t kQuad = 64;
        if (traits.bits == 8) std::memcpy(to, codes, kCodes);
        for (int64_t v = 0; v < 4 && 4 <= traits.bits && traits.bits < 8; ++v)
            for (int64_t i = 0; i < kQuad; ++i) {
                to[2 * v * kQuad + i] = codes[v * kQuad + i] & 15;
                to[(2 * v + 1) * kQuad + i] = codes[v * kQuad + i] >> 4;
            }
        if (traits.bits < 4) std::memset(to, 0, kCodes);
        if (traits.bits < 4 || traits.bits == 6) {
            const uint8_t* const fours = traits.bits == 6 ? codes + 4 * kQuad : codes;
            const int up = traits.bits == 6 ? 4 : 0;
            for (int64_t q = 0; q < kQuads; ++q)
                for (int64_t i = 0; i < kQuad; ++i)
                    to[q * kQuad + i] |= static_cast<uint8_t>((fours[q / 4 * kQuad + i] >> (q % 4 * 2) & 3) << up);
        }
        if (traits.bits == 3 || traits.bits == 5) {
            const uint8_t* const masks = codes + (traits.bits - 1) * kQuad;
            for (int64_t i = 0; i < kCodes; ++i)
                to[i] |= static_cast<uint8_t>((masks[i / 8] >> (i % 8) & 1) << (traits.bits - 1));
        }
        for (int64_t i = 0; traits.table && i < kCodes; ++i) to[i] = table.value[to[i]];
    }

    static void unpack(uint8_t* to, const PanelTile& tile, const PanelTraits& traits, const uint8_t* panel) {
        const PanelTable table = table_of(tile.type);
        const auto factors = static_cast<size_t>(traits.groups_per_step()) * sizeof(float) * kPanelLanes;
        PanelStep step;
        for (int64_t s = 0; s < tile.steps; ++s) {
            const uint8_t* const block = panel + s / traits.steps * traits.block_bytes();
            unpack_codes(to, block + traits.head_bytes() + s % traits.steps * traits.step_bytes(), traits, table);
            unpack_factors(step, tile.type, panel, s);
            std::memcpy(to + kCodes, step.scale, factors);
            if (traits.has_offset()) std::memcpy(to + kCodes + factors, step.offset, factors);
            to += kCodes + static_cast<int64_t>(factors) * (traits.has_offset() ? 2 : 1);
        }
    }

    // ---- products --------------------------------------------------------------------------------------------------------

    // y[R, 16] of R rows from `row` on times one unpacked panel.
    template <int R, bool kHalfGroups, bool kHasOffset>
    static void multiply_rows(const PanelTile& tile, const uint8_t* panel, int64_t row, int64_t column) {
        constexpr int kGroups = kHalfGroups ? 2 : 1, kQuadsOfGroup = kQuads / kGroups;
        const int64_t steps = tile.steps;
        const int8_t* q = tile.q + row * steps * kPanelStep;
        const StepFactors* of_row = tile.factors + row * steps;
        __m256 y[R][2];
        for (int r = 0; r < R; ++r) y[r][0] = y[r][1] = _mm256_setzero_ps();
        for (int64_t s = 0; s < steps; ++s, q += kPanelStep, ++of_row) {
            const auto* const factors = reinterpret_cast<const float*>(panel + kCodes);
            for (int g = 0; g < kGroups; ++g) {
                __m256i sum[R][2];
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_set1_epi32(of_row[r * steps].shift[g]);
#pragma GCC unroll 8
                for (int quad = g * kQuadsOfGroup; quad < (g + 1) * kQuadsOfGroup; ++quad) {
                    const auto left = Dot::codes(panel + 64 * quad), right = Dot::codes(panel + 64 * quad + 32);
#pragma GCC unroll 4
                    for (int r = 0; r < R; ++r) {
                        const auto x = Dot::row(q + r * steps * kPanelStep + 4 * quad);
                        sum[r][0] = Dot::add(sum[r][0], left, x);
                        sum[r][1] = Dot::add(sum[r][1], right, x);
                    }
                }
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
                    for (int half = 0; half < 2; ++half) {
                        const float* const scale = factors + g * kPanelLanes + 8 * half;
                        const StepFactors& f = of_row[r * steps];
                        const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(scale), _mm256_cvtepi32_ps(sum[r][half]));
                        y[r][half] = _mm256_fmadd_ps(_mm256_set1_ps(f.d), scaled, y[r][half]);
                        if constexpr (kHasOffset)
                            y[r][half] = _mm256_fmadd_ps(_mm256_loadu_ps(scale + kGroups * kPanelLanes),
                                                         _mm256_set1_ps(f.sum[g]), y[r][half]);
                    }
            }
            panel += kCodes + static_cast<int64_t>(sizeof(float)) * kPanelLanes * kGroups * (kHasOffset ? 2 : 1);
        }
        for (int r = 0; r < R; ++r)
            for (int half = 0; half < 2; ++half)
                _mm256_storeu_ps(tile.y + (row + r) * tile.y_row + column + 8 * half, y[r][half]);
    }

    template <bool kHalfGroups, bool kHasOffset>
    static void multiply_panel(const PanelTile& tile, const uint8_t* panel, int64_t column) {
        int64_t row = 0;
        for (; row + kRows <= tile.rows; row += kRows) multiply_rows<kRows, kHalfGroups, kHasOffset>(tile, panel, row, column);
        for (; row < tile.rows; ++row) multiply_rows<1, kHalfGroups, kHasOffset>(tile, panel, row, column);
    }

    static void multiply(const PanelTile& tile, uint8_t* scratch) {
        const PanelTraits traits = panel_traits(tile.type);
        const auto of_halves = traits.has_offset() ? multiply_panel<true, true> : multiply_panel<true, false>;
        const auto of_steps = traits.has_offset() ? multiply_panel<false, true> : multiply_panel<false, false>;
        for (int64_t panel = 0; panel < tile.panel_count; ++panel) {
            unpack(scratch, tile, traits, tile.panels + panel * tile.panel_bytes);
            (traits.half_groups ? of_halves : of_steps)(tile, scratch, panel * kPanelLanes);
        }
    }
};

}  // namespace
}  // namespace fathom
