// Rotary position embedding (Su et al. 2021). One table row per token serves all heads: 4 FLOPs per element, bound by memory.
#include <cmath>

#include "cpu/cpu_ops.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {
namespace {

// (a, b) -> (a cos - b sin, a sin + b cos) on the pairs (x[i first], x[i first + second]).
void rotate(float* y, const float* x, const float* cos, const float* sin, float sign, int64_t pairs, int64_t first,
            int64_t second) {
    for (int64_t i = 0; i < pairs; ++i) {
        const float a = x[i * first], b = x[i * first + second], s = sign * sin[i];
        y[i * first] = a * cos[i] - b * s;
        y[i * first + second] = a * s + b * cos[i];
    }
}

}  // namespace

void CpuOps::rope_table(const Tensor& table, const Tensor& positions, const Tensor& inv_freq, double magnitude) {
    check_tensor("rope_table", "table", table, DType::kF32, {kAny, kAny});
    const int64_t n = table.dim(0), half = table.dim(1) / 2;
    check(table.dim(1) % 2 == 0, "rope_table: an odd number of channels");
    check_tensor("rope_table", "positions", positions, DType::kI32, {n});
    check_tensor("rope_table", "inv_freq", inv_freq, DType::kF32, {half});
    pool_.parallel_for(n, rows_per_task(50 * half), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            float* out = row(table, i);
            const auto position = static_cast<float>(positions.as<int32_t>()[i]);
            for (int64_t j = 0; j < half; ++j) {
                const double angle = position * inv_freq.as<float>()[j];  // the product is rounded to f32
                out[j] = static_cast<float>(magnitude * std::cos(angle));
                out[half + j] = static_cast<float>(magnitude * std::sin(angle));
            }
        }
    });
}

void CpuOps::rope(const Tensor& y, const Tensor& x, const Tensor& table, RopePairing pairing, bool inverse) {
    check_tensor("rope", "x", x, DType::kF32, {kAny, kAny, kAny});
    const int64_t n = x.dim(0), h = x.dim(1), d = x.dim(2), half = d / 2;
    check(d % 2 == 0, "rope: an odd number of channels");
    check_tensor("rope", "y", y, DType::kF32, {n, h, d});
    check_tensor("rope", "table", table, DType::kF32, {n, d});
    const float sign = inverse ? -1.0f : 1.0f;
    pool_.parallel_for(n, rows_per_task(2 * h * d), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const float *cos = row(table, i), *sin = cos + half;
            for (int64_t j = 0; j < h; ++j) {
                if (pairing == RopePairing::kInterleaved) rotate(row(y, i, j), row(x, i, j), cos, sin, sign, half, 2, 1);
                if (pairing == RopePairing::kHalves) rotate(row(y, i, j), row(x, i, j), cos, sin, sign, half, 1, half);
            }
        }
    });
}

}  // namespace fathom
