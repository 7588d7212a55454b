// The measuring loops of roofline.h, once for every vector type.
#pragma once

#include <array>

#include "cpu/roofline.h"

namespace fathom {

template <class Vector>
struct RooflineLoops {
    static constexpr int kLanes = 16;
    // Latency 4, two units: eight registers of sums would do; twelve fit beside the two factors (a value of AVX2 takes two).
    static constexpr int kChains = Vector::kRegisters >= 16 ? 12 : 6;
    static constexpr int kStreams = 128 / kLanes;

    static float sum(const float* values, int64_t count) {
        std::array<Vector, kStreams> total;
        total.fill(Vector::zero());
        for (int64_t i = 0; i < count; i += 128) {
#pragma GCC unroll 16
            for (int s = 0; s < kStreams; ++s) total[s] = total[s] + Vector::load(values + i + s * kLanes);
        }
        for (int s = 1; s < kStreams; ++s) total[0] = total[0] + total[s];
        return total[0].sum();
    }

    static float multiply_add(int64_t rounds) {
        std::array<Vector, kChains> x;
        for (int c = 0; c < kChains; ++c) x[c] = Vector::all(static_cast<float>(c));
        const Vector a = Vector::all(0.999f), b = Vector::all(0.001f);
        for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12  // or the chains live in memory: half the rate
            for (int c = 0; c < kChains; ++c) x[c] = Vector::fma(x[c], a, b);
        }
        for (int c = 1; c < kChains; ++c) x[0] = x[0] + x[c];
        return x[0].sum();
    }

    static RooflineKernels table() { return {sum, {multiply_add, int64_t{2} * kChains * kLanes}}; }
};

}  // namespace fathom
