// What the two kernels of absorbed MLA attention (hopper_mla.cu, hopper_mla_combine.cu) are told.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace fathom::hopper::mla {

constexpr int kLatent = 512, kKey = 576;
constexpr int kRows = 64, kTokens = 64;  // of a block's queries, of a cache block

struct Params {
    const int32_t* block_table;
    const int32_t* cu_q;
    const int32_t* cu_k;
    __nv_bfloat16* u;
    float* lse;
    float* partial;      // [2 ranges][row_blocks * 64][512]
    float* partial_lse;  // [2 ranges][row_blocks * 64], base 2
    int32_t* first;      // [sequences + 1]: cache blocks before each sequence; the last entry: cache blocks per range
    int heads, sequences, max_blocks, row_blocks, ranges;
    float scale_log2;
};

[[nodiscard]] __device__ __forceinline__ int blocks_of(const Params& p, int sequence) {
    return (p.cu_k[sequence + 1] - p.cu_k[sequence] + kTokens - 1) / kTokens;
}

// u of the sequences that several ranges share, from their partial results.
void combine_ranges(const Params& p, int64_t max_q, cudaStream_t stream);

}  // namespace fathom::hopper::mla
