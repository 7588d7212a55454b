// Quantizing a row of activations, as plain loops: compiled once per instruction set.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/quant_kernels.h"
#include "cpu/quant_panel.h"

namespace fathom {
namespace {

void quantize_row(int8_t* q, StepFactors* factors, const float* x, int64_t n, int zero, bool half_groups) {
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, to nearest even
    for (int64_t at = 0; at < n; at += kPanelStep, ++factors) {
        float largest = 0;
        for (int64_t i = 0; i < kPanelStep; ++i) largest = std::max(largest, std::fabs(x[at + i]));
        // Where 127 / largest is infinite the row counts as 0.
        const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        int32_t sum[2] = {0, 0};
        for (int64_t half = 0; half < 2; ++half)
            for (int64_t i = 16 * half; i < 16 * half + 16; ++i) {
                const auto code = static_cast<int32_t>((x[at + i] * inverse + kMagic) - kMagic);
                q[at + i] = static_cast<int8_t>(code);
                sum[half] += code;
            }
        factors->d = largest / 127.0f;
        if (!half_groups) sum[0] += sum[1];
        for (const int half : {0, 1}) {
            factors->shift[half] = -zero * sum[half];
            factors->sum[half] = factors->d * static_cast<float>(sum[half]);
        }
    }
}

}  // namespace
}  // namespace fathom
