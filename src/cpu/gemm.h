// Dense products C (+)= A B on all threads, many of one shape class at a time.
//
// Each element of C is one chain of fused multiply-adds over ascending k (docs/decisions/001), or of products of pairs of bf16
// (docs/decisions/014): lanes run over the columns of C, a block of k continues from the partial sum stored in C, and no k is
// ever split. Hence tiles, threads and lane widths are free choices that cannot change a bit.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/threads.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "tensor/tensor.h"

namespace fathom {

// The operand B [k, n] as it lies in memory: a stored matrix whose elements become f32 when they are packed.
struct GemmMatrix {
    const void* data = nullptr;
    DType dtype = DType::kF32;      // kF32, kBF16, kF16 or kF8E4M3
    int64_t stride = 0;             // elements between stored rows
    bool transposed = false;        // false: stored [k, n]; true: stored [n, k]
    bool panels = false;            // stored as cpu/number_panel.h says; stride: between panels; not kF8E4M3
    const float* scales = nullptr;  // kF8E4M3: one factor per 128x128 block of the stored matrix, or none
    int64_t scales_stride = 0;
    int64_t row0 = 0;  // place of stored row 0 in the grid of scales
};

// C[i, j] = (accumulate ? C[i, j] : 0) + sum_l A[i, l] B[l, j], with A[i, l] = a[i a_row + l a_k] and C[i, j] = c[i c_row + j].
struct GemmProduct {
    float* c = nullptr;
    int64_t c_row = 0;
    const float* a = nullptr;
    int64_t a_row = 0, a_k = 1;
    GemmMatrix b;
    int64_t m = 0, n = 0, k = 0;
    bool accumulate = false;
};

// Rows [m0, m1) and columns [n0, n1) of one product: what one thread computes at a time.
struct GemmTile {
    const GemmProduct* product = nullptr;
    int64_t m0 = 0, m1 = 0, n0 = 0, n1 = 0;
};

// Packed operands are cut to these sizes: 192 KB of A and 512 KB of B fit in a 1 MB L2 together.
struct GemmBlocking {
    static constexpr int64_t kMaxN = 512, kMaxK = 256;
    static constexpr int64_t kPackedA = 192 * kMaxK;  // floats; a vector's width per sliver and k
    static constexpr int64_t kScratchFloats = kPackedA + kMaxK * kMaxN;
};

// Computes one tile; `scratch` has GemmBlocking::kScratchFloats floats. One function per instruction set.
void gemm_tile_avx2(const GemmTile& tile, float* scratch);
void gemm_tile_avx512(const GemmTile& tile, float* scratch);
void gemm_tile_pairs_avx512(const GemmTile& tile, float* scratch);  // B: panels of bf16
void gemm_tile_amx(const GemmTile& tile, float* scratch);           // B: panels of bf16; k > 0

// A panel of bf16 from 16 columns of k rows of f32, `stride` apart; k is even.
void pack_pairs_avx512(void* panel, const float* rows, int64_t stride, int64_t k);

// Cuts products into tiles for `threads` threads, the costliest first. Each tile packs its operands itself, so that threads
// never wait for each other; the cuts keep that below a few per cent of the work.
[[nodiscard]] std::vector<GemmTile> plan_gemm(std::span<const GemmProduct> products, int threads);

// Computes all products in one parallel_for, those of Isa::kAvx512Bf16 with panels of bf16 in pairs: A is rounded to bf16, and
// sums take two k at a time; those of has_tiles(isa) in tiles, whose sums take 32 (cpu/gemm_amx.h). Outputs overlap neither
// each other nor an input.
void run_gemm(std::span<const GemmProduct> products, ThreadPool& pool, Isa isa, Scratch& scratch);

}  // namespace fathom
