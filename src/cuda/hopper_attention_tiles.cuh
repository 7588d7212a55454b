// Which tile of which sequence and head a block of attention's gradients has, and which it begins with. Sequences' lengths are
// read on the device.
//
// A tile's walk is as long as the rest of its sequence, so long walks come first, else a few multiprocessors end late: tiles go
// in levels of kLevel by what is left of the sequence. Within a level the tiles of a sequence and head stay together, as they
// read the same rows at about the same time.
#pragma once

#include "cuda/hopper_ptx.cuh"

namespace fathom::hopper {

constexpr int kTile = 128;  // rows that a block owns
constexpr int kLevels = 4;

struct TilePlan {
    const int32_t* cu;  // [sequences + 1]: rows before each sequence
    int32_t* before;    // [sequences + 2]: tiles before each sequence; last, how many tiles of a sequence a level has
    int32_t* order;     // [heads * tiles]: head * tiles + tile of the i-th block, tile counted by length within its sequence
    int heads, sequences;
};

struct Tile {
    int first_q, queries, first_k, keys;
    int first_row;                                                          // where the sequence's rows of lse and delta begin
    int index;                                                              // of the tile in its sequence
    int tiles;                                                              // of the sequence
    [[nodiscard]] __device__ int offset() const { return keys - queries; }  // query i sees keys up to i + offset
};

__device__ __forceinline__ int sequence_of(const TilePlan& plan, int tile) {
    int low = 0, high = plan.sequences;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (plan.before[middle] <= tile ? low : high) = middle;
    }
    return low;
}

// One warp a plan.
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
    plan.before[plan.sequences + 1] = max(1, (longest + kLevels - 1) / kLevels);
}

// One warp a tile, whose places among all blocks it counts and writes.
__device__ __forceinline__ void order_tile(const TilePlan& plan, int tile) {
    const int total = plan.before[plan.sequences], width = plan.before[plan.sequences + 1], lane = lane_id();
    if (tile >= total) return;
    const int own = sequence_of(plan, tile), tiles = plan.before[own + 1] - plan.before[own];
    const int index = tile - plan.before[own], level = (tiles - 1 - index) / width;
    int ahead = 0;  // tiles of longer walks, and of this level in sequences before
    for (int i = lane; i < plan.sequences; i += kWarp) {
        const int others = plan.before[i + 1] - plan.before[i];
        ahead += max(0, others - (level + 1) * width);
        if (i < own) ahead += min(max(others - level * width, 0), width);
    }
    ahead = __reduce_add_sync(0xffffffffU, ahead);
    const int first = max(0, tiles - (level + 1) * width);  // of the sequence's in this level
    const int together = tiles - level * width - first;
    for (int head = lane; head < plan.heads; head += kWarp)
        plan.order[ahead * plan.heads + head * together + index - first] = head * total + tile;
}

}  // namespace fathom::hopper
