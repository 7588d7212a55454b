// The products of panels without VNNI: the definition, step by step.
#include <cmath>

#include "cpu/quant_rows.h"

namespace fathom {
namespace {

void multiply_row(float* y, const PanelStep& step, const PanelTraits& traits, const int8_t* q, const StepFactors& factors) {
    int32_t sum[2][kPanelLanes] = {};
    for (int64_t k = 0; k < kPanelStep; ++k) {
        const int32_t x = q[k];
        int32_t* to = sum[traits.half_groups ? k / 16 : 0];
        for (int64_t r = 0; r < kPanelLanes; ++r) to[r] += step.code[k][r] * x;
    }
    for (int64_t g = 0; g < traits.groups_per_step(); ++g)
        for (int64_t r = 0; r < kPanelLanes; ++r) {
            y[r] = std::fma(step.scale[g][r], factors.d * static_cast<float>(sum[g][r]), y[r]);
            if (traits.has_offset()) y[r] = std::fma(step.offset[g][r], factors.sum[g], y[r]);
        }
}

void multiply(const PanelTile& tile, uint8_t* /*scratch*/) {
    const PanelTraits traits = panel_traits(tile.type);
    PanelStep step;
    for (int64_t panel = 0; panel < tile.panel_count; ++panel) {
        const uint8_t* from = tile.panels + panel * tile.panel_bytes;
        for (int64_t i = 0; i < tile.rows; ++i) std::fill_n(tile.y + i * tile.y_row + panel * kPanelLanes, kPanelLanes, 0.0f);
        for (int64_t s = 0; s < tile.steps; ++s) {
            unpack_step(step, tile.type, from, s);
            for (int64_t i = 0; i < tile.rows; ++i)
                multiply_row(tile.y + i * tile.y_row + panel * kPanelLanes, step, traits,
                             tile.q + (i * tile.steps + s) * kPanelStep, tile.factors[i * tile.steps + s]);
        }
    }
}

}  // namespace

const QuantKernels& quant_kernels_avx2() {
    static constexpr QuantKernels kKernels{quantize_row, multiply};
    return kKernels;
}

}  // namespace fathom
