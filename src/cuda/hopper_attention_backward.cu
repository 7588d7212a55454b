// Gradients of causal attention, head sizes 192 and 128 (hopper_attention.h says what they are).
//
// With P = exp(scale q k^T - lse), dP = dO V^T, delta = rowsum(dO o O), dS = P (dP - delta):
//   dV = P^T dO, dK = scale dS^T Q, dQ = scale dS K.
// One kernel owns 128 keys and walks over the queries that see them, 32 at a time, with scores transposed (rows are keys), so
// P^T and dS^T are operands as they lie in registers; another owns 128 queries and walks over their keys, 64 at a time. Both
// compute S and dP: 1152 instead of 832 multiply-adds per pair, but no sum is shared between blocks, so there is nothing to
// order. lse and delta are first brought into rows of whole tiles, with lse = infinity (P = 0) behind a sequence's end.
// Measured: docs/performance.md, "Hopper kernels".
#include <algorithm>

#include "base/error.h"
#include "cuda/hopper_attention.h"
#include "cuda/hopper_attention_tiles.cuh"
#include "cuda/hopper_launch.h"
#include "cuda/hopper_ptx.cuh"
#include "cuda/hopper_softmax.cuh"
#include "cuda/hopper_store.cuh"

namespace fathom::hopper {

namespace {

constexpr int kQueryStep = 32, kKeyStep = 64;                                                  // of the walks
constexpr int kKeyBoxes = 3, kValueBoxes = 2;                                                  // 64 channels each
constexpr int kTileBox = kTile * 128, kQueryBox = kQueryStep * 128, kKeyBox = kKeyStep * 128;  // bytes
constexpr int kThreads = 3 * kWarpgroup, kConsumerWarps = 2 * kWarpgroup / kWarp;
constexpr int kKeyStages = 3, kQueryStages = 4;

struct Params {
    TilePlan q_plan, k_plan;
    float* lse;  // [heads][q_bound * 128], base 2, by tiles
    float* delta;
    float* dk_rope;  // [m, heads, 64], before the sum over heads; absent with 192-wide keys
    HeadTensor dq, dk, dv;
    int64_t row_stride;  // of lse, delta: from head to head
    float scale, scale_log2;
};
struct Maps {
    CUtensorMap q, k, k_shared, v, dout;
};

// ---- preparation -----------------------------------------------------------------------------------------------------------
__global__ void plan_kernel(const Params p) { count_tiles(threadIdx.x < kWarp ? p.q_plan : p.k_plan); }

struct Tile {
    int first_q, queries, first_k, keys;
    int first_row;                                                          // where the sequence's rows of lse and delta begin
    int index;                                                              // of the tile in its sequence
    int tiles;                                                              // of the sequence
    [[nodiscard]] __device__ int offset() const { return keys - queries; }  // query i sees keys up to i + offset
};

__device__ Tile tile_at(const Params& p, const TilePlan& plan, int at) {
    const int own = plan.sequence_of(at), first_q = p.q_plan.cu[own], first_k = p.k_plan.cu[own];
    return {.first_q = first_q,
            .queries = p.q_plan.cu[own + 1] - first_q,
            .first_k = first_k,
            .keys = p.k_plan.cu[own + 1] - first_k,
            .first_row = p.q_plan.before[own] * kTile,
            .index = at - plan.before[own],
            .tiles = plan.tiles_of(own)};
}
// What this block has; false behind the last tile.
__device__ bool tile_of_block(const Params& p, const TilePlan& plan, Tile& t, int& head) {
    const int tiles = plan.tiles(), block = static_cast<int>(blockIdx.x);
    if (block >= tiles * plan.heads) return false;
    head = plan.order[block] / tiles;
    t = tile_at(p, plan, plan.order[block] % tiles);
    return true;
}

// For the two kernels behind it: the order of their blocks; lse in base 2 and delta, by tiles, one warp per row.
__global__ void prepare_kernel(const Params p, const HeadTensor o, const HeadTensor dout, const float* lse) {
    const int tile = static_cast<int>(blockIdx.x);
    if (blockIdx.y == 0 && threadIdx.x < 2 * kWarp) order_tile(threadIdx.x < kWarp ? p.q_plan : p.k_plan, tile);
    if (tile >= p.q_plan.tiles()) return;
    const Tile t = tile_at(p, p.q_plan, tile);
    const int head = static_cast<int>(blockIdx.y), lane = lane_id();
    for (int r = static_cast<int>(threadIdx.x) / kWarp; r < kTile; r += static_cast<int>(blockDim.x) / kWarp) {
        const int row = t.index * kTile + r;
        float sum = 0, value = INFINITY;
        if (row < t.queries) {
            const int64_t at = t.first_q + row;
            const uint2 a = *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(o.data) + at * o.row +
                                                            head * o.head + 4 * lane);
            const uint2 b = *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(dout.data) + at * dout.row +
                                                            head * dout.head + 4 * lane);
            const float2 a0 = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&a.x));
            const float2 a1 = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&a.y));
            const float2 b0 = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&b.x));
            const float2 b1 = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&b.y));
            sum = a0.x * b0.x + a0.y * b0.y + a1.x * b1.x + a1.y * b1.y;
            value = lse[at * p.q_plan.heads + head] * kLog2E;
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffU, sum, step);
        if (lane == 0) {
            const int64_t to = head * p.row_stride + t.first_row + row;
            p.lse[to] = value;
            p.delta[to] = sum;
        }
    }
}

// dk_shared[j] = sum over heads, in their order.
__global__ void sum_heads_kernel(__nv_bfloat16* dk_shared, int64_t row, const float* dk_rope, int64_t m, int heads) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= m * 64) return;
    const int64_t j = i / 64, c = i % 64;
    float sum = 0;
    for (int h = 0; h < heads; ++h) sum += dk_rope[(j * heads + h) * 64 + c];
    dk_shared[j * row + c] = __float2bfloat16(sum);
}

// ---- common to both kernels
// --------------------------------------------------------------------------------------------------
__device__ __forceinline__ void release(uint64_t* barrier) {
    if (lane_id() == 0) barrier_arrive(smem_address(barrier));
}

__device__ __forceinline__ void load_key(uint32_t to, int box, const Maps& maps, bool shared_key, uint32_t barrier, int row,
                                         int head) {
    tma_load(to, &maps.k, barrier, 0, row, head);
    tma_load(to + box, &maps.k, barrier, 64, row, head);
    if (shared_key)
        tma_load(to + 2 * box, &maps.k_shared, barrier, 0, row, 0);
    else
        tma_load(to + 2 * box, &maps.k, barrier, 128, row, head);
}
template <int kBoxes>
__device__ __forceinline__ void load_boxes(uint32_t to, int box, const CUtensorMap* map, uint32_t barrier, int row, int head) {
#pragma unroll
    for (int i = 0; i < kBoxes; ++i) tma_load(to + i * box, map, barrier, 64 * i, row, head);
}

// d[64, kN] = a b^T over 64 kBoxes channels.
template <int kN, int kBoxes>
__device__ __forceinline__ void issue_scores(float (&d)[kN / 2], uint32_t a, int box_a, uint32_t b, int box_b) {
    pin_registers(d);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4 * kBoxes; ++i)
        wgmma_bf16<kN, Major::kK, Major::kK>(d, matrix_descriptor(a + i / 4 * box_a + i % 4 * 32),
                                             matrix_descriptor(b + i / 4 * box_b + i % 4 * 32), i > 0 ? 1 : 0);
    wgmma_commit();
}
// d[64, kN] += p b, where b's rows are the columns of p.
template <int kN, int kSteps>
__device__ __forceinline__ void issue_gradient(float (&d)[kN / 2], const uint32_t (&p)[4 * kSteps], uint32_t b, int box) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i)
        wgmma_bf16<kN, Major::kMN>(d, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3],
                                   matrix_descriptor(b + i * 16 * 128, box), 1);
    wgmma_commit();
}

// ---- dK, dV
// --------------------------------------------------------------------------------------------------------------------
struct KeyShared {
    alignas(1024) uint8_t k[kKeyBoxes * kTileBox];
    alignas(1024) uint8_t v[kValueBoxes * kTileBox];
    alignas(1024) uint8_t q[kQueryStages][kKeyBoxes * kQueryBox];
    alignas(1024) uint8_t dout[kQueryStages][kValueBoxes * kQueryBox];
    alignas(16) float lse[kQueryStages][kQueryStep];
    alignas(16) float delta[kQueryStages][kQueryStep];
    alignas(16) uint8_t staging[kConsumerWarps][kStagingBytes];
    alignas(8) uint64_t resident, full[kQueryStages], empty[kQueryStages];
};
static_assert(sizeof(KeyShared) + 1024 <= 227 * 1024);

__device__ int first_query(const Tile& t) { return max(0, t.index * kTile - t.offset()) / kQueryStep * kQueryStep; }

__device__ __forceinline__ void produce_queries(KeyShared& shared, const Maps& maps, const Params& p, const Tile& t, int head) {
    const uint32_t resident = smem_address(&shared.resident);
    barrier_expect(resident, (kKeyBoxes + kValueBoxes) * kTileBox);
    const int key = t.first_k + t.index * kTile;
    load_key(smem_address(shared.k), kTileBox, maps, p.dk_rope != nullptr, resident, key, head);
    load_key(smem_address(shared.k) + kTileBox / 2, kTileBox, maps, p.dk_rope != nullptr, resident, key + kKeyStep, head);
    load_boxes<kValueBoxes>(smem_address(shared.v), kTileBox, &maps.v, resident, key, head);
    load_boxes<kValueBoxes>(smem_address(shared.v) + kTileBox / 2, kTileBox, &maps.v, resident, key + kKeyStep, head);
    Ring<kQueryStages> ring;
    for (int query = first_query(t); query < t.queries; query += kQueryStep, ring.advance()) {
        barrier_wait(smem_address(&shared.empty[ring.stage]), ring.parity ^ 1);
        const uint32_t full = smem_address(&shared.full[ring.stage]);
        barrier_expect(full, (kKeyBoxes + kValueBoxes) * kQueryBox + 2 * kQueryStep * 4);
        load_boxes<kKeyBoxes>(smem_address(shared.q[ring.stage]), kQueryBox, &maps.q, full, t.first_q + query, head);
        load_boxes<kValueBoxes>(smem_address(shared.dout[ring.stage]), kQueryBox, &maps.dout, full, t.first_q + query, head);
        const int64_t row = head * p.row_stride + t.first_row + query;
        bulk_load(smem_address(shared.lse[ring.stage]), p.lse + row, kQueryStep * 4, full);
        bulk_load(smem_address(shared.delta[ring.stage]), p.delta + row, kQueryStep * 4, full);
    }
}

// P^T from S^T: s[4 j + 2 side + i] is key 8 side, query 8 j + 2 (lane % 4) + i; `hidden` = key - offset - first query of the
// block.
__device__ __forceinline__ void probabilities(float (&s)[16], const float* lse, float scale_log2, int hidden) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int query = 8 * j + 2 * (lane_id() % 4) + i;
            const float base = lse[query];
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                float& value = s[4 * j + 2 * side + i];
                value = query < hidden + 8 * side ? 0.F : fast_exp2(fmaf(value, scale_log2, -base));
            }
        }
}

__device__ void consume_queries(KeyShared& shared, const Params& p, const Tile& t, int head) {
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup, warpgroup = thread / kWarpgroup, warp = thread / kWarp;
    const uint32_t k = smem_address(shared.k) + warpgroup * (kTileBox / 2),
                   v = smem_address(shared.v) + warpgroup * (kTileBox / 2);
    const int first = t.index * kTile + warpgroup * 64 + warp % 4 * 16, key = first + lane_id() / 4;  // counted in the sequence
    float dk[96], dv[64], s[16], dp[16];
    uint32_t packed_p[8], packed_ds[8];
    clear_registers(dk);
    clear_registers(dv);
    pin_registers(dk);
    pin_registers(dv);
    barrier_wait(smem_address(&shared.resident), 0);
    Ring<kQueryStages> ring;
    for (int query = first_query(t); query < t.queries; query += kQueryStep, ring.advance()) {
        const uint32_t q = smem_address(shared.q[ring.stage]), dout = smem_address(shared.dout[ring.stage]);
        barrier_wait(smem_address(&shared.full[ring.stage]), ring.parity);
        issue_scores<kQueryStep, kKeyBoxes>(s, k, kTileBox, q, kQueryBox);
        issue_scores<kQueryStep, kValueBoxes>(dp, v, kTileBox, dout, kQueryBox);
        wgmma_wait<1>();  // S^T
        pin_registers(s);
        probabilities(s, shared.lse[ring.stage], p.scale_log2, key - t.offset() - query);
        pack_rows(packed_p, s);
        issue_gradient<128, 2>(dv, packed_p, dout, kQueryBox);
        wgmma_wait<1>();  // dP^T
        pin_registers(dp);
        const float* delta = shared.delta[ring.stage];
#pragma unroll
        for (int i = 0; i < 16; ++i) s[i] *= dp[i] - delta[8 * (i / 4) + 2 * (lane_id() % 4) + i % 2];
        pack_rows(packed_ds, s);
        issue_gradient<192, 2>(dk, packed_ds, q, kQueryBox);
        wgmma_wait<0>();
        pin_registers(dk);
        pin_registers(dv);
        barrier_arrive(
            smem_address(&shared.empty[ring.stage]));  // each thread: lse and delta were read with ordinary instructions
    }
    scale_registers(dk, p.scale);
    const int rows = t.keys - first;
    const uint32_t staging = smem_address(shared.staging[warp]);
    store_rows(static_cast<__nv_bfloat16*>(p.dv.data) + int64_t{t.first_k + first} * p.dv.row + head * p.dv.head, p.dv.row, dv,
               staging, rows, 128);
    store_rows(static_cast<__nv_bfloat16*>(p.dk.data) + int64_t{t.first_k + first} * p.dk.row + head * p.dk.head, p.dk.row, dk,
               staging, rows, p.dk_rope != nullptr ? 128 : 192);
    if (p.dk_rope == nullptr) return;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        const int r = lane_id() / 4 + 8 * side;
        if (r >= rows) continue;
        float* to = p.dk_rope + (int64_t{t.first_k + first + r} * p.q_plan.heads + head) * 64 + 2 * (lane_id() % 4);
#pragma unroll
        for (int j = 0; j < 8; ++j)
            *reinterpret_cast<float2*>(to + 8 * j) = float2{dk[64 + 4 * j + 2 * side], dk[65 + 4 * j + 2 * side]};
    }
}

__global__ void __launch_bounds__(kThreads, 1) key_gradients_kernel(const __grid_constant__ Maps maps, const Params p) {
    extern __shared__ uint8_t raw[];
    KeyShared& shared = *reinterpret_cast<KeyShared*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});
    allow_next_launch();
    Tile t{};
    int head = 0;
    if (!tile_of_block(p, p.k_plan, t, head)) return;
    if (threadIdx.x == 0) {
        barrier_init(smem_address(&shared.resident), 1);
        for (int i = 0; i < kQueryStages; ++i) {
            barrier_init(smem_address(&shared.full[i]), 1);
            barrier_init(smem_address(&shared.empty[i]), kConsumerWarps * kWarp);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < kWarpgroup) {
        shrink_registers<24>();
        if (threadIdx.x < kWarp && elect_one()) produce_queries(shared, maps, p, t, head);
    } else {
        grow_registers<240>();
        consume_queries(shared, p, t, head);
    }
}

// ---- dQ
// ------------------------------------------------------------------------------------------------------------------------
struct QueryShared {
    alignas(1024) uint8_t q[kKeyBoxes * kTileBox];
    alignas(1024) uint8_t dout[kValueBoxes * kTileBox];
    alignas(1024) uint8_t k[kKeyStages][kKeyBoxes * kKeyBox];
    alignas(1024) uint8_t v[kKeyStages][kValueBoxes * kKeyBox];
    alignas(16) uint8_t staging[kConsumerWarps][kStagingBytes];
    alignas(8) uint64_t resident, full[kKeyStages], empty[kKeyStages];
};
static_assert(sizeof(QueryShared) + 1024 <= 227 * 1024);

// Of the tile's first `rows` queries.
__device__ int visible_keys(const Tile& t, int rows) { return min(t.index * kTile + rows, t.queries) + t.offset(); }

__device__ __forceinline__ void produce_keys(QueryShared& shared, const Maps& maps, const Params& p, const Tile& t, int head) {
    const uint32_t resident = smem_address(&shared.resident);
    barrier_expect(resident, (kKeyBoxes + kValueBoxes) * kTileBox);
    for (int part = 0; part < kTile; part += kQueryStep) {  // the maps' boxes are those of the walks
        const int query = t.first_q + t.index * kTile + part;
        load_boxes<kKeyBoxes>(smem_address(shared.q) + part * 128, kTileBox, &maps.q, resident, query, head);
        load_boxes<kValueBoxes>(smem_address(shared.dout) + part * 128, kTileBox, &maps.dout, resident, query, head);
    }
    Ring<kKeyStages> ring;
    for (int key = 0; key < visible_keys(t, kTile); key += kKeyStep, ring.advance()) {
        barrier_wait(smem_address(&shared.empty[ring.stage]), ring.parity ^ 1);
        const uint32_t full = smem_address(&shared.full[ring.stage]);
        barrier_expect(full, (kKeyBoxes + kValueBoxes) * kKeyBox);
        load_key(smem_address(shared.k[ring.stage]), kKeyBox, maps, p.dk_rope != nullptr, full, t.first_k + key, head);
        load_boxes<kValueBoxes>(smem_address(shared.v[ring.stage]), kKeyBox, &maps.v, full, t.first_k + key, head);
    }
}

__device__ void consume_keys(QueryShared& shared, const Params& p, const Tile& t, int head) {
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup, warpgroup = thread / kWarpgroup, warp = thread / kWarp;
    const uint32_t q = smem_address(shared.q) + warpgroup * (kTileBox / 2),
                   dout = smem_address(shared.dout) + warpgroup * (kTileBox / 2);
    const int first = t.index * kTile + warpgroup * 64 + warp % 4 * 16,
              query = first + lane_id() / 4;  // counted in the sequence
    const int64_t at = head * p.row_stride + t.first_row + query;
    const float lse[2] = {p.lse[at], p.lse[at + 8]}, delta[2] = {p.delta[at], p.delta[at + 8]};
    float dq[96], s[32], dp[32];
    uint32_t packed[16];
    clear_registers(dq);
    pin_registers(dq);
    barrier_wait(smem_address(&shared.resident), 0);
    Ring<kKeyStages> ring;
    const int visible = visible_keys(t, 64 * (warpgroup + 1));  // of the last step the first warpgroup may see none
    for (int key = 0; key < visible; key += kKeyStep, ring.advance()) {
        const uint32_t k = smem_address(shared.k[ring.stage]), v = smem_address(shared.v[ring.stage]);
        barrier_wait(smem_address(&shared.full[ring.stage]), ring.parity);
        issue_scores<kKeyStep, kKeyBoxes>(s, q, kTileBox, k, kKeyBox);
        issue_scores<kKeyStep, kValueBoxes>(dp, dout, kTileBox, v, kKeyBox);
        wgmma_wait<1>();  // S
        pin_registers(s);
        const int hidden = query + t.offset() - key;  // keys of this step behind it are not seen
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            const int side = i / 2 % 2, column = 8 * (i / 4) + 2 * (lane_id() % 4) + i % 2;
            s[i] = column > hidden + 8 * side ? 0.F : fast_exp2(fmaf(s[i], p.scale_log2, -lse[side]));
        }
        wgmma_wait<0>();
        pin_registers(dp);
#pragma unroll
        for (int i = 0; i < 32; ++i) s[i] *= dp[i] - delta[i / 2 % 2];
        pack_rows(packed, s);
        issue_gradient<192, 4>(dq, packed, k, kKeyBox);
        wgmma_wait<0>();
        pin_registers(dq);
        release(&shared.empty[ring.stage]);
    }
    scale_registers(dq, p.scale);
    store_rows(static_cast<__nv_bfloat16*>(p.dq.data) + int64_t{t.first_q + first} * p.dq.row + head * p.dq.head, p.dq.row, dq,
               smem_address(shared.staging[warp]), t.queries - first, 192);
}

// Needs nothing of key_gradients_kernel, and begins where that leaves multiprocessors free.
__global__ void __launch_bounds__(kThreads, 1) query_gradients_kernel(const __grid_constant__ Maps maps, const Params p) {
    extern __shared__ uint8_t raw[];
    QueryShared& shared = *reinterpret_cast<QueryShared*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});
    Tile t{};
    int head = 0;
    if (!tile_of_block(p, p.q_plan, t, head)) return;
    t.index = t.tiles - 1 - t.index;  // the last queries walk over the most keys
    if (threadIdx.x == 0) {
        barrier_init(smem_address(&shared.resident), 1);
        for (int i = 0; i < kKeyStages; ++i) {
            barrier_init(smem_address(&shared.full[i]), 1);
            barrier_init(smem_address(&shared.empty[i]), kConsumerWarps);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < kWarpgroup) {
        shrink_registers<40>();
        if (threadIdx.x >= kWarp || !elect_one()) return;
        produce_keys(shared, maps, p, t, head);
        wait_for_earlier_launch();  // this kernel's end is the other's too
    } else {
        grow_registers<232>();
        consume_keys(shared, p, t, head);
    }
}

// ---- host
// ------------------------------------------------------------------------------------------------------------------------
CUtensorMap encode_heads(const HeadTensor& t, int64_t width, int64_t rows, int64_t heads, int box_rows) {
    check(t.row % 8 == 0 && t.head % 8 == 0, "attention: rows and heads must lie multiples of 8 elements apart");
    return encode({.base = t.data,
                   .size_x = width,
                   .size_y = rows,
                   .size_z = heads,
                   .stride_y = t.row,
                   .stride_z = t.head,
                   .box_y = box_rows});
}

// Where the parts of the workspace begin, in bytes; multiples of 128.
struct Layout {
    int64_t q_tiles = 0, k_tiles, q_order, k_order, lse, delta, dk_rope, total;
    int64_t q_bound, k_bound;  // tiles at most
    explicit Layout(const Attention& a) {
        const auto round = [](int64_t bytes) { return (bytes + 127) / 128 * 128; };
        q_bound = (a.n + kTile - 1) / kTile + a.sequences;
        k_bound = (a.m + kTile - 1) / kTile + a.sequences;
        k_tiles = round((a.sequences + 2) * 4);
        q_order = k_tiles + round((a.sequences + 2) * 4);
        k_order = q_order + round(a.heads * q_bound * 4);
        lse = k_order + round(a.heads * k_bound * 4);
        delta = lse + a.heads * q_bound * kTile * 4;
        dk_rope = delta + a.heads * q_bound * kTile * 4;
        total = dk_rope + (a.k_shared != nullptr ? a.m * a.heads * 64 * 4 : 0);
    }
};

}  // namespace

int64_t attention_backward_workspace_bytes(const Attention& a) { return Layout(a).total; }

void attention_backward(const Attention& a, const AttentionGradients& g, cudaStream_t stream) {
    if (a.n == 0 || a.m == 0 || a.sequences == 0) return;
    check(a.heads > 0 && a.heads < 65536, "attention: between 1 and 65535 heads");
    check((a.k_shared == nullptr) == (g.dk_shared == nullptr), "attention: dk_shared goes with k_shared");
    const bool shared_key = a.k_shared != nullptr;
    const Layout layout(a);
    uint8_t* const base = static_cast<uint8_t*>(g.workspace);
    Maps maps{.q = encode_heads(a.q, 192, a.n, a.heads, kQueryStep),
              .k = encode_heads(a.k, shared_key ? 128 : 192, a.m, a.heads, kKeyStep),
              .v = encode_heads(a.v, 128, a.m, a.heads, kKeyStep),
              .dout = encode_heads(g.dout, 128, a.n, a.heads, kQueryStep)};
    maps.k_shared =
        shared_key ? encode({.base = a.k_shared, .size_x = 64, .size_y = a.m, .stride_y = a.k_shared_row, .box_y = kKeyStep})
                   : maps.k;
    const auto plan = [&](const int32_t* cu, int64_t before, int64_t order) {
        return TilePlan{.cu = cu,
                        .before = reinterpret_cast<int32_t*>(base + before),
                        .order = reinterpret_cast<int32_t*>(base + order),
                        .heads = static_cast<int>(a.heads),
                        .sequences = static_cast<int>(a.sequences)};
    };
    const Params p{.q_plan = plan(a.cu_q, layout.q_tiles, layout.q_order),
                   .k_plan = plan(a.cu_k, layout.k_tiles, layout.k_order),
                   .lse = reinterpret_cast<float*>(base + layout.lse),
                   .delta = reinterpret_cast<float*>(base + layout.delta),
                   .dk_rope = shared_key ? reinterpret_cast<float*>(base + layout.dk_rope) : nullptr,
                   .dq = g.dq,
                   .dk = g.dk,
                   .dv = g.dv,
                   .row_stride = layout.q_bound * kTile,
                   .scale = static_cast<float>(a.scale),
                   .scale_log2 = static_cast<float>(a.scale) * kLog2E};
    const auto grid = [](int64_t blocks, int64_t y = 1) {
        return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(y));
    };
    allow_shared_memory(reinterpret_cast<const void*>(key_gradients_kernel), sizeof(KeyShared) + 1024);
    allow_shared_memory(reinterpret_cast<const void*>(query_gradients_kernel), sizeof(QueryShared) + 1024);
    plan_kernel<<<1, 2 * kWarp, 0, stream>>>(p);
    prepare_kernel<<<grid(std::max(layout.q_bound, layout.k_bound), a.heads), 256, 0, stream>>>(p, a.o, g.dout, a.lse);
    key_gradients_kernel<<<grid(layout.k_bound * a.heads), kThreads, sizeof(KeyShared) + 1024, stream>>>(maps, p);
    launch_early(query_gradients_kernel, grid(layout.q_bound * a.heads), kThreads, sizeof(QueryShared) + 1024, stream, maps, p);
    if (shared_key)
        sum_heads_kernel<<<static_cast<unsigned>((a.m * 64 + 255) / 256), 256, 0, stream>>>(
            static_cast<__nv_bfloat16*>(g.dk_shared), g.dk_shared_row, p.dk_rope, a.m, p.q_plan.heads);
    require(cudaGetLastError(), "attention_backward");
}

}  // namespace fathom::hopper
