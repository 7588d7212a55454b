// Products in halves (vfmadd..ph), twice as many multiply-adds as in f32 where a CPU has AVX512-FP16: what expanded attention
// and the expansion of keys take them for (docs/decisions/014), and how much they lose.
#pragma once

#include <cstdint>

#include "cpu/attention_task.h"
#include "tensor/dtype.h"

namespace fathom {

inline constexpr int64_t kHalfChain = 64;  // multiply-adds in halves before their sum joins one in f32

// Error of a sum of |a b| in chains: kHalfRelative of it, and kHalfAbsolute of each product of the largest |a| and |b|.
inline constexpr double kHalfRelative = (kHalfChain + 4) / 2048.0;
inline constexpr double kHalfAbsolute = 0x1p-27;

// ---- C[m, n] = A[m, k] B[k, n], k in blocks of kHalfChain columns -------------------------------------------------------

inline constexpr int64_t kHalfColumns = 32;  // n is a multiple

// A [k / 64, m, 64], B [k / 64, 64, n]: halves scaled by powers of two, with the factor that takes the scale back of each row
// and block of A [k / 64, m], and of each block of B [k / 64].
struct HalfTile {
    float* c;
    int64_t c_row;
    const Float16* a;  // first row of the tile, in block 0
    const float* a_factors;
    int64_t a_block;  // rows between blocks: m
    const Float16* b;
    const float* b_factors;
    int64_t rows, n, k;
};

// Row x [k] of A; `to` and `factors` point at its place in block 0. Writes zeros up to a multiple of 16 columns.
void pack_half_row_avx512(Float16* to, float* factors, int64_t a_block, const float* x, int64_t k);
// A block of B; `count` <= 64 n numbers, a multiple of 16.
void pack_half_block_avx512(Float16* to, float* factor, const float* x, int64_t count);
void multiply_halves_avx512(const HalfTile& tile);

// ---- attention -----------------------------------------------------------------------------------------------------------

// Expanded attention of several tasks with the same keys, each tile of which is packed once for all; `forward` of
// AttentionKernels otherwise, not its bits. At most kHalfTasks.
inline constexpr int64_t kHalfTasks = 8;
void attention_halves_avx512(const AttentionTask* tasks, int64_t count, float* scratch);
[[nodiscard]] int64_t attention_halves_scratch_floats(int64_t count, int64_t d_q, int64_t d_v);

}  // namespace fathom
