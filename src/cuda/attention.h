// Attention as the kernels see it, expanded and absorbed alike.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "ops/ops.h"

namespace fathom::cuda {

// Rows [n, h, width] of an activation, or rows shared by all heads (head stride 0).
struct HeadRows {
    void* data = nullptr;
    DType type = DType::kF32;
    int64_t row = 0, head = 0, width = 0;
};

// Queries of one sequence are `lanes`: (row, head) pairs when all heads share the keys (absorbed), rows of one head otherwise.
struct AttentionProblem {
    HeadRows q, o, k, k_shared, v;
    float* lse = nullptr;
    int64_t lse_row = 0;
    const int32_t *cu_q = nullptr, *cu_k = nullptr;
    const int32_t* block_table = nullptr;  // absent: keys of a sequence lie contiguously
    int64_t table_row = 0, block = 0, page = 0;
    int64_t lanes_per_row = 1;  // heads that share the keys
    float scale = 1;
    // Of the backward.
    HeadRows dout, dq, dk, dk_shared, dv;  // dk_shared: per head
    float* delta = nullptr;                // [n, h] dout . o
};

}  // namespace fathom::cuda
