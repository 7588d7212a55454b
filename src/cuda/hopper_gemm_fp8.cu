// Grouped FP8 products with block scales (hopper_gemm.h says what they compute).
//
// As hopper_gemm.cu, with tiles of 128 x 128 and slices of 128 channels: both fill a 128-byte row, and one slice has one factor
// per row of x and one for the whole tile of w. The tensor cores add within a slice with few bits; the sums of a slice are then
// multiplied by both factors and added in f32 registers ("promotion"), which the two warpgroups do in turn while the other's
// products run. FLOPs 2 rows out in; bytes rows (in + 2 out) + groups out in. Measured: docs/performance.md, "Hopper kernels".
#include "base/error.h"
#include "cuda/hopper_gemm.h"
#include "cuda/hopper_launch.h"
#include "cuda/hopper_ptx.cuh"
#include "cuda/hopper_schedule.cuh"
#include "cuda/hopper_store.cuh"

namespace fathom::hopper {

namespace {

constexpr int kTileN = 128, kTileK = 128;
constexpr int kStages = 6;
constexpr int kOperand = 128 * 128;  // bytes of a slice of one operand
// A copy begins at a multiple of 16 bytes, a group at any row: up to three more factors are copied in front.
constexpr int kScales = kTileM + 4, kScalesRoom = 160;
constexpr int kThreads = 3 * kWarpgroup, kConsumerWarps = 2 * kWarpgroup / kWarp;

struct Shared {
    alignas(1024) uint8_t stage[kStages][2 * kOperand];
    alignas(128) float x_scale[kStages][kScalesRoom];
    alignas(128) uint8_t staging[kConsumerWarps][kStagingBytes];
    alignas(8) uint64_t full[kStages], empty[kStages];
    GroupPlan plan;
};
static_assert(sizeof(Shared) + 1024 <= 227 * 1024);

struct Maps {
    CUtensorMap x, w, x_scale;
};
using Tiles = Schedule<false, kTileN, kTileK>;

// All rows of one operand, or this block's half into both blocks.
__device__ __forceinline__ void copy_operand(uint32_t to, const CUtensorMap* map, uint32_t full, bool share, int rank, int k,
                                             int row, int group) {
    if (share)
        tma_load_multicast(to + rank * (kOperand / 2), map, full, 3, k, row + rank * 64, group);
    else
        tma_load(to, map, full, k, row, group);
}

__device__ __forceinline__ void produce(Shared& shared, const Maps& maps, const GemmParams& p, int rank) {
    Tiles tiles(shared.plan, p, rank);
    Ring<kStages> ring;
    Tile tile;
    while (tiles.next(tile)) {
        const int row = tile.first_row + tile.m, x_group = tile.group * p.a_group;
        for (int block = 0; block < tile.k_blocks; ++block, ring.advance()) {
            barrier_wait(smem_address(&shared.empty[ring.stage]), ring.parity ^ 1);
            const uint32_t full = smem_address(&shared.full[ring.stage]), x = smem_address(shared.stage[ring.stage]);
            barrier_expect(full, 2 * kOperand + kScales * 4);
            copy_operand(x, &maps.x, full, p.share_a, rank, block * kTileK, row, x_group);
            copy_operand(x + kOperand, &maps.w, full, !p.share_a, rank, block * kTileK, tile.n, tile.group);
            tma_load(smem_address(shared.x_scale[ring.stage]), &maps.x_scale, full, row / 4 * 4, block, 0);
        }
    }
}

__device__ void consume(Shared& shared, const GemmParams& p, const Fp8Scales& scales, int rank) {
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup, warpgroup = thread / kWarpgroup, warp = thread / kWarp;
    const int row = warpgroup * 64 + warp % 4 * 16;  // of this warp in the tile
    const int n_blocks = (p.n + kTileN - 1) / kTileN;
    Tiles tiles(shared.plan, p, rank);
    Ring<kStages> ring;
    Tile tile;
    while (tiles.next(tile)) {
        const float* factor = scales.w + tile.group * scales.w_group + min(tile.n / kTileN, n_blocks - 1) * scales.w_row;
        float sums[kTileN / 2], slice[kTileN / 2];
        clear_registers(sums);
        for (int block = 0; block < tile.k_blocks; ++block, ring.advance()) {
            const uint32_t x = smem_address(shared.stage[ring.stage]) + warpgroup * (kOperand / 2);
            const uint32_t w = smem_address(shared.stage[ring.stage]) + kOperand;
            const float w_factor = factor[block];
            barrier_wait(smem_address(&shared.full[ring.stage]), ring.parity);
            const float* x_scale = shared.x_scale[ring.stage] + (tile.first_row + tile.m) % 4 + row + lane_id() / 4;
            const float scale[2] = {x_scale[0] * w_factor, x_scale[8] * w_factor};
            pin_registers(slice);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < kTileK / 32; ++step)
                wgmma_e4m3(slice, matrix_descriptor(x + step * 32), matrix_descriptor(w + step * 32), step > 0 ? 1 : 0);
            wgmma_commit();
            wgmma_wait<0>();
            pin_registers(slice);
            if (lane_id() < 2) barrier_arrive_cluster(smem_address(&shared.empty[ring.stage]), lane_id());
#pragma unroll
            for (int i = 0; i < kTileN / 2; ++i) sums[i] = fmaf(slice[i], scale[i / 2 % 2], sums[i]);
        }
        const int first = tile.first_row + tile.m + row;
        store_rows(static_cast<__nv_bfloat16*>(p.out) + first * p.out_row + tile.n + tile.group * p.out_group, p.out_row, sums,
                   smem_address(shared.staging[warp]), tile.last_row - first, p.n - tile.n);
    }
}

__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    grouped_gemm_fp8_kernel(const __grid_constant__ Maps maps, const GemmParams p, const Fp8Scales scales) {
    extern __shared__ uint8_t raw[];
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});
    const int rank = static_cast<int>(cluster_rank());
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; ++i) {
            barrier_init(smem_address(&shared.full[i]), 1);
            barrier_init(smem_address(&shared.empty[i]), 2 * kConsumerWarps);
        }
        barrier_init_fence();
    }
    if (threadIdx.x >= kWarp && threadIdx.x < 2 * kWarp) plan_groups<false, kTileN, kTileK>(shared.plan, p);
    cluster_sync();
    if (threadIdx.x < kWarpgroup) {
        shrink_registers<40>();
        if (threadIdx.x < kWarp && elect_one()) produce(shared, maps, p, rank);
    } else {
        grow_registers<232>();
        consume(shared, p, scales, rank);
    }
    cluster_sync();  // a block's shared memory must outlive its peer's copies and arrivals
}

}  // namespace

void grouped_matmul_fp8(void* y, const void* x, const void* w, const Fp8Scales& scales, const GroupedGemm& g,
                        cudaStream_t stream) {
    if (g.rows == 0 || g.out == 0) return;
    check(g.offsets != nullptr || g.groups == 1, "FP8 product: groups need offsets");
    check(g.in > 0 && g.in % 16 == 0, "FP8 product: the summed width must be a multiple of 16");
    GemmParams p = gemm_params(y, g, kTileN, mean_rows(g), g.out, g.in, g.y_row, 0);
    p.a_group = 0;
    const auto codes = [&](const void* base, int64_t rows, int64_t groups, int64_t row, int64_t group, bool share) {
        return encode({.base = base,
                       .type = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                       .element_bytes = 1,
                       .size_x = g.in,
                       .size_y = rows,
                       .size_z = groups,
                       .stride_y = row,
                       .stride_z = group,
                       .box_x = kTileK,
                       .box_y = share ? 64 : 128});
    };
    const Maps maps{.x = codes(x, g.rows, 1, g.x_row, 0, p.share_a),
                    .w = codes(w, g.out, g.groups, g.w_row, g.w_group, !p.share_a),
                    .x_scale = encode({.base = scales.x,
                                       .type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                       .element_bytes = 4,
                                       .size_x = g.rows,
                                       .size_y = (g.in + kTileK - 1) / kTileK,
                                       .stride_y = scales.x_row,
                                       .box_x = kScales,
                                       .box_y = 1,
                                       .swizzle = false})};
    constexpr int kBytes = sizeof(Shared) + 1024;
    allow_shared_memory(reinterpret_cast<const void*>(grouped_gemm_fp8_kernel), kBytes);
    grouped_gemm_fp8_kernel<<<p.blocks, kThreads, kBytes, stream>>>(maps, p, scales);
    require(cudaGetLastError(), "grouped_gemm_fp8_kernel");
}

}  // namespace fathom::hopper
