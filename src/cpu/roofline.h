// What this machine can do at most: how fast it reads memory and how many f32 multiply-adds it makes. Kernels are judged by it.
#pragma once

#include <cstdint>

#include "base/threads.h"

namespace fathom {

struct Roofline {
    double read_bytes_per_second = 0;  // all threads of the pool, streaming a buffer of four times the last cache
    double f32_flops_per_second = 0;   // fused multiply-adds counted as two, from registers
};

// Takes about a second; the best of several rounds, because a disturbed round says nothing about the machine.
[[nodiscard]] Roofline measure_roofline(ThreadPool& threads);

// The measuring loops of one instruction set.
struct RooflineKernels {
    float (*sum)(const float* values, int64_t count);  // count: a multiple of 128
    float (*multiply_add)(int64_t rounds);             // independent chains, enough to hide the latency
    int64_t flops_per_round = 0;
};

[[nodiscard]] RooflineKernels roofline_kernels_avx2();
[[nodiscard]] RooflineKernels roofline_kernels_avx512();

}  // namespace fathom
