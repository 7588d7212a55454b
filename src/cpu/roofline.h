// What this machine can do at most: how fast it reads memory and how many f32 multiply-adds it makes. Kernels are judged by it.
#pragma once

#include <cstdint>

#include "base/threads.h"

namespace fathom {

struct Roofline {
    double read_bytes_per_second = 0;       // all threads of the pool, streaming a buffer of four times the last cache
    double f32_flops_per_second = 0;        // fused multiply-adds counted as two, from registers
    double bf16_flops_per_second = 0;       // the same of pairs of bf16 (vdpbf16ps); 0: the CPU has none
    double int8_ops_per_second = 0;         // the same of fours of bytes (vpdpbusd of 512 bits); 0: the CPU has none
    double fp16_flops_per_second = 0;       // the same of halves (vfmadd..ph); 0: the CPU has none
    double bf16_tile_flops_per_second = 0;  // the same of whole tiles (tdpbf16ps); 0: the CPU has none
    double int8_tile_ops_per_second = 0;    // the same of whole tiles (tdpbssd)
};

// Takes about a second; the best of several rounds, because a disturbed round says nothing about the machine.
[[nodiscard]] Roofline measure_roofline(ThreadPool& threads);

// Are products of pairs of bf16 faster than f32 on this machine? Twice as fast on some CPUs that have them, half as fast on
// others. Measured once in a process, on the caller's thread, in about a millisecond. Wants Isa::kAvx512Bf16 to be supported.
[[nodiscard]] bool bf16_pairs_pay();
[[nodiscard]] bool bf16_tiles_pay();  // the same of tiles, and Isa::kAmxBf16
[[nodiscard]] bool halves_pay();      // of halves, and Isa::kAvx512Fp16

// A loop of independent chains in registers; its result keeps it from being removed.
struct ProductLoop {
    float (*run)(int64_t rounds) = nullptr;
    int64_t operations_per_round = 0;  // multiply and add counted as two
};
[[nodiscard]] ProductLoop bf16_loop_avx512();
[[nodiscard]] ProductLoop int8_loop_avx512();
[[nodiscard]] ProductLoop fp16_loop_avx512();
[[nodiscard]] ProductLoop bf16_loop_amx();
[[nodiscard]] ProductLoop int8_loop_amx();

// The measuring loops of one instruction set.
struct RooflineKernels {
    float (*sum)(const float* values, int64_t count);  // count: a multiple of 128
    ProductLoop multiply_add;                          // enough chains to hide the latency
};

[[nodiscard]] RooflineKernels roofline_kernels_avx2();
[[nodiscard]] RooflineKernels roofline_kernels_avx512();

}  // namespace fathom
