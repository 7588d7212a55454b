// What one thread computes of attention at a time, and the functions that compute it, one set per instruction set.
//
// Queries are lanes. A task has up to 64 of them: rows of one head (expanded form), or (row, head) pairs that share their keys
// (latent form). With Q^T [d_q, 64] packed once, every product has the shape "rows x 64 lanes" and broadcasts one number per
// fused multiply-add straight from a key or value row:
//   S^T = K Q^T [keys, 64],   O^T += V^T P^T [d_v, 64].
// A lane never meets another one: what a query gets depends on its own keys only, and the softmax needs no sums across lanes.
// Keys come in tiles of 64 counted from the sequence's first; inside a tile sums run over ascending keys.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "tensor/blocks.h"
#include "tensor/dtype.h"

namespace fathom {

inline constexpr int64_t kQueryLanes = 64;
inline constexpr int64_t kKeyTile = 64;
inline constexpr int64_t kMaxHeadWidth = 576;              // widest key: 512 latent + 64 rope channels
inline constexpr int64_t kRowStride = kMaxHeadWidth + 16;  // of packed rows: 37 cache lines, odd, so that rows spread over sets

// Rows of keys or values of one sequence and head, contiguous or in pages. width 0: absent.
struct KeyRows {
    const std::byte* data = nullptr;
    DType dtype = DType::kF32;
    BlockType type = BlockType::kNone;  // else rows of blocks, and the dtype does not count
    int64_t width = 0;                  // elements
    int64_t stride = 0;                 // bytes from row to row (inside a page)
    const int32_t* pages = nullptr;     // row t is row t % block of page pages[t / block]
    int64_t block = 0;
    int64_t page_stride = 0;  // bytes

    [[nodiscard]] const std::byte* row(int64_t t) const {
        return pages == nullptr ? data + t * stride : data + pages[t / block] * page_stride + t % block * stride;
    }
};

struct AttentionTask {
    int64_t lanes = 0;
    const float* q[kQueryLanes];   // [d_q] each
    float* o[kQueryLanes];         // [d_v]
    float* lse[kQueryLanes];       // one number
    int64_t visible[kQueryLanes];  // each lane sees keys [0, visible)
    int64_t d_q = 0, d_v = 0;
    float scale = 1;
    KeyRows keys, shared;  // key = [keys | shared]
    KeyRows values;        // absent: the first d_v channels of the key
};

// One (sequence, head): all its queries and keys. Row i of q, dout, o, dq and row t of the keys are `*_stride` floats apart.
struct AttentionBackwardTask {
    int64_t len_q = 0, len_k = 0;
    int64_t d_q = 0, d_k = 0, d_v = 0;
    float scale = 1;
    KeyRows keys, shared, values;
    const float *q, *dout, *o, *lse;
    int64_t q_stride, dout_stride, o_stride, lse_stride;
    float *dq, *dk, *dv;
    int64_t dq_stride, dk_stride, dv_stride;
    float* dk_shared;  // this head's part [len_k, d_q - d_k], packed with dk_shared_stride; null when there is none
    int64_t dk_shared_stride;
};

// A task without `values` whose keys several threads share: decoding one sequence. The bits are those of `forward`, because no
// sum is cut: scores are spread over threads by tiles of keys, the sums of values by channels. Between the steps the running
// maximum and the sums, a few numbers per tile, are brought up to date by one thread. `memory` is common to all.
struct AttentionSplit {
    const AttentionTask* task;
    float* memory;
};

struct AttentionKernels {
    void (*forward)(const AttentionTask& task, float* scratch);
    void (*backward)(const AttentionBackwardTask& task, float* scratch);
    // In this order, each for all tiles (or channels) before the next; `scratch` as for `forward`.
    void (*split_begin)(const AttentionSplit& split);
    void (*split_scores)(const AttentionSplit& split, int64_t tile, float* scratch);
    void (*split_maxima)(const AttentionSplit& split);
    void (*split_weights)(const AttentionSplit& split, int64_t tile);
    void (*split_values)(const AttentionSplit& split, int64_t first_channel, int64_t last_channel, float* scratch);
    void (*split_end)(const AttentionSplit& split);
};

[[nodiscard]] int64_t attention_scratch_floats(int64_t d_q, int64_t d_v);
[[nodiscard]] int64_t attention_split_floats(int64_t tiles, int64_t d_q, int64_t d_v);
[[nodiscard]] int64_t attention_backward_scratch_floats(int64_t len_k, int64_t d_q, int64_t d_v);

[[nodiscard]] const AttentionKernels& attention_kernels_avx2();
[[nodiscard]] const AttentionKernels& attention_kernels_avx512();
// Products in pairs of bf16 (attention_pairs_avx512.cpp) of the expanded form, not the bits of the others; only `forward`, and
// an even number of channels before the shared ones. Those in halves take several tasks at a time (cpu/halves.h).
[[nodiscard]] const AttentionKernels& attention_kernels_pairs();
[[nodiscard]] inline const AttentionKernels& attention_kernels_of(Isa isa) {
    return has_avx512(isa) ? attention_kernels_avx512() : attention_kernels_avx2();
}

}  // namespace fathom
