// What the tensor-core attention kernels share: tiles of rows in shared memory, and products of 16 rows of a warp with them.
#pragma once

#include "cuda/attention_tile.cuh"
#include "cuda/mma.cuh"

namespace fathom::cuda {

constexpr int kTensorThreads = 128;  // four warps of 16 rows each

// kRows rows of kWidth channels; the padding lets 8 rows begin in different banks.
template <int kRows, int kWidth>
struct RowTile {
    static constexpr int kStride = kWidth + 8, kElements = kRows * kStride;

    // from(row, c): where 8 channels lie, or null for zeros.
    template <class From>
    static __device__ void fetch(Bf16* to, const void* valid, const From& from) {
#pragma unroll 4
        for (int e = static_cast<int>(threadIdx.x); e < kRows * kWidth / 8; e += kTensorThreads) {
            const int row = e / (kWidth / 8), c = e % (kWidth / 8) * 8;
            const Bf16* source = from(row, c);
            copy_async(to + row * kStride + c, source == nullptr ? valid : source, source == nullptr ? 0 : 16);
        }
    }
    // A: rows [row, row + 16), channels [c, c + 16).
    static __device__ void left(uint32_t (&r)[4], const Bf16* tile, int row, int c) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        load_matrices<false>(r, tile + (row + lane % 16) * kStride + c + lane / 16 * 8);
    }
    // B = tile^T: columns are rows [row, row + 16), k are channels [c, c + 16). Registers 0, 1: the first eight columns.
    static __device__ void right_by_rows(uint32_t (&r)[4], const Bf16* tile, int row, int c) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp, q = lane / 8;
        load_matrices<false>(r, tile + (row + q / 2 * 8 + lane % 8) * kStride + c + q % 2 * 8);
    }
    // B = tile: k are rows [row, row + 16), columns are channels [c, c + 16).
    static __device__ void right(uint32_t (&r)[4], const Bf16* tile, int row, int c) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp, q = lane / 8;
        load_matrices<true>(r, tile + (row + q % 2 * 8 + lane % 8) * kStride + c + q / 2 * 8);
    }
};

// sum (16 rows of the warp x kColumns) += A[row0 .. row0 + 16, kWidth] B[kColumns, kWidth]^T.
template <int kColumnCount, int kWidth, int kLeftRows>
__device__ void multiply_by_rows(float (&sum)[kColumnCount / 8][4], const Bf16* left, int row0, const Bf16* right) {
#pragma unroll
    for (int c = 0; c < kWidth; c += 16) {
        uint32_t a[4];
        RowTile<kLeftRows, kWidth>::left(a, left, row0, c);
#pragma unroll
        for (int j = 0; j < kColumnCount / 16; ++j) {
            uint32_t b[4];
            RowTile<kColumnCount, kWidth>::right_by_rows(b, right, 16 * j, c);
            multiply_add(sum[2 * j], a, b[0], b[1]);
            multiply_add(sum[2 * j + 1], a, b[2], b[3]);
        }
    }
}

__device__ __forceinline__ uint32_t pack(float x, float y) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&both);
}

// out (16 rows x kWidth) += bf16(weights) (16 x kDepthRows, as multiply_by_rows leaves it) tile[kDepthRows, kWidth].
template <int kDepthRows, int kWidth>
__device__ void multiply_weights(float (&out)[kWidth / 8][4], const float (&weights)[kDepthRows / 8][4], const Bf16* tile) {
#pragma unroll
    for (int k = 0; k < kDepthRows / 16; ++k) {
        const uint32_t a[4] = {pack(weights[2 * k][0], weights[2 * k][1]), pack(weights[2 * k][2], weights[2 * k][3]),
                               pack(weights[2 * k + 1][0], weights[2 * k + 1][1]),
                               pack(weights[2 * k + 1][2], weights[2 * k + 1][3])};
#pragma unroll
        for (int j = 0; j < kWidth / 16; ++j) {
            uint32_t b[4];
            RowTile<kDepthRows, kWidth>::right(b, tile, 16 * k, 16 * j);
            multiply_add(out[2 * j], a, b[0], b[1]);
            multiply_add(out[2 * j + 1], a, b[2], b[3]);
        }
    }
}

__device__ __forceinline__ const Bf16* row_at(const HeadRows& x, int64_t row, int64_t head, int64_t c) {
    return static_cast<const Bf16*>(x.data) + row * x.row + head * x.head + c;
}
// Eight channels of key j: of k or, behind it, of k_shared; null beyond both.
__device__ __forceinline__ const Bf16* key_channels(const AttentionProblem& p, const Sequence& s, int64_t j, int64_t head,
                                                    int64_t c) {
    if (c < p.k.width) return row_at(p.k, s.k0 + j, head, c);
    return c < p.q.width ? row_at(p.k_shared, s.k0 + j, 0, c - p.k.width) : nullptr;
}
__device__ __forceinline__ const Bf16* channels_of(const HeadRows& x, int64_t row, int64_t head, int64_t c) {
    return c < x.width ? row_at(x, row, head, c) : nullptr;
}

__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.wait_group 0;");
    __syncthreads();
}

// Writes two neighbouring channels, which lie at a multiple of 4 bytes.
__device__ __forceinline__ void store_pair(const HeadRows& to, int64_t row, int64_t head, int64_t c, float x, float y) {
    if (c >= to.width) return;
    *reinterpret_cast<__nv_bfloat162*>(static_cast<Bf16*>(to.data) + row * to.row + head * to.head + c) =
        __floats2bfloat162_rn(x, y);
}

template <class Kernel>
void raise_shared_memory(Kernel kernel, int bytes) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
}

}  // namespace fathom::cuda
