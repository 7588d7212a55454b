// Causal attention forward, head sizes 192 and 128 (hopper_attention.h says what it computes).
//
// A tile is 128 queries of one head and sequence; two warpgroups take 64 each. One warp copies Q, and 128 keys and values at a
// time into two rings of two stages. A warpgroup issues the scores of the next keys, then P V of these, and works out the next
// softmax while P V runs; the two warpgroups take turns issuing (named barriers), so one's products fill the other's softmax.
// Tiles are handed out by a counter, head by head (keys and values of the tiles in flight stay in L2), the longest of a
// sequence first; which block computes a tile changes no bit of it. FLOPs 2 x 320 per visible pair; bytes: all tensors about
// once. Measured: docs/performance.md, "Hopper kernels".
#include "base/error.h"
#include "cuda/hopper_attention.h"
#include "cuda/hopper_attention_tiles.cuh"
#include "cuda/hopper_launch.h"
#include "cuda/hopper_ptx.cuh"
#include "cuda/hopper_softmax.cuh"
#include "cuda/hopper_store.cuh"

namespace fathom::hopper {

namespace {

constexpr int kQueries = kTile, kKeys = 128;  // of a tile, of a step
constexpr int kKeyBoxes = 3, kValueBoxes = 2;
constexpr int kBox = 128 * 64 * 2;  // 128 rows of 64 channels
constexpr int kStages = 2;
constexpr int kThreads = 3 * kWarpgroup, kConsumers = 2 * kWarpgroup, kConsumerWarps = kConsumers / kWarp;
constexpr int kTurn = 1;  // named barriers kTurn, kTurn + 1: a warpgroup's turn to issue products

struct Params {
    TilePlan plan;  // of queries; without an order
    const int32_t* cu_k;
    int32_t* next;  // tile
    __nv_bfloat16* o;
    float* lse;
    int64_t o_row, o_head;
    bool shared_key;  // the third box of a key comes from k_shared
    float scale, scale_log2;
};

struct Tile {
    int first_q, queries, first_k, keys;  // of the sequence
    int row, head;                        // first query of the tile, counted in the sequence
    [[nodiscard]] __device__ int steps() const {
        const int last_row = min(row + kQueries, queries) - 1;
        return (last_row + keys - queries) / kKeys + 1;
    }
};

struct Shared {
    alignas(1024) uint8_t q[kKeyBoxes * kBox];
    alignas(1024) uint8_t k[kStages][kKeyBoxes * kBox];
    alignas(1024) uint8_t v[kStages][kValueBoxes * kBox];
    uint8_t staging[kConsumerWarps][kStagingBytes];
    alignas(8) uint64_t q_full, q_empty, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
    uint64_t tile_full, tile_empty;
    Tile tile;
};
static_assert(sizeof(Shared) + 1024 <= 227 * 1024);

__global__ void plan_kernel(const Params p) {
    count_tiles(p.plan);
    if (threadIdx.x == 0) *p.next = 0;
}

__device__ bool take_tile(const Params& p, Tile& tile) {
    const int tiles = p.plan.tiles(), next = atomicAdd(p.next, 1);
    if (next >= tiles * p.plan.heads) return false;
    tile.head = next / tiles;
    const int at = next % tiles, own = p.plan.sequence_of(at);
    tile.first_q = p.plan.cu[own];
    tile.queries = p.plan.cu[own + 1] - tile.first_q;
    tile.first_k = p.cu_k[own];
    tile.keys = p.cu_k[own + 1] - tile.first_k;
    tile.row = (p.plan.before[own + 1] - 1 - at) * kQueries;  // the last rows see the most keys and come first
    return true;
}

struct Maps {
    CUtensorMap q, k, k_shared, v;
};

__device__ void produce(Shared& shared, const Maps& maps, const Params& p) {
    Ring<kStages> k_ring, v_ring;
    uint32_t parity = 1;
    const auto load_values = [&](const Tile& tile, int step) {
        barrier_wait(smem_address(&shared.v_empty[v_ring.stage]), v_ring.parity ^ 1);
        const uint32_t full = smem_address(&shared.v_full[v_ring.stage]);
        barrier_expect(full, kValueBoxes * kBox);
#pragma unroll
        for (int i = 0; i < kValueBoxes; ++i)
            tma_load(smem_address(shared.v[v_ring.stage]) + i * kBox, &maps.v, full, 64 * i, tile.first_k + step * kKeys,
                     tile.head);
        v_ring.advance();
    };
    while (true) {
        Tile tile{};
        const bool more = take_tile(p, tile);
        barrier_wait(smem_address(&shared.tile_empty), parity);
        if (!more) tile.queries = 0;
        shared.tile = tile;
        barrier_arrive(smem_address(&shared.tile_full));
        if (!more) return;
        barrier_wait(smem_address(&shared.q_empty), parity);
        parity ^= 1;
        const uint32_t q_full = smem_address(&shared.q_full);
        barrier_expect(q_full, kKeyBoxes * kBox);
#pragma unroll
        for (int i = 0; i < kKeyBoxes; ++i)
            tma_load(smem_address(shared.q) + i * kBox, &maps.q, q_full, 64 * i, tile.first_q + tile.row, tile.head);
        const int steps = tile.steps();
        for (int step = 0; step < steps; ++step) {
            barrier_wait(smem_address(&shared.k_empty[k_ring.stage]), k_ring.parity ^ 1);
            const uint32_t full = smem_address(&shared.k_full[k_ring.stage]), to = smem_address(shared.k[k_ring.stage]);
            barrier_expect(full, kKeyBoxes * kBox);
            const int row = tile.first_k + step * kKeys;
            tma_load(to, &maps.k, full, 0, row, tile.head);
            tma_load(to + kBox, &maps.k, full, 64, row, tile.head);
            if (p.shared_key)
                tma_load(to + 2 * kBox, &maps.k_shared, full, 0, row, 0);
            else
                tma_load(to + 2 * kBox, &maps.k, full, 128, row, tile.head);
            k_ring.advance();
            if (step > 0) load_values(tile, step - 1);
        }
        load_values(tile, steps - 1);
    }
}

__device__ __forceinline__ void issue_scores(float (&s)[kKeys / 2], uint32_t q, uint32_t k) {
    pin_registers(s);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4 * kKeyBoxes; ++i) {
        const int at = i / 4 * kBox + i % 4 * 32;
        wgmma_bf16<kKeys, Major::kK, Major::kK>(s, matrix_descriptor(q + at), matrix_descriptor(k + at), i > 0 ? 1 : 0);
    }
    wgmma_commit();
}

__device__ __forceinline__ void issue_values(float (&o)[64], const uint32_t (&p)[kKeys / 4], uint32_t v) {
    pin_registers(o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i)
        wgmma_bf16<128, Major::kMN>(o, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3],
                                    matrix_descriptor(v + i * 16 * 128, kBox), 1);
    wgmma_commit();
}

// Hides keys behind a row's own; `row` is the thread's first, counted in the sequence.
__device__ __forceinline__ void mask_scores(float (&s)[kKeys / 2], const Tile& tile, int step, int row) {
    const int offset = tile.keys - tile.queries - step * kKeys;
    if (tile.row + offset >= kKeys - 1) return;  // the tile's first row sees all
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i)
        if (8 * (i / 4) + 2 * (lane_id() % 4) + i % 2 > row + 8 * (i / 2 % 2) + offset) s[i] = -INFINITY;
}

__device__ __forceinline__ void release(uint64_t* barrier) {
    if (lane_id() == 0) barrier_arrive(smem_address(barrier));
}

__device__ __forceinline__ void store_result(Shared& shared, const Params& p, const Tile& tile, float (&o)[64],
                                             const Softmax& state, int warp, int row) {
    float scale[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        const float sum = quad_sum(state.sum[side]);
        scale[side] = 1 / sum;
        const int r = row + 8 * side;
        if (lane_id() % 4 == 0 && r < tile.queries)
            p.lse[int64_t{tile.first_q + r} * p.plan.heads + tile.head] = state.max[side] * p.scale + logf(sum);
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) o[i] *= scale[i / 2 % 2];
    const int first = row - lane_id() / 4;  // of this warp
    store_rows(p.o + int64_t{tile.first_q + first} * p.o_row + tile.head * p.o_head, p.o_row, o,
               smem_address(shared.staging[warp]), tile.queries - first, 128);
}

__device__ void consume(Shared& shared, const Params& p) {
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup, warpgroup = thread / kWarpgroup, warp = thread / kWarp;
    Ring<kStages> k_ring, v_ring;
    uint32_t parity = 0;
    const auto wait_turn = [&] { named_sync(kTurn + warpgroup, kConsumers); };
    const auto pass_turn = [&] { named_arrive(kTurn + 1 - warpgroup, kConsumers); };
    if (warpgroup == 1) pass_turn();
    while (true) {
        barrier_wait(smem_address(&shared.tile_full), parity);
        const Tile tile = shared.tile;
        barrier_arrive(smem_address(&shared.tile_empty));  // each thread for itself: it has read with ordinary instructions
        if (tile.queries == 0) break;
        const uint32_t q = smem_address(shared.q) + warpgroup * (kBox / 2);
        const int row = tile.row + warpgroup * 64 + warp % 4 * 16 + lane_id() / 4, steps = tile.steps();
        float o[64], s[kKeys / 2];
        uint32_t packed[kKeys / 4];
        Softmax state;
        clear_registers(o);
        barrier_wait(smem_address(&shared.q_full), parity);
        parity ^= 1;
        barrier_wait(smem_address(&shared.k_full[k_ring.stage]), k_ring.parity);
        issue_scores(s, q, smem_address(shared.k[k_ring.stage]));
        wgmma_wait<0>();
        pin_registers(s);
        release(&shared.k_empty[k_ring.stage]);
        k_ring.advance();
        mask_scores(s, tile, 0, row);
        softmax_step(s, state, p.scale_log2);
        pack_rows(packed, s);
        for (int step = 1; step < steps; ++step) {
            barrier_wait(smem_address(&shared.k_full[k_ring.stage]), k_ring.parity);
            wait_turn();
            issue_scores(s, q, smem_address(shared.k[k_ring.stage]));
            barrier_wait(smem_address(&shared.v_full[v_ring.stage]), v_ring.parity);
            issue_values(o, packed, smem_address(shared.v[v_ring.stage]));
            pass_turn();
            wgmma_wait<1>();
            pin_registers(s);
            release(&shared.k_empty[k_ring.stage]);
            k_ring.advance();
            mask_scores(s, tile, step, row);
            const float2 alpha = softmax_step(s, state, p.scale_log2);
            wgmma_wait<0>();
            pin_registers(o);
            release(&shared.v_empty[v_ring.stage]);
            v_ring.advance();
            pack_rows(packed, s);
            rescale(o, alpha);
        }
        release(&shared.q_empty);
        barrier_wait(smem_address(&shared.v_full[v_ring.stage]), v_ring.parity);
        issue_values(o, packed, smem_address(shared.v[v_ring.stage]));
        wgmma_wait<0>();
        pin_registers(o);
        release(&shared.v_empty[v_ring.stage]);
        v_ring.advance();
        store_result(shared, p, tile, o, state, warp, row);
    }
}

__global__ void __launch_bounds__(kThreads, 1) attention_kernel(const __grid_constant__ Maps maps, const Params p) {
    extern __shared__ uint8_t raw[];
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});
    if (threadIdx.x == 0) {
        barrier_init(smem_address(&shared.q_full), 1);
        barrier_init(smem_address(&shared.q_empty), kConsumerWarps);
        barrier_init(smem_address(&shared.tile_full), 1);
        barrier_init(smem_address(&shared.tile_empty), kConsumers);
        for (int i = 0; i < kStages; ++i) {
            barrier_init(smem_address(&shared.k_full[i]), 1);
            barrier_init(smem_address(&shared.v_full[i]), 1);
            barrier_init(smem_address(&shared.k_empty[i]), kConsumerWarps);
            barrier_init(smem_address(&shared.v_empty[i]), kConsumerWarps);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < kWarpgroup) {
        shrink_registers<40>();
        if (threadIdx.x < kWarp && elect_one()) produce(shared, maps, p);
    } else {
        grow_registers<232>();
        consume(shared, p);
    }
}

CUtensorMap encode_heads(const HeadTensor& t, int64_t width, int64_t rows, int64_t heads) {
    check(t.row % 8 == 0 && t.head % 8 == 0, "attention: rows and heads must lie multiples of 8 elements apart");
    return encode({.base = t.data,
                   .size_x = width,
                   .size_y = rows,
                   .size_z = heads,
                   .stride_y = t.row,
                   .stride_z = t.head,
                   .box_y = 128});
}

}  // namespace

int64_t attention_workspace_bytes(int64_t sequences) { return (1 + sequences + 2) * 4; }

void attention_forward(const Attention& a, cudaStream_t stream) {
    if (a.n == 0 || a.sequences == 0) return;
    check(a.heads > 0 && a.m > 0, "attention: heads and keys must be positive");
    const bool shared_key = a.k_shared != nullptr;
    Maps maps{.q = encode_heads(a.q, 192, a.n, a.heads),
              .k = encode_heads(a.k, shared_key ? 128 : 192, a.m, a.heads),
              .v = encode_heads(a.v, 128, a.m, a.heads)};
    maps.k_shared = shared_key
                        ? encode({.base = a.k_shared, .size_x = 64, .size_y = a.m, .stride_y = a.k_shared_row, .box_y = 128})
                        : maps.k;
    auto* const workspace = static_cast<int32_t*>(a.workspace);
    const Params p{.plan = {.cu = a.cu_q,
                            .before = workspace + 1,
                            .order = nullptr,
                            .heads = static_cast<int>(a.heads),
                            .sequences = static_cast<int>(a.sequences)},
                   .cu_k = a.cu_k,
                   .next = workspace,
                   .o = static_cast<__nv_bfloat16*>(a.o.data),
                   .lse = a.lse,
                   .o_row = a.o.row,
                   .o_head = a.o.head,
                   .shared_key = shared_key,
                   .scale = static_cast<float>(a.scale),
                   .scale_log2 = static_cast<float>(a.scale) * kLog2E};
    constexpr int kBytes = sizeof(Shared) + 1024;
    allow_shared_memory(reinterpret_cast<const void*>(attention_kernel), kBytes);
    plan_kernel<<<1, kWarp, 0, stream>>>(p);
    const int blocks = a.multiprocessors > 0 ? a.multiprocessors : multiprocessors();
    attention_kernel<<<blocks, kThreads, kBytes, stream>>>(maps, p);
    require(cudaGetLastError(), "attention_forward");
}

}  // namespace fathom::hopper
