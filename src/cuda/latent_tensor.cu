// Absorbed attention (DeepSeek-V2 2.1.2) in bf16 on tensor cores (mma.sync, Ampere and later): all heads of a query share its
// keys, the latents, whose first channels are the values. A block has 16 lanes, (query, head) pairs of one sequence; keys come
// in tiles of 32, counted from the sequence's first, the next one while this one is worked on. Of the eight warps four have
// half of the channels in Q K^T each; for P V every warp has its own columns and the whole softmax. P is rounded to bf16, its
// sum is not. Where lanes are too few to fill the GPU and the order of sums is free, keys are cut into ranges that a second
// kernel combines in order. 2 (2 c + r) FLOP per (lane, key); bytes 2 (c + r) per key and 16 lanes.
#include "cuda/attention_tile.cuh"
#include "cuda/mma.cuh"

namespace fathom::cuda {
namespace {

constexpr int kLanes = 16, kKeys = 32, kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kChunk = 16, kMostChunks = 4;  // columns of values at a time, and such chunks per warp
constexpr int64_t kMostWidth = 576, kMostValues = kChunk * kMostChunks * kWarps;
constexpr float kLog2E = 1.4426950408889634f;

// Where a range of keys leaves what it found, for the second kernel: [ranges, lanes of the batch, values] and base-2
// log-sum-exps.
struct Ranges {
    float* out = nullptr;
    float* lse = nullptr;
    int count = 1;
    int64_t keys = 0;   // of a range
    int64_t lanes = 0;  // of the batch
};

struct LatentTile {
    int64_t stride;  // elements of a row in shared memory: 16 bytes more than a multiple of 32, so that 8 rows differ in banks
    Bf16 *queries, *keys;
    float (*scores)[kLanes][kKeys + 1];  // of both halves of the channels

    __device__ LatentTile(Bf16* space, int64_t width) : stride(width + 8), queries(space), keys(space + kLanes * stride) {
        scores = reinterpret_cast<float(*)[kLanes][kKeys + 1]>(keys + 2 * kKeys * stride + 2 * kChunk);
    }
    static constexpr int64_t bytes(int64_t width) {
        return 2 * ((kLanes + 2 * kKeys) * (width + 8) + 2 * kChunk) + 2 * 4 * kLanes * (kKeys + 1);
    }
    // Rows [0, rows) of `width` channels; from(row): where it lies, or null for zeros.
    template <class From>
    __device__ void fetch(Bf16* to, int rows, int64_t width, const void* valid, const From& from) const {
        const int pieces = static_cast<int>(width / 8);
        for (int e = static_cast<int>(threadIdx.x); e < rows * pieces; e += kThreads) {
            const int row = e / pieces, c = e % pieces * 8;
            const Bf16* const source = from(row);
            copy_async(to + row * stride + c, source == nullptr ? valid : source + c, source == nullptr ? 0 : 16);
        }
    }
};

// scores[half][lane][key] of this warp's 8 keys and half of the channels.
__device__ void multiply_keys(const LatentTile& tile, const Bf16* keys, int64_t width) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int half = warp / 4, key = warp % 4 * 8;
    const int64_t middle = (width + 63) / 64 * 32, end = half == 0 ? min(middle, width) : width;
    float sum[4]{};
    for (int64_t c = half == 0 ? 0 : middle; c < end; c += 32) {
        uint32_t
            right[4];  // two steps of 16 channels, of which the second may be behind the end: there the next tile is written
        load_matrices<false>(right, keys + (key + lane % 8) * tile.stride + min(c + lane / 8 * 8, end - 8));
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            if (c + 16 * step >= end) break;
            uint32_t left[4];
            load_matrices<false>(left, tile.queries + lane % 16 * tile.stride + c + 16 * step + lane / 16 * 8);
            multiply_add(sum, left, right[2 * step], right[2 * step + 1]);
        }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) tile.scores[half][lane / 4 + e / 2 * 8][key + lane % 4 * 2 + e % 2] = sum[e];
}

// What a thread keeps of rows lane / 4 and lane / 4 + 8: of the softmax, and of its warp's columns of O.
struct LaneState {
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, out[kMostChunks][2][4]{};
    int64_t visible[2];

    // Weights of one tile of keys, as A of two products of 16 keys each. `scale` is in base 2.
    __device__ void weigh(uint32_t (&a)[2][4], const LatentTile& tile, int64_t begin, float scale) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float v[kKeys / 4], largest = top[i], part = 0;
#pragma unroll
            for (int e = 0; e < kKeys / 4; ++e) {
                const int row = lane / 4 + 8 * i, key = e / 2 * 8 + lane % 4 * 2 + e % 2;
                const float score = tile.scores[0][row][key] + tile.scores[1][row][key];
                v[e] = begin + key < visible[i] ? scale * score : -INFINITY;
                largest = fmaxf(largest, v[e]);
            }
            largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 2));
            const float base = largest == -INFINITY ? 0.0f : largest;  // a range may begin behind what the row sees
#pragma unroll
            for (float& x : v) part += x = exp2f(x - base);
            part += __shfl_xor_sync(kAll, part, 1);
            part += __shfl_xor_sync(kAll, part, 2);
            const float factor = exp2f(top[i] - base);
            sum[i] = fmaf(sum[i], factor, part);
            top[i] = largest;
#pragma unroll
            for (auto& chunk : out)
#pragma unroll
                for (auto& eight : chunk) eight[2 * i] *= factor, eight[2 * i + 1] *= factor;
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                a[step][i] = pack(v[4 * step], v[4 * step + 1]);
                a[step][i + 2] = pack(v[4 * step + 2], v[4 * step + 3]);
            }
        }
    }
    static __device__ __forceinline__ uint32_t pack(float x, float y) {
        const __nv_bfloat162 both = __floats2bfloat162_rn(x, y);
        return *reinterpret_cast<const uint32_t*>(&both);
    }
    // O += P V of the warp's chunks of columns.
    __device__ void add_values(const uint32_t (&a)[2][4], const LatentTile& tile, const Bf16* keys, int64_t values) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
        const int quarter = lane / 8;
#pragma unroll
        for (int i = 0; i < kMostChunks; ++i) {
            const int64_t column = (warp + kWarps * i) * kChunk;
            if (column >= values) break;
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                uint32_t b[4];
                load_matrices<true>(b,
                                    keys + (16 * step + quarter % 2 * 8 + lane % 8) * tile.stride + column + quarter / 2 * 8);
                multiply_add(out[i][0], a[step], b[0], b[1]);
                multiply_add(out[i][1], a[step], b[2], b[3]);
            }
        }
    }
};

// The result itself, or what a range found.
__device__ void store_lanes(const LaneState& state, const AttentionProblem& p, const Sequence& s, int64_t first, int64_t count,
                            const Ranges& ranges) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int64_t in_tile = lane / 4 + 8 * i;
        if (in_tile >= count) continue;
        const int64_t row = s.q0 + (first + in_tile) / p.lanes_per_row, head = (first + in_tile) % p.lanes_per_row;
        const int64_t at = blockIdx.y * ranges.lanes + s.q0 * p.lanes_per_row + first + in_tile;
        const float inverse = state.sum[i] > 0 ? 1.0f / state.sum[i] : 0.0f, lse = state.top[i] + log2f(state.sum[i]);
        if (warp == 0 && lane % 4 == 0) {
            if (ranges.count > 1)
                ranges.lse[at] = lse;
            else
                p.lse[row * p.lse_row + head] = lse / kLog2E;
        }
#pragma unroll
        for (int e = 0; e < 2 * kMostChunks; ++e) {
            const int64_t column = (warp + kWarps * (e / 2)) * kChunk + e % 2 * 8 + lane % 4 * 2;
            if (column >= p.v.width) break;
            const float x = state.out[e / 2][e % 2][2 * i] * inverse, y = state.out[e / 2][e % 2][2 * i + 1] * inverse;
            if (ranges.count > 1)
                *reinterpret_cast<float2*>(ranges.out + at * p.v.width + column) = float2{x, y};
            else  // + 0: see attention.cu
                *reinterpret_cast<__nv_bfloat162*>(static_cast<Bf16*>(p.o.data) + row * p.o.row + head * p.o.head + column) =
                    __floats2bfloat162_rn(x + 0.0f, y + 0.0f);
        }
    }
}

__global__ void __launch_bounds__(kThreads) latent_tensor_kernel(const __grid_constant__ AttentionProblem p, Ranges ranges) {
    begin_early();
    extern __shared__ __align__(16) Bf16 space[];
    const int64_t width = p.q.width;
    const LatentTile tile(space, width);
    const Sequence s(p, blockIdx.z);
    const int64_t lanes = s.len_q * p.lanes_per_row, first = static_cast<int64_t>(blockIdx.x) * kLanes;
    if (first >= lanes) return;
    const int64_t count = min(lanes - first, int64_t{kLanes}), seen = s.visible((first + count - 1) / p.lanes_per_row);
    const int64_t start = blockIdx.y * ranges.keys, last = ranges.count > 1 ? min(seen, start + ranges.keys) : seen;
    LaneState state;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int64_t in_tile = static_cast<int64_t>(threadIdx.x) % kWarp / 4 + 8 * i;
        state.visible[i] = min(last, s.visible((first + min(in_tile, count - 1)) / p.lanes_per_row));
    }
    const auto* const q = static_cast<const Bf16*>(p.q.data);
    tile.fetch(tile.queries, kLanes, width, q, [&](int i) {
        const int64_t row = s.q0 + (first + i) / p.lanes_per_row, head = (first + i) % p.lanes_per_row;
        return i < count ? q + row * p.q.row + head * p.q.head : nullptr;
    });
    const auto* const latents = static_cast<const Bf16*>(p.k.data);
    const auto fetch = [&](int64_t begin, Bf16* to) {
        tile.fetch(to, kKeys, width, latents,
                   [&](int j) { return begin + j < last ? latents + s.key_offset(p, begin + j, p.k.row) : nullptr; });
    };
    Bf16 *now = tile.keys, *next = tile.keys + kKeys * tile.stride;
    if (start < last) fetch(start, now);
    for (int64_t begin = start; begin < last; begin += kKeys) {
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 0;");
        __syncthreads();
        if (begin + kKeys < last) fetch(begin + kKeys, next);
        multiply_keys(tile, now, width);
        __syncthreads();
        uint32_t weights[2][4];
        state.weigh(weights, tile, begin, p.scale * kLog2E);
        state.add_values(weights, tile, now, p.v.width);
        Bf16* const other = now;
        now = next;
        next = other;
    }
    store_lanes(state, p, s, first, count, ranges);
}

// u = sum over ranges of 2^(lse_r - lse) u_r, in order. One block per lane of the batch.
__global__ void __launch_bounds__(128) combine_ranges_kernel(const __grid_constant__ AttentionProblem p, Ranges ranges) {
    begin_early();
    const int64_t lane = blockIdx.x, row = lane / p.lanes_per_row, head = lane % p.lanes_per_row;
    float top = -INFINITY, total = 0;
    for (int r = 0; r < ranges.count; ++r) top = fmaxf(top, ranges.lse[r * ranges.lanes + lane]);
    for (int r = 0; r < ranges.count; ++r) total += exp2f(ranges.lse[r * ranges.lanes + lane] - top);
    if (threadIdx.x == 0) p.lse[row * p.lse_row + head] = (top + log2f(total)) / kLog2E;
    for (int64_t c = threadIdx.x; c < p.v.width; c += 128) {
        float sum = 0;
        for (int r = 0; r < ranges.count; ++r) {
            const int64_t at = r * ranges.lanes + lane;
            const float weight = exp2f(ranges.lse[at] - top);
            if (weight > 0) sum = fmaf(weight, ranges.out[at * p.v.width + c], sum);
        }
        static_cast<Bf16*>(p.o.data)[row * p.o.row + head * p.o.head + c] = __float2bfloat16_rn(sum / total + 0.0f);
    }
}

bool even_rows(const HeadRows& x, int64_t multiple) {
    return x.type == DType::kBF16 && reinterpret_cast<uintptr_t>(x.data) % (2 * static_cast<uintptr_t>(multiple)) == 0 &&
           x.row % multiple == 0 && x.head % multiple == 0;
}

}  // namespace

bool suits_latent_tensor_cores(const AttentionProblem& p) {
    return even_rows(p.q, 8) && even_rows(p.k, 8) && even_rows(p.o, 2) && p.page % 8 == 0 && p.q.width % kChunk == 0 &&
           p.q.width <= kMostWidth && p.v.width % kChunk == 0 && p.v.width <= kMostValues;
}

void run_latent_tensor(cudaStream_t stream, Workspace& workspace, const AttentionProblem& p, int64_t rows, const Spans& spans,
                       bool one_range) {
    const int64_t sequences = spans.cu_q.dim(0) - 1, tiles = ceil_div(spans.max_q * p.lanes_per_row, kLanes);
    if (sequences == 0 || tiles == 0) return;
    constexpr int64_t kMaxGrid = 65535, kBlocks = 264, kLeastTiles = 4;
    check(sequences <= kMaxGrid, "latent_attention: too many sequences in one batch");
    // What a recorded step may depend on: the table's width, not today's lengths.
    const int64_t most_keys = p.block_table == nullptr ? spans.max_k : spans.block_table.dim(1) * p.block;
    const int64_t key_tiles = ceil_div(most_keys, kKeys);
    Ranges ranges;
    if (!one_range)
        ranges.count =
            static_cast<int>(std::clamp<int64_t>(kBlocks / (sequences * tiles), 1, ceil_div(key_tiles, kLeastTiles)));
    ranges.keys = ceil_div(key_tiles, int64_t{ranges.count}) * kKeys;
    ranges.lanes = rows * p.lanes_per_row;
    if (ranges.count > 1) {
        workspace.begin(ranges.count * ranges.lanes * (p.v.width + 1) * 4 + 256);
        ranges.out = workspace.take<float>(ranges.count * ranges.lanes * p.v.width);
        ranges.lse = workspace.take<float>(ranges.count * ranges.lanes);
    }
    const auto bytes = static_cast<int>(LatentTile::bytes(p.q.width));
    static const bool raised = [] {  // above 48 KiB only when asked for
        check_cuda(cudaFuncSetAttribute(latent_tensor_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(LatentTile::bytes(kMostWidth))),
                   "shared memory");
        return true;
    }();
    (void)raised;
    launch_early(latent_tensor_kernel,
                 dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(ranges.count), static_cast<unsigned>(sequences)),
                 kThreads, static_cast<size_t>(bytes), stream, p, ranges);
    if (ranges.count > 1)
        launch_early(combine_ranges_kernel, dim3(static_cast<unsigned>(ranges.lanes)), 128, 0, stream, p, ranges);
    check_launch("latent_attention");
}

}  // namespace fathom::cuda
