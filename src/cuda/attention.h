// Attention as the kernels see it, expanded and absorbed alike.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/runtime.h"
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

// What attention and attention_backward have in common, checked.
[[nodiscard]] AttentionProblem expanded_problem(const char* op, const Tensor& o, const Tensor& lse, const Tensor& q,
                                                const Tensor& k, const Tensor& k_shared, const Tensor& v, const Spans& spans,
                                                double scale);
[[nodiscard]] HeadRows head_rows(const Tensor& x);  // absent: all 0

// Attention on tensor cores, for what suits them: bf16, rows and widths of multiples of 8 elements, keys not paged, d_q <= 192,
// d_v <= 128.
[[nodiscard]] bool suits_tensor_cores(const AttentionProblem& problem);
void run_tensor_attention(cudaStream_t stream, const AttentionProblem& problem, int64_t heads, int64_t sequences,
                          int64_t max_q);
// dQ, dK, dV, and dk_shared per head in f32, from delta.
void run_tensor_attention_backward(cudaStream_t stream, const AttentionProblem& problem, int64_t heads, int64_t sequences,
                                   int64_t max_q, int64_t max_k);

struct AttentionSizes {
    int64_t n = 0, m = 0, heads = 0, sequences = 0;  // rows of queries and of keys
};

// Attention on Hopper's tensor cores (hopper_attention.h), for what suits it: bf16, 192 channels in queries and keys, of which
// the last 64 may be shared by all heads, 128 in values, keys not paged.
[[nodiscard]] bool suits_hopper(const AttentionProblem& problem, const AttentionSizes& sizes);
void run_hopper_attention(Lane& lane, const AttentionProblem& problem, const AttentionSizes& sizes);
// Absorbed attention over a paged cache (hopper_mla.h), for what suits it: bf16, latents of 512 + 64, pages of 64, all
// contiguous. How a sequence is cut depends on the lengths of all.
[[nodiscard]] bool suits_hopper_latent(const Tensor& u, const Tensor& lse, const Tensor& q, const Tensor& latents,
                                       const Spans& spans);
void run_hopper_latent(Lane& lane, const Tensor& u, const Tensor& lse, const Tensor& q, const Tensor& latents,
                       const Spans& spans, double scale);
// The same on any card's tensor cores (latent_tensor.cu): bf16, widths of multiples of 16, at most 576 and 512. `rows` of q;
// with `one_range` a query's bits depend on its sequence alone.
[[nodiscard]] bool suits_latent_tensor_cores(const AttentionProblem& problem);
void run_latent_tensor(cudaStream_t stream, Workspace& workspace, const AttentionProblem& problem, int64_t rows,
                       const Spans& spans, bool one_range);
// Writes all gradients, dk_shared [m, 64] summed over heads.
void run_hopper_attention_backward(cudaStream_t stream, Workspace& workspace, const AttentionProblem& problem,
                                   const AttentionSizes& sizes, const Tensor& dk_shared);

}  // namespace fathom::cuda
