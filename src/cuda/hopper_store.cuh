// A warp's 16 rows of wgmma sums leave as bf16.
#pragma once

#include "cuda/hopper_ptx.cuh"

namespace fathom::hopper {

constexpr int kStagingBytes = 16 * 64 * 2;  // per warp: 16 rows of 64 columns on their way out

// out[r, c] = sums for r < rows, c < columns (a multiple of 8); sums of a multiple of 16 columns. 64 columns at a time pass
// through this warp's staging buffer, so that whole lines leave; 16-byte pieces are swizzled against bank conflicts. Only this
// warp is involved, so no other warp waits.
template <int kCount>
__device__ __forceinline__ void store_rows(__nv_bfloat16* out, int64_t out_row, const float (&sums)[kCount], uint32_t staging,
                                           int rows, int columns) {
    const int lane = lane_id();
    const int matrix = lane / 8, row = lane % 8 + 8 * (matrix & 1);
#pragma unroll
    for (int part = 0; part < (kCount + 31) / 32; ++part) {
        const int chunks = min(kCount / 4 - part * 8, 8);  // of 8 columns
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            if (j >= chunks) break;
            const float* s = &sums[(part * 8 + j) * 4];
            const int chunk = j + (matrix >> 1);
            store_matrices(staging + row * 128 + ((chunk ^ (row & 7)) * 16), pack_bf16(s[0], s[1]), pack_bf16(s[2], s[3]),
                           pack_bf16(s[4], s[5]), pack_bf16(s[6], s[7]));
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int r = 4 * i + lane / 8, chunk = lane % 8, column = part * 64 + chunk * 8;
            if (r < rows && chunk < chunks && column < columns)
                *reinterpret_cast<uint4*>(out + r * out_row + column) =
                    load_shared16(staging + r * 128 + ((chunk ^ (r & 7)) * 16));
        }
    }
}

}  // namespace fathom::hopper
