// Tiles of 128 rows of packed sequences, of which each begins a tile of its own, for attention and its gradients. Sequences'
// lengths are read on the device.
//
// Tiles of a sequence are counted from the one with the longest walk over the other side, whose walk takes as many tiles as are
// left of the sequence. Blocks with a tile each begin with long walks, else a few multiprocessors end late: tiles go in kLevels
// by what is left. Within a level those of a sequence and head stay together, as they read the same rows at about the same
// time.
#pragma once

#include "cuda/hopper_ptx.cuh"

namespace fathom::hopper {

constexpr int kTile = 128;  // rows
constexpr int kLevels = 4;  // of which the longest sequence has tiles

struct TilePlan {
    const int32_t* cu;  // [sequences + 1]: rows before each sequence
    int32_t* before;    // [sequences + 2]: tiles before each sequence, all tiles, those of the longest sequence
    int32_t* order;     // [heads * tiles]: which head * tiles + tile each block has
    int heads, sequences;

    [[nodiscard]] __device__ int tiles() const { return before[sequences]; }
    [[nodiscard]] __device__ int tiles_of(int sequence) const { return before[sequence + 1] - before[sequence]; }
    // That a tile belongs to: the last one that begins at or before it, so never one without rows.
    [[nodiscard]] __device__ int sequence_of(int tile) const {
        int low = 0, high = sequences;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            (before[middle] <= tile ? low : high) = middle;
        }
        return low;
    }
};

// Writes `before`. One warp a plan.
__device__ __forceinline__ void count_tiles(const TilePlan& plan) {
    const int lane = lane_id();
    int before = 0, longest = 0;
    for (int base = 0; base < plan.sequences; base += kWarp) {
        const int i = base + lane;
        const int own = i < plan.sequences ? (plan.cu[i + 1] - plan.cu[i] + kTile - 1) / kTile : 0;
        int end = own;
        longest = max(longest, own);
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
            const int other = __shfl_up_sync(0xffffffffU, end, step);
            if (lane >= step) end += other;
        }
        if (i < plan.sequences) plan.before[i] = before + end - own;
        before += __shfl_sync(0xffffffffU, end, kWarp - 1);
    }
    longest = __reduce_max_sync(0xffffffffU, longest);
    if (lane > 0) return;
    plan.before[plan.sequences] = before;
    plan.before[plan.sequences + 1] = longest;
}

// Writes a tile's places in `order`, one for each head. One warp a tile.
__device__ __forceinline__ void order_tile(const TilePlan& plan, int tile) {
    if (tile >= plan.tiles()) return;
    const int width = (plan.before[plan.sequences + 1] + kLevels - 1) / kLevels, lane = lane_id();  // of a level, in tiles
    const int own = plan.sequence_of(tile), tiles = plan.tiles_of(own), index = tile - plan.before[own];
    const int level = (tiles - 1 - index) / width;
    int ahead = 0;  // tiles of higher levels, and of this one in sequences before
    for (int i = lane; i < plan.sequences; i += kWarp) {
        ahead += max(0, plan.tiles_of(i) - (level + 1) * width);
        if (i < own) ahead += min(max(plan.tiles_of(i) - level * width, 0), width);
    }
    ahead = __reduce_add_sync(0xffffffffU, ahead);
    const int first = max(0, tiles - (level + 1) * width);  // of the sequence's tiles in this level
    const int together = tiles - level * width - first;
    for (int head = lane; head < plan.heads; head += kWarp)
        plan.order[ahead * plan.heads + head * together + index - first] = head * plan.tiles() + tile;
}

}  // namespace fathom::hopper
