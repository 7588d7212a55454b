// Which rows of which group a block of a grouped product has.
#pragma once

#include "cuda/device.cuh"

namespace fathom::cuda {

// Rows of a block's tile.
struct TileRows {
    int group = -1;
    int64_t begin = 0, end = 0;  // rows of the group that this tile has, counted in the whole tensor
};

// The index-th tile of kTile rows when every group starts a tile of its own. Called by all threads of a warp.
template <int kTile>
__device__ TileRows find_tile(const int32_t* offsets, int groups, int64_t index) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    int64_t before = 0;
    for (int base = 0; base < groups; base += kWarp) {
        const int g = base + lane;
        const int32_t begin = g < groups ? offsets[g] : 0, end = g < groups ? offsets[g + 1] : 0;
        int tiles = (end - begin + kTile - 1) / kTile, sum = tiles;
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
            const int other = __shfl_up_sync(kAll, sum, step);
            if (lane >= step) sum += other;
        }
        const unsigned found = __ballot_sync(kAll, before + sum > index);
        if (found != 0) {
            const int at = __ffs(static_cast<int>(found)) - 1;
            const int64_t tile = index - before - __shfl_sync(kAll, sum - tiles, at);
            TileRows result;
            result.group = base + at;
            result.begin = __shfl_sync(kAll, begin, at) + tile * kTile;
            result.end = min(static_cast<int64_t>(__shfl_sync(kAll, end, at)), result.begin + kTile);
            return result;
        }
        before += __shfl_sync(kAll, sum, kWarp - 1);
    }
    return {};
}

}  // namespace fathom::cuda
