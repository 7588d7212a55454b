// What the attention kernels share: a tile of 64 lanes (queries) against 64 keys by 256 threads, 4 x 4 scores each. Thread
// (ty, tx) of 16 x 16 owns lanes 4 ty + i and keys tx + 16 j. Sums over channels and keys are chains in ascending order.
#pragma once

#include "cuda/attention.h"
#include "cuda/device.cuh"

namespace fathom::cuda {

constexpr int kTile = 64, kSlice = 32;  // lanes or keys of a tile; channels at a time
constexpr int kColumns = 128;           // output channels of a block
constexpr int kPad = kTile + 1;

// One sequence.
struct Sequence {
    int64_t q0, len_q, k0, len_k;
    const int32_t* pages;

    __device__ Sequence(const AttentionProblem& p, int64_t i)
        : q0(p.cu_q[i]),
          len_q(p.cu_q[i + 1] - q0),
          k0(p.cu_k[i]),
          len_k(p.cu_k[i + 1] - k0),
          pages(p.block_table == nullptr ? nullptr : p.block_table + i * p.table_row) {}
    // Keys that query `i` of the sequence sees: its own and all earlier ones.
    __device__ int64_t visible(int64_t i) const { return len_k - len_q + i + 1; }
    // Element offset of key j in rows of stride `row`.
    __device__ int64_t key_offset(const AttentionProblem& p, int64_t j, int64_t row) const {
        return pages == nullptr ? (k0 + j) * row : pages[j / p.block] * p.page + j % p.block * row;
    }
};

struct Slices {
    float left[kSlice][kPad], right[kSlice][kPad];
};

// sum[i][j] += sum over channels [0, width) of left(lane, c) right(key, c), in slices of shared memory.
template <class Left, class Right>
__device__ void add_products(float (&sum)[4][4], Slices& slices, int64_t width, const Left& left, const Right& right) {
    const int thread = static_cast<int>(threadIdx.x), tx = thread % 16, ty = thread / 16;
    for (int64_t begin = 0; begin < width; begin += kSlice) {
        __syncthreads();
#pragma unroll 4
        for (int e = thread; e < kSlice * kTile; e += 256) {
            const int c = e % kSlice, at = e / kSlice;
            slices.left[c][at] = begin + c < width ? left(at, begin + c) : 0.0f;
            slices.right[c][at] = begin + c < width ? right(at, begin + c) : 0.0f;
        }
        __syncthreads();
#pragma unroll 8
        for (int c = 0; c < kSlice; ++c) {
            float a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                a[i] = slices.left[c][4 * ty + i];
                b[i] = slices.right[c][tx + 16 * i];
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
        }
    }
}

// Output of 64 rows and kColumns channels, rows 4 ty + i and channels tx + 16 j.
using Output = float[4][kColumns / 16];

struct Rightside {
    float rows[16][kColumns];
};

// out[r][c] += sum over t in [0, 64) of left[t][r] right(t, c), in ascending t. `left` is in shared memory, complete.
template <class Right>
__device__ void add_outputs(Output& out, const float (*left)[kPad], Rightside& space, const Right& right) {
    const int thread = static_cast<int>(threadIdx.x), tx = thread % 16, ty = thread / 16;
    for (int begin = 0; begin < kTile; begin += 16) {
        __syncthreads();
#pragma unroll 4
        for (int e = thread; e < 16 * kColumns; e += 256)
            space.rows[e / kColumns][e % kColumns] = right(begin + e / kColumns, e % kColumns);
        __syncthreads();
#pragma unroll 4
        for (int t = 0; t < 16; ++t) {
            float a[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] = left[begin + t][4 * ty + i];
#pragma unroll
            for (int j = 0; j < kColumns / 16; ++j) {
                const float b = space.rows[t][tx + 16 * j];
#pragma unroll
                for (int i = 0; i < 4; ++i) out[i][j] = fmaf(a[i], b, out[i][j]);
            }
        }
    }
}

__device__ __forceinline__ float at(const HeadRows& x, int64_t row, int64_t head, int64_t c) {
    return load(x.data, x.type, row * x.row + head * x.head + c);
}

// Channel c of key j: of k, or behind it of k_shared.
__device__ __forceinline__ float key_at(const AttentionProblem& p, const Sequence& s, int64_t j, int64_t head, int64_t c) {
    if (c < p.k.width) return load(p.k.data, p.k.type, s.key_offset(p, j, p.k.row) + head * p.k.head + c);
    return load(p.k_shared.data, p.k_shared.type, (s.k0 + j) * p.k_shared.row + c - p.k.width);
}
__device__ __forceinline__ float value_at(const AttentionProblem& p, const Sequence& s, int64_t j, int64_t head, int64_t c) {
    return load(p.v.data, p.v.type, s.key_offset(p, j, p.v.row) + head * p.v.head + c);
}

}  // namespace fathom::cuda
