// The kernel of grouped bf16 products with wgmma and TMA (hopper_gemm.h says what they compute).
//
// Persistent pairs of blocks (clusters of 2). A block computes tiles of 128 x 256 (or narrower ones): one warp of the first
// warpgroup copies 64-deep slices of both operands into a ring of stages, two warpgroups multiply 64 x 256 each (128 sums per
// thread). The two blocks of a pair share one operand: tiles above each other share the columns' operand, or side by side the
// rows' operand, each block copies half of it into both (bytes from L2 per slice: 32 or 40 instead of 48 KB per 2.1 M
// multiply-adds). All operands are made of 64 x 64 boxes with 128-byte swizzle, and wgmma reads either along k or across it:
// forward, dgrad and wgrad are one kernel. wgrad sums over rows of a group that ends inside a slice: the rows behind the end
// are zeroed in shared memory. An element's sum is in steps of 16 k whatever the tile. FLOPs 2 rows out in; bytes 2 (rows (in +
// out) + groups out in). Measured: docs/performance.md, "Hopper kernels".
#pragma once

#include <algorithm>

#include "base/error.h"
#include "cuda/hopper_gemm.h"
#include "cuda/hopper_launch.h"
#include "cuda/hopper_ptx.cuh"
#include "cuda/hopper_schedule.cuh"
#include "cuda/hopper_store.cuh"
#include "cuda/swiglu.cuh"

namespace fathom::hopper {

constexpr int kTileK = 64;
constexpr int kRowBytes = kTileK * 2;  // of a slice: one line of the swizzle
constexpr int kBox = 64 * kRowBytes;   // bytes of a 64 x 64 box
constexpr int kThreads = 3 * kWarpgroup;
constexpr int kConsumers = 2 * kWarpgroup;
constexpr int kConsumerWarps = kConsumers / kWarp;

// What becomes of the sums; kGated: of columns [gate | up] silu(gate) up, in bf16.
enum class Result { kBf16, kF32, kGated };

template <int kTileN>
struct GemmTile {
    static constexpr int kStageBytes = (kTileM + kTileN) * kRowBytes, kStages = 192 * 1024 / kStageBytes;
};

template <int kTileN>
struct GemmShared {
    static constexpr int kStages = GemmTile<kTileN>::kStages;
    alignas(1024) uint8_t stage[kStages][GemmTile<kTileN>::kStageBytes];
    alignas(1024) uint8_t staging[kConsumerWarps][kStagingBytes];
    alignas(8) uint64_t full[kStages];
    uint64_t empty[kStages];
    GroupPlan plan;
};

// Copies the kRows rows (columns) of one operand: all of them, or this block's half into both blocks. Along k one copy
// takes them all, across k a copy can only be 64 wide.
template <int kRows, Major kMajor>
__device__ __forceinline__ void copy_operand(uint32_t to, const CUtensorMap* map, uint32_t full, bool share, int rank, int mn,
                                             int k, int group) {
    if constexpr (kMajor == Major::kK) {
        if (share)
            tma_load_multicast(to + rank * (kRows / 2 * kRowBytes), map, full, 3, k, mn + rank * (kRows / 2), group);
        else
            tma_load(to, map, full, k, mn, group);
    } else {
        constexpr int kBoxes = kRows / 64;
        static_assert(kRows % 128 == 0);
        const int first = share ? rank * (kBoxes / 2) : 0, count = share ? kBoxes / 2 : kBoxes;
        for (int i = first; i < first + count; ++i) {
            if (share)
                tma_load_multicast(to + i * kBox, map, full, 3, mn + 64 * i, k, group);
            else
                tma_load(to + i * kBox, map, full, mn + 64 * i, k, group);
        }
    }
}

// The same for weights [gate; up]: kRows / 2 of each, of `p.n` rows, side by side.
template <int kRows>
__device__ __forceinline__ void copy_gate_and_up(uint32_t to, const CUtensorMap* map, uint32_t full, const GemmParams& p,
                                                 int rank, const Tile& tile, int k) {
    for (int part = 0; part < 2; ++part) {
        const uint32_t at = to + part * (kRows / 2 * kRowBytes);
        if (p.share_a)
            tma_load(at, map, full, k, tile.n + part * p.n, tile.group);
        else if (part == rank)
            tma_load_multicast(at, map, full, 3, k, tile.n + part * p.n, tile.group);
    }
}

// Columns of the result that a tile has: of a gated product each takes two of the weight.
template <int kTileN, Result kResult>
inline constexpr int kColumns = kResult == Result::kGated ? kTileN / 2 : kTileN;

template <int kTileN, Major kA, Major kB, bool kRaggedK, Result kResult>
__device__ void produce(GemmShared<kTileN>& shared, const CUtensorMap* map_a, const CUtensorMap* map_b, const GemmParams& p,
                        int rank) {
    using Sizes = GemmTile<kTileN>;
    Schedule<kRaggedK, kColumns<kTileN, kResult>, kTileK> schedule(shared.plan, p, rank);
    Ring<Sizes::kStages> ring;
    Tile tile;
    while (schedule.next(tile)) {
        const int m = kRaggedK ? tile.m : tile.first_row + tile.m;
        const int k_base = kRaggedK ? tile.first_row : 0;
        // Only the first half of the rows is there, which the first of the pair copies.
        const bool low = !kRaggedK && kA == Major::kK && p.share_a && tile.last_row - tile.first_row - tile.m <= kTileM / 2;
        for (int block = 0; block < tile.k_blocks; ++block, ring.advance()) {
            barrier_wait(smem_address(&shared.empty[ring.stage]), ring.parity ^ 1);
            const uint32_t full = smem_address(&shared.full[ring.stage]);
            const uint32_t a = smem_address(shared.stage[ring.stage]), b = a + kTileM * kRowBytes;
            barrier_expect(full, Sizes::kStageBytes - (low ? kTileM / 2 * kRowBytes : 0));
            const int k = k_base + block * kTileK;
            if (!low || rank == 0) copy_operand<kTileM, kA>(a, map_a, full, p.share_a, rank, m, k, tile.group * p.a_group);
            if constexpr (kResult == Result::kGated)
                copy_gate_and_up<kTileN>(b, map_b, full, p, rank, tile, k);
            else
                copy_operand<kTileN, kB>(b, map_b, full, !p.share_a, rank, tile.n, k, tile.group * p.b_group);
        }
    }
}

// Zeroes the steps of k from `valid` on in a stage whose operands lie across k (64 rows of 128 bytes per box).
template <int kBoxes>
__device__ void clear_tail(uint32_t stage, int valid, int thread) {
    const int chunks = (kTileK - valid) * 8;
    for (int i = thread; i < kBoxes * chunks; i += kConsumers)
        store_shared16(stage + (i / chunks) * kBox + valid * 128 + (i % chunks) * 16, uint4{0, 0, 0, 0});
    async_proxy_fence();
    named_sync(1, kConsumers);
}

template <int kTileN, Major kA, Major kB>
__device__ __forceinline__ void multiply_slice(float (&sums)[kTileN / 2], uint32_t a, uint32_t b, int accumulate) {
    constexpr int kStepA = kA == Major::kK ? 32 : 16 * 128, kStepB = kB == Major::kK ? 32 : 16 * 128;
    pin_registers(sums);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTileK / 16; ++step)
        wgmma_bf16<kTileN, kA, kB>(sums, matrix_descriptor(a + step * kStepA, kBox), matrix_descriptor(b + step * kStepB, kBox),
                                   accumulate | static_cast<int>(step > 0));
    wgmma_commit();
    pin_registers(sums);
}

// f32: four lanes write 32 bytes of a row, a whole sector. To add, the sums are sent to L2 without waiting for what lies there
// (red): it is the only addition to an element in this launch, so nothing depends on an order. Reading first, 16 loads in
// flight, left the tensor cores idle for as long as they had worked (64 x 1536 rows, 1024 x 1024: 410 TFLOP/s).
template <int kCount>
__device__ __forceinline__ void store_tile(float* out, int64_t out_row, const float (&sums)[kCount], int rows, int columns,
                                           bool add) {
    const int r = lane_id() / 4, c = 2 * (lane_id() % 4);
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
        const int row = r + 8 * (i & 1), column = 8 * (i / 2) + c;
        const float* s = &sums[2 * i];
        if (row >= rows || column >= columns) continue;
        float* const to = out + row * out_row + column;
        if (add)
            add_in_memory(to, s[0], s[1]);
        else
            *reinterpret_cast<float2*>(to) = float2{s[0], s[1]};
    }
}

// silu(gate) up of sums [gate | up].
template <int kCount>
__device__ __forceinline__ void store_gated(__nv_bfloat16* out, int64_t out_row, const float (&sums)[kCount], uint32_t staging,
                                            int rows, int columns) {
    float result[(kCount / 2 + 7) / 8 * 8] = {};  // store_rows takes multiples of 16 columns
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) result[i] = cuda::swiglu_of_sums(sums[i], sums[kCount / 2 + i]);
    store_rows(out, out_row, result, staging, rows, min(columns, kCount));
}

template <int kTileN, Major kA, Major kB, bool kRaggedK, Result kResult>
__device__ void consume(GemmShared<kTileN>& shared, const GemmParams& p, int rank) {
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup;
    const int warpgroup = thread / kWarpgroup, warp = thread / kWarp;
    // A's boxes are 64 rows each, so a warpgroup's half is box `warpgroup` in both orders.
    const uint32_t stages = smem_address(shared.stage[0]);
    using Sizes = GemmTile<kTileN>;
    Schedule<kRaggedK, kColumns<kTileN, kResult>, kTileK> schedule(shared.plan, p, rank);
    Ring<Sizes::kStages> ring;
    Tile tile;
    const auto release = [&](int stage) {  // this warp no longer reads the stage: tell both blocks' producers
        if (lane_id() < 2) barrier_arrive_cluster(smem_address(&shared.empty[stage]), lane_id());
    };
    while (schedule.next(tile)) {
        const int row = tile.m + warpgroup * 64, height = (kRaggedK ? p.m : tile.last_row - tile.first_row) - row;
        if (!kRaggedK && height <= 0) {  // no rows for this warpgroup
            for (int block = 0; block < tile.k_blocks; ++block, ring.advance()) {
                barrier_wait(smem_address(&shared.full[ring.stage]), ring.parity);
                release(ring.stage);
            }
            continue;
        }
        float sums[kTileN / 2];
        if (kRaggedK && tile.k_blocks == 0) clear_registers(sums);
        int previous = -1;
        for (int block = 0; block < tile.k_blocks; ++block, ring.advance()) {
            const uint32_t a = stages + ring.stage * Sizes::kStageBytes, b = a + kTileM * kRowBytes;
            barrier_wait(smem_address(&shared.full[ring.stage]), ring.parity);
            if constexpr (kRaggedK) {
                const int valid = tile.last_row - tile.first_row - block * kTileK;
                if (valid < kTileK) clear_tail<(kTileM + kTileN) / 64>(a, valid, thread);
            }
            multiply_slice<kTileN, kA, kB>(sums, a + warpgroup * kBox, b, static_cast<int>(block > 0));
            if (previous >= 0) {
                wgmma_wait<1>();
                release(previous);
            }
            previous = ring.stage;
        }
        wgmma_wait<0>();
        pin_registers(sums);
        if (previous >= 0) release(previous);

        const int rows = height - (warp % 4) * 16;
        const int64_t at =
            (row + (warp % 4) * 16 + (kRaggedK ? 0 : tile.first_row)) * p.out_row + tile.n + tile.group * p.out_group;
        const uint32_t staging = smem_address(shared.staging[warp]);
        if constexpr (kResult == Result::kBf16)
            store_rows(static_cast<__nv_bfloat16*>(p.out) + at, p.out_row, sums, staging, rows, p.n - tile.n);
        else if constexpr (kResult == Result::kGated)
            store_gated(static_cast<__nv_bfloat16*>(p.out) + at, p.out_row, sums, staging, rows, p.n - tile.n);
        else
            store_tile(static_cast<float*>(p.out) + at, p.out_row, sums, rows, p.n - tile.n, kRaggedK && p.accumulate);
    }
}

template <int kTileN, Major kA, Major kB, bool kRaggedK, Result kResult>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    grouped_gemm_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                        const GemmParams p) {
    extern __shared__ uint8_t raw[];
    using Shared = GemmShared<kTileN>;
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});
    const int rank = static_cast<int>(cluster_rank());
    if (threadIdx.x == 0) {
        for (int i = 0; i < Shared::kStages; ++i) {
            barrier_init(smem_address(&shared.full[i]), 1);
            barrier_init(smem_address(&shared.empty[i]), 2 * kConsumerWarps);
        }
        barrier_init_fence();
        tma_prefetch(&map_a);
        tma_prefetch(&map_b);
    }
    wait_for_earlier_launch();
    if (threadIdx.x >= kWarp && threadIdx.x < 2 * kWarp)
        plan_groups<kRaggedK, kColumns<kTileN, kResult>, kTileK>(shared.plan, p);
    cluster_sync();
    if (threadIdx.x < kWarpgroup) {
        shrink_registers<40>();
        if (threadIdx.x < kWarp && elect_one()) {
            produce<kTileN, kA, kB, kRaggedK, kResult>(shared, &map_a, &map_b, p, rank);
            allow_next_launch();
        }
    } else {
        grow_registers<232>();
        consume<kTileN, kA, kB, kRaggedK, kResult>(shared, p, rank);
    }
    cluster_sync();  // a block's shared memory must outlive its peer's copies and arrivals
}

template <int kTileN, Major kA, Major kB, bool kRaggedK, Result kResult>
void launch_gemm(TensorMap3 a, TensorMap3 b, const GemmParams& p, cudaStream_t stream) {
    if (kA == Major::kK) a.box_y = p.share_a ? kTileM / 2 : kTileM;
    if (kB == Major::kK) b.box_y = p.share_a ? kColumns<kTileN, kResult> : kTileN / 2;
    const auto kernel = grouped_gemm_kernel<kTileN, kA, kB, kRaggedK, kResult>;
    constexpr int kBytes = sizeof(GemmShared<kTileN>) + 1024;
    static_assert(kBytes <= 227 * 1024);
    allow_shared_memory(reinterpret_cast<const void*>(kernel), kBytes);
    const CUtensorMap map_a = encode(a), map_b = encode(b);
    launch_early(kernel, dim3(static_cast<unsigned>(p.blocks)), kThreads, kBytes, stream, map_a, map_b, p);
}

// Rows of activations: [rows, width], one more dimension where groups lie beside each other.
inline TensorMap3 activations(const void* base, const GroupedGemm& g, int64_t width, int64_t row, int64_t group) {
    const bool batched = g.offsets == nullptr && g.group_rows == 0;
    return {.base = base,
            .size_x = width,
            .size_y = g.rows,
            .size_z = batched ? g.groups : 1,
            .stride_y = row,
            .stride_z = batched ? group : 0};
}

inline TensorMap3 weights(const void* base, const GroupedGemm& g) {
    return {.base = base, .size_x = g.in, .size_y = g.out, .size_z = g.groups, .stride_y = g.w_row, .stride_z = g.w_group};
}

// grouped_matmul() in tiles of 128 x kTileN: the same bits for every width.
template <int kTileN>
void matmul_in_tiles(void* y, Output type, const void* x, const void* w, const GroupedGemm& g, cudaStream_t stream) {
    const int64_t y_group = g.offsets == nullptr ? g.y_group : 0;
    GemmParams p = gemm_params(y, g, kTileN, mean_rows(g), g.out, g.in, g.y_row, y_group);
    p.b_group = 1;
    const TensorMap3 a = activations(x, g, g.in, g.x_row, g.x_group), b = weights(w, g);
    if (type == Output::kBf16)
        launch_gemm<kTileN, Major::kK, Major::kK, false, Result::kBf16>(a, b, p, stream);
    else
        launch_gemm<kTileN, Major::kK, Major::kK, false, Result::kF32>(a, b, p, stream);
}

}  // namespace fathom::hopper
