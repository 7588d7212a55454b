// Absorbed MLA attention over the paged latent cache (hopper_mla.h says what it computes).
//
// A block owns 64 rows (row = query token x heads + head) and an equal share of all cache blocks of 64 tokens, counted over all
// sequences, so every multiprocessor reads the same number of bytes whatever the lengths. A share that begins or ends inside a
// sequence leaves a partial result (f32, with its log-sum-exp) that a second kernel combines in order.
// Per cache block: the first warpgroup computes S = Q K^T, softmax and O[:, :256] += P V; the second O[:, 256:] += P V, where V
// is the same shared memory as K, read across. S of the next block is issued before P V of this one, so the tensor cores work
// through the softmax. One warp copies: 9 boxes of 64 x 64 per block, each with its own barrier, two blocks in flight.
// FLOPs 2 x 64 x 1088 per row and cache block; bytes 64 x 1152. 16 heads are bound by memory (64-row tiles waste three quarters
// of the arithmetic and still need 40 % of the time), 128 heads by arithmetic. Measured: docs/performance.md, "Hopper kernels".
#include <cmath>

#include "base/error.h"
#include "cuda/hopper_launch.h"
#include "cuda/hopper_mla.h"
#include "cuda/hopper_mla_params.cuh"
#include "cuda/hopper_ptx.cuh"
#include "cuda/hopper_softmax.cuh"

namespace fathom::hopper {

namespace {

using mla::blocks_of, mla::kKey, mla::kLatent, mla::kRows, mla::kTokens, mla::Params;

constexpr int kChunks = kKey / 64;
constexpr int kBox = 64 * 64 * 2;
constexpr int kHalf = kLatent / 2;  // channels of one warpgroup
constexpr int kThreads = 3 * kWarpgroup;
constexpr int kBufferBytes = kChunks * kBox;
constexpr int kCleared = 3;  // a named barrier, of each warpgroup: 4, 5
struct Shared {
    alignas(1024) uint8_t q[kChunks * kBox];
    alignas(1024) uint8_t kv[2][kBufferBytes];
    uint4 p[4][kWarpgroup];    // P as the first warpgroup's threads hold it: the second's threads need the same
    float2 alpha[kWarpgroup];  // what O is multiplied by, of a thread's two rows
    alignas(8) uint64_t full[2][kChunks];
    uint64_t empty[2];
    uint64_t q_full, q_empty;
    uint64_t p_ready, p_free;              // every thread of a warpgroup arrives
    int32_t start, end, sequence, before;  // the range, its first sequence and the cache blocks before that
};
static_assert(sizeof(Shared) + 1024 <= 227 * 1024);

// One warp: cuts all cache blocks into equal ranges and finds where this block's begins.
__device__ void plan_range(Shared& shared, const Params& p, int range) {
    const int lane = lane_id();
    int total = 0;
    for (int i = lane; i < p.sequences; i += kWarp) total += blocks_of(p, i);
    total = __reduce_add_sync(0xffffffffU, total);
    const int per_range = max(1, (total + p.ranges - 1) / p.ranges);
    const int start = min(total, range * per_range);
    if (lane == 0) {  // unless found: nothing to do
        shared.sequence = p.sequences;
        shared.before = total;
    }
    __syncwarp();
    int before = 0;
    for (int base = 0; base < p.sequences; base += kWarp) {
        const int own = base + lane < p.sequences ? blocks_of(p, base + lane) : 0;
        int end = own;
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
            const int other = __shfl_up_sync(0xffffffffU, end, step);
            if (lane >= step) end += other;
        }
        end += before;
        if (end - own <= start && start < end) {
            shared.sequence = base + lane;
            shared.before = end - own;
        }
        if (blockIdx.x == 0 && base + lane < p.sequences) p.first[base + lane] = end - own;
        before = __shfl_sync(0xffffffffU, end, kWarp - 1);
    }
    if (lane == 0) {
        shared.start = start;
        shared.end = min(total, start + per_range);
        if (blockIdx.x == 0) p.first[p.sequences] = per_range;
    }
}

// The pieces of sequences in this block's range, one after the other.
struct Segment {
    int sequence, first_token, query_tokens, keys;
    int begin, end;  // cache blocks of the sequence
    int slot;        // of the partial result, or -1: the whole sequence lies here
};
class Segments {
public:
    __device__ Segments(const Shared& shared, const Params& p, int range, int row_block)
        : p_(p),
          start_(shared.start),
          end_(shared.end),
          sequence_(shared.sequence),
          before_(shared.before),
          range_(range),
          row_block_(row_block) {}

    __device__ bool next(Segment& s) {
        while (before_ < end_) {
            const int sequence = sequence_++;
            if (sequence >= p_.sequences) return false;
            const int blocks = blocks_of(p_, sequence);
            const int before = before_;
            before_ += blocks;
            s.first_token = p_.cu_q[sequence];
            s.query_tokens = p_.cu_q[sequence + 1] - s.first_token;
            if (blocks == 0 || row_block_ * kRows >= s.query_tokens * p_.heads) continue;
            s.sequence = sequence;
            s.keys = p_.cu_k[sequence + 1] - p_.cu_k[sequence];
            s.begin = max(start_ - before, 0);
            s.end = min(end_ - before, blocks);
            s.slot = s.begin == 0 && s.end == blocks ? -1 : 2 * range_ + (s.begin > 0 ? 0 : 1);
            return true;
        }
        return false;
    }

private:
    const Params& p_;
    int start_, end_, sequence_, before_, range_, row_block_;
};

constexpr int kAhead = 3;  // blocks whose pages are looked up early: a look-up takes as long as a copy

// Which of the two buffers comes next, and the parity of its barriers.
using Buffers = Ring<2>;

__device__ void produce(Shared& shared, const CUtensorMap* map_q, const CUtensorMap* map_kv, const Params& p, int range,
                        int row_block) {
    Segments segments(shared, p, range, row_block);
    Segment s;
    Buffers ring;
    uint32_t q_parity = 1;
    // Where latency counts (arithmetic waits for a block, or there is little to read) the next block is brought to L2 first;
    // where bandwidth does it costs a fifth. Blocks that read the same latents share the work.
    const bool prefetch = p.row_blocks > 1 || shared.end - shared.start <= 8;
    const int stride = min(p.row_blocks, 2);
    while (segments.next(s)) {
        barrier_wait(smem_address(&shared.q_empty), q_parity);
        q_parity ^= 1;
        const uint32_t q_full = smem_address(&shared.q_full);
        barrier_expect(q_full, kChunks * kBox);
        for (int c = 0; c < kChunks; ++c)
            tma_load(smem_address(shared.q) + c * kBox, map_q, q_full, 64 * c, s.first_token * p.heads + row_block * kRows, 0);
        const int32_t* pages = p.block_table + int64_t{s.sequence} * p.max_blocks;
        int ahead[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) ahead[i] = pages[min(s.begin + i, s.end - 1)];
        for (int block = s.begin; block < s.end; ++block, ring.advance()) {
            const int page = ahead[0];
#pragma unroll
            for (int i = 0; i + 1 < kAhead; ++i) ahead[i] = ahead[i + 1];
            ahead[kAhead - 1] = pages[min(block + kAhead, s.end - 1)];
            if (prefetch)
                for (int c = row_block; c < kChunks; c += stride) tma_prefetch_box(map_kv, 64 * c, 0, ahead[0]);
            barrier_wait(smem_address(&shared.empty[ring.stage]), ring.parity ^ 1);
            for (int c = 0; c < kChunks; ++c) {
                const uint32_t full = smem_address(&shared.full[ring.stage][c]);
                barrier_expect(full, kBox);
                tma_load(smem_address(shared.kv[ring.stage]) + c * kBox, map_kv, full, 64 * c, 0, page);
            }
        }
    }
}

// S = Q K^T of one cache block, as its boxes arrive.
__device__ __forceinline__ void issue_scores(Shared& shared, const Buffers& ring, float (&s)[32]) {
    const uint32_t q = smem_address(shared.q), k = smem_address(shared.kv[ring.stage]);
    pin_registers(s);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
        barrier_wait(smem_address(&shared.full[ring.stage][c]), ring.parity);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; ++step)
            wgmma_bf16<64, Major::kK, Major::kK>(s, matrix_descriptor(q + c * kBox + step * 32),
                                                 matrix_descriptor(k + c * kBox + step * 32), c + step > 0 ? 1 : 0);
    }
    wgmma_commit();
}

// O[:, half] += P V[:, half].
__device__ __forceinline__ void issue_values(float (&o)[kHalf / 2], const uint32_t (&p)[16], uint32_t v) {
    pin_registers(o);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step)
        wgmma_bf16<kHalf, Major::kMN>(o, p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3],
                                      matrix_descriptor(v + step * 16 * 128, kBox), 1);
    wgmma_commit();
}

// Hides keys that a row's token may not see: only in the blocks at a sequence's end.
__device__ __forceinline__ void mask_scores(float (&s)[32], const Segment& segment, int block, int row, int heads) {
    const int first_hidden = segment.keys - segment.query_tokens + 1;  // of the first query token
    if ((block + 1) * kTokens <= first_hidden) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int hidden = first_hidden + (row + 8 * half) / heads - block * kTokens;
#pragma unroll
        for (int i = 0; i < 32; ++i)
            if ((i / 2) % 2 == half && 8 * (i / 4) + 2 * (lane_id() % 4) + i % 2 >= hidden) s[i] = -INFINITY;
    }
}

// The rows of a page behind the sequence's end may hold anything, NaN too, and P is 0 there: a warpgroup zeroes them in its
// half of the values (four boxes).
__device__ __forceinline__ void clear_behind(uint32_t v, const Segment& segment, int block, int thread) {
    const int valid = segment.keys - block * kTokens;
    if (valid >= kTokens) return;
    const int chunks = (kTokens - valid) * 8;
    for (int i = thread; i < 4 * chunks; i += kWarpgroup)
        store_shared16(v + i / chunks * kBox + valid * 128 + i % chunks * 16, uint4{0, 0, 0, 0});
    async_proxy_fence();
    named_sync(kCleared + static_cast<int>(threadIdx.x) / kWarpgroup, kWarpgroup);
}

// Writes a warpgroup's half of O, scaled: the result itself, or the partial one.
__device__ __forceinline__ void store_rows(const Params& p, const Segment& segment, const float (&o)[kHalf / 2], float2 inverse,
                                           int row_block, int row, int half) {
    const int last = segment.query_tokens * p.heads - row_block * kRows;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        const int r = row + 8 * side;
        if (r >= last) continue;
        const float scale = side == 0 ? inverse.x : inverse.y;
        const int column = half * kHalf + 2 * (lane_id() % 4);
        if (segment.slot < 0) {
            __nv_bfloat16* to = p.u + (int64_t{segment.first_token} * p.heads + row_block * kRows + r) * kLatent + column;
#pragma unroll
            for (int j = 0; j < kHalf / 8; ++j)
                *reinterpret_cast<uint32_t*>(to + 8 * j) =
                    pack_bf16(o[4 * j + 2 * side] * scale, o[4 * j + 2 * side + 1] * scale);
        } else {
            float* to = p.partial + ((int64_t{segment.slot} * p.row_blocks + row_block) * kRows + r) * kLatent + column;
#pragma unroll
            for (int j = 0; j < kHalf / 8; ++j)
                *reinterpret_cast<float2*>(to + 8 * j) = float2{o[4 * j + 2 * side] * scale, o[4 * j + 2 * side + 1] * scale};
        }
    }
}

__device__ __forceinline__ void store_lse(const Params& p, const Segment& segment, const Softmax& state, const float (&sum)[2],
                                          int row_block, int row) {
    const int last = segment.query_tokens * p.heads - row_block * kRows;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        const int r = row + 8 * side;
        if (r >= last || lane_id() % 4 != 0) continue;
        const float lse = sum[side] > 0 ? state.max[side] * p.scale_log2 + log2f(sum[side]) : -INFINITY;
        if (segment.slot < 0)
            p.lse[int64_t{segment.first_token} * p.heads + row_block * kRows + r] = lse * kLn2;
        else
            p.partial_lse[(int64_t{segment.slot} * p.row_blocks + row_block) * kRows + r] = lse;
    }
}

// Hands P and the factor (or at the end 1 / sum) to the second warpgroup. `parity`: of the hand-over, flipped by it.
__device__ __forceinline__ void hand_over(Shared& shared, const uint32_t (&p)[16], float2 alpha, int thread, uint32_t& parity) {
    barrier_wait(smem_address(&shared.p_free), parity ^ 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) shared.p[i][thread] = uint4{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
    shared.alpha[thread] = alpha;
    barrier_arrive(smem_address(&shared.p_ready));
    parity ^= 1;
}

__device__ __forceinline__ void release(uint64_t* barrier) {
    if (lane_id() == 0) barrier_arrive(smem_address(barrier));
}

// First warpgroup: scores, softmax and the left half of O.
__device__ void consume_scores(Shared& shared, const Params& p, int range, int row_block) {
    const int thread = static_cast<int>(threadIdx.x) - kWarpgroup;
    const int row = thread / kWarp * 16 + lane_id() / 4;
    Segments segments(shared, p, range, row_block);
    Segment segment;
    Buffers ring;
    uint32_t q_parity = 0, p_parity = 0;
    float o[kHalf / 2], s[32];
    uint32_t packed[16];
    while (segments.next(segment)) {
        Softmax state;
        clear_registers(o);
        barrier_wait(smem_address(&shared.q_full), q_parity);
        q_parity ^= 1;
        issue_scores(shared, ring, s);
        wgmma_wait<0>();
        pin_registers(s);
        for (int block = segment.begin; block < segment.end; ++block) {
            mask_scores(s, segment, block, row_block * kRows + row, p.heads);
            const float2 alpha = softmax_step(s, state, p.scale_log2);
            wgmma_wait<0>();  // O += P V of the block before
            pin_registers(o);
            if (block > segment.begin) release(&shared.empty[ring.stage ^ 1]);
            pack_rows(packed, s);
            hand_over(shared, packed, alpha, thread, p_parity);
            rescale(o, alpha);
            const uint32_t v = smem_address(shared.kv[ring.stage]);
            ring.advance();
            if (block + 1 < segment.end) {
                issue_scores(shared, ring, s);
                issue_values(o, packed, v);
                wgmma_wait<1>();
                pin_registers(s);
            } else {
                release(&shared.q_empty);
                clear_behind(v, segment, block, thread);
                issue_values(o, packed, v);
            }
        }
        wgmma_wait<0>();
        pin_registers(o);
        release(&shared.empty[ring.stage ^ 1]);
        const float sum[2] = {quad_sum(state.sum[0]), quad_sum(state.sum[1])};
        const float2 inverse{sum[0] > 0 ? 1 / sum[0] : 0.F, sum[1] > 0 ? 1 / sum[1] : 0.F};
        hand_over(shared, packed, inverse, thread, p_parity);
        store_rows(p, segment, o, inverse, row_block, row, 0);
        store_lse(p, segment, state, sum, row_block, row);
    }
}

__device__ __forceinline__ float2 take_over(Shared& shared, uint32_t (&p)[16], int thread, uint32_t& parity) {
    barrier_wait(smem_address(&shared.p_ready), parity);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint4 v = shared.p[i][thread];
        p[4 * i] = v.x;
        p[4 * i + 1] = v.y;
        p[4 * i + 2] = v.z;
        p[4 * i + 3] = v.w;
    }
    const float2 alpha = shared.alpha[thread];
    barrier_arrive(smem_address(&shared.p_free));
    parity ^= 1;
    return alpha;
}

// Second warpgroup: the right half of O.
__device__ void consume_values(Shared& shared, const Params& p, int range, int row_block) {
    const int thread = static_cast<int>(threadIdx.x) - 2 * kWarpgroup;
    const int row = thread / kWarp * 16 + lane_id() / 4;
    Segments segments(shared, p, range, row_block);
    Segment segment;
    Buffers ring;
    float o[kHalf / 2];
    uint32_t packed[16];
    uint32_t p_parity = 0;
    while (segments.next(segment)) {
        clear_registers(o);
        for (int block = segment.begin; block < segment.end; ++block, ring.advance()) {
            const float2 alpha = take_over(shared, packed, thread, p_parity);
            rescale(o, alpha);
            for (int c = 4; c < 8; ++c) barrier_wait(smem_address(&shared.full[ring.stage][c]), ring.parity);
            const uint32_t v = smem_address(shared.kv[ring.stage]) + 4 * kBox;
            if (block + 1 == segment.end) clear_behind(v, segment, block, thread);
            issue_values(o, packed, v);
            wgmma_wait<0>();
            pin_registers(o);
            release(&shared.empty[ring.stage]);
        }
        const float2 inverse = take_over(shared, packed, thread, p_parity);
        store_rows(p, segment, o, inverse, row_block, row, 1);
    }
}

__global__ void __launch_bounds__(kThreads, 1)
    latent_attention_kernel(const __grid_constant__ CUtensorMap map_q, const __grid_constant__ CUtensorMap map_kv,
                            const Params p) {
    extern __shared__ uint8_t raw[];
    Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});
    const int range = static_cast<int>(blockIdx.x) / p.row_blocks, row_block = static_cast<int>(blockIdx.x) % p.row_blocks;
    if (threadIdx.x == kWarp) {
        for (int i = 0; i < 2; ++i) {
            for (uint64_t& chunk : shared.full[i]) barrier_init(smem_address(&chunk), 1);
            barrier_init(smem_address(&shared.empty[i]), 2 * kWarpgroup / kWarp);
        }
        barrier_init(smem_address(&shared.q_full), 1);
        barrier_init(smem_address(&shared.q_empty), kWarpgroup / kWarp);
        barrier_init(smem_address(&shared.p_ready), kWarpgroup);
        barrier_init(smem_address(&shared.p_free), kWarpgroup);
        barrier_init_fence();
        tma_prefetch(&map_q);
        tma_prefetch(&map_kv);
    }
    wait_for_earlier_launch();
    if (threadIdx.x < kWarp) plan_range(shared, p, range);
    __syncthreads();
    if (threadIdx.x < kWarpgroup) {
        shrink_registers<40>();
        if (threadIdx.x < kWarp && elect_one()) {
            produce(shared, &map_q, &map_kv, p, range, row_block);
            allow_next_launch();
        }
    } else if (threadIdx.x < 2 * kWarpgroup) {
        grow_registers<232>();
        consume_scores(shared, p, range, row_block);
    } else {
        grow_registers<232>();
        consume_values(shared, p, range, row_block);
    }
}

int64_t row_blocks_of(int64_t max_q, int64_t heads) { return (max_q * heads + kRows - 1) / kRows; }
int64_t ranges_of(int64_t row_blocks, int64_t at_once) { return std::max<int64_t>(1, at_once / row_blocks); }

}  // namespace

int64_t latent_workspace_bytes(int64_t sequences, int64_t max_q, int64_t heads) {
    const int64_t row_blocks = row_blocks_of(max_q, heads);
    return 2 * ranges_of(row_blocks, multiprocessors()) * row_blocks * kRows * (kLatent + 1) * 4 + (sequences + 1) * 4;
}

void latent_attention(const LatentAttention& a, cudaStream_t stream) {
    if (a.tokens == 0 || a.sequences == 0) return;
    check(a.heads > 0 && a.max_q > 0 && a.page_count > 0, "latent attention: heads, max_q and pages must be positive");
    const int64_t row_blocks = row_blocks_of(a.max_q, a.heads);
    const int64_t ranges = ranges_of(row_blocks, a.multiprocessors > 0 ? a.multiprocessors : multiprocessors());
    const int64_t rows = 2 * ranges * row_blocks * kRows;
    float* partial = static_cast<float*>(a.workspace);
    const Params p{.block_table = a.block_table,
                   .cu_q = a.cu_q,
                   .cu_k = a.cu_k,
                   .u = static_cast<__nv_bfloat16*>(a.u),
                   .lse = a.lse,
                   .partial = partial,
                   .partial_lse = partial + rows * kLatent,
                   .first = reinterpret_cast<int32_t*>(partial + rows * (kLatent + 1)),
                   .heads = static_cast<int>(a.heads),
                   .sequences = static_cast<int>(a.sequences),
                   .max_blocks = static_cast<int>(a.max_blocks),
                   .row_blocks = static_cast<int>(row_blocks),
                   .ranges = static_cast<int>(ranges),
                   .scale_log2 = static_cast<float>(a.scale) * kLog2E};
    const CUtensorMap map_q = encode({.base = a.q, .size_x = kKey, .size_y = a.tokens * a.heads, .stride_y = kKey});
    const CUtensorMap map_kv = encode({.base = a.pages,
                                       .size_x = kKey,
                                       .size_y = kTokens,
                                       .size_z = a.page_count,
                                       .stride_y = kKey,
                                       .stride_z = kTokens * kKey});
    constexpr int kBytes = sizeof(Shared) + 1024;
    allow_shared_memory(reinterpret_cast<const void*>(latent_attention_kernel), kBytes);
    launch_early(latent_attention_kernel, dim3(static_cast<unsigned>(ranges * row_blocks)), kThreads, kBytes, stream, map_q,
                 map_kv, p);
    mla::combine_ranges(p, a.max_q, stream);
    require(cudaGetLastError(), "latent_attention");
}

}  // namespace fathom::hopper
