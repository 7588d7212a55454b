// Causal attention forward in bf16 on tensor cores (mma.sync, Ampere and later), as attention.cu says it. A block has 64
// queries of one head, a warp 16 of them; keys come in tiles of 64, the next one while this one is worked on. P is rounded to
// bf16 for P V, its sum is not. 2 (d_q + d_v) FLOP per (query, key).
#include "cuda/attention_tensor.cuh"

namespace fathom::cuda {
namespace {

template <int kQ, int kV>
__global__ void __launch_bounds__(kTensorThreads) forward_kernel(const __grid_constant__ AttentionProblem p) {
    using QueryTile = RowTile<kTile, kQ>;
    using ValueTile = RowTile<kTile, kV>;
    extern __shared__ __align__(16) Bf16 space[];
    Bf16 *const queries = space, *const stages = space + QueryTile::kElements;
    constexpr int kStage = QueryTile::kElements + ValueTile::kElements;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, row0 = static_cast<int>(threadIdx.x) / kWarp * 16;
    const Sequence s(p, blockIdx.z);
    const int64_t first = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kTile, head = blockIdx.y;  // long ones first
    if (first >= s.len_q) return;
    const int64_t count = min(s.len_q - first, int64_t{kTile}), last = s.visible(first + count - 1);
    QueryTile::fetch(queries, p.q.data,
                     [&](int i, int c) { return i < count ? channels_of(p.q, s.q0 + first + i, head, c) : nullptr; });
    const auto fetch = [&](int64_t begin, int stage) {
        QueryTile::fetch(stages + stage * kStage, p.k.data,
                         [&](int j, int c) { return begin + j < last ? key_channels(p, s, begin + j, head, c) : nullptr; });
        ValueTile::fetch(stages + stage * kStage + QueryTile::kElements, p.v.data, [&](int j, int c) {
            return begin + j < last ? channels_of(p.v, s.k0 + begin + j, head, c) : nullptr;
        });
    };
    // Rows lane / 4 and lane / 4 + 8 of the warp's 16.
    int64_t visible[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) visible[i] = s.visible(first + min(int64_t{row0 + lane / 4 + 8 * i}, count - 1));
    constexpr float kLog2E = 1.4426950408889634f;
    const float scale = p.scale * kLog2E;
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, out[kV / 8][4]{};
    fetch(0, 0);
    for (int64_t begin = 0, stage = 0; begin < last; begin += kTile, stage ^= 1) {
        wait_for_copies();
        if (begin + kTile < last) fetch(begin + kTile, static_cast<int>(stage ^ 1));
        const Bf16* const keys = stages + stage * kStage;
        float scores[kTile / 8][4]{};
        multiply_by_rows<kTile, kQ, kTile>(scores, queries, row0, keys);
        float largest[2] = {top[0], top[1]}, part[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int64_t key = begin + 8 * j + lane % 4 * 2 + e % 2;
                scores[j][e] = key < visible[e / 2] ? scale * scores[j][e] : -INFINITY;
                largest[e / 2] = fmaxf(largest[e / 2], scores[j][e]);
            }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            largest[i] = fmaxf(largest[i], __shfl_xor_sync(kAll, largest[i], 1));
            largest[i] = fmaxf(largest[i], __shfl_xor_sync(kAll, largest[i], 2));
        }
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                scores[j][e] = exp2f(scores[j][e] - largest[e / 2]);
                part[e / 2] += scores[j][e];
            }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            part[i] += __shfl_xor_sync(kAll, part[i], 1);
            part[i] += __shfl_xor_sync(kAll, part[i], 2);
            const float factor = exp2f(top[i] - largest[i]);
            sum[i] = fmaf(sum[i], factor, part[i]);
            top[i] = largest[i];
#pragma unroll
            for (int j = 0; j < kV / 8; ++j) out[j][2 * i] *= factor, out[j][2 * i + 1] *= factor;
        }
        multiply_weights<kTile, kV>(out, scores, keys + QueryTile::kElements);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = row0 + lane / 4 + 8 * i;
        if (row >= count) continue;
        const int64_t at = s.q0 + first + row;
#pragma unroll
        for (int j = 0; j < kV / 8; ++j)
            store_pair(p.o, at, head, 8 * j + lane % 4 * 2, out[j][2 * i] / sum[i], out[j][2 * i + 1] / sum[i]);
        if (lane % 4 == 0) p.lse[at * p.lse_row + head] = top[i] / kLog2E + logf(sum[i]);
    }
}

template <int kQ, int kV>
constexpr int64_t kForwardBytes = 2 * (3 * RowTile<kTile, kQ>::kElements + 2 * RowTile<kTile, kV>::kElements);

template <int kQ, int kV>
void launch(cudaStream_t stream, const AttentionProblem& p, dim3 grid) {
    constexpr int kBytes = static_cast<int>(kForwardBytes<kQ, kV>);
    static const bool raised = (raise_shared_memory(forward_kernel<kQ, kV>, kBytes), true);
    (void)raised;
    forward_kernel<kQ, kV><<<grid, kTensorThreads, kBytes, stream>>>(p);
}

bool aligned(const HeadRows& x) {
    return x.data == nullptr || (x.type == DType::kBF16 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.row % 8 == 0 &&
                                 x.head % 8 == 0 && x.width % 8 == 0);
}

// Shared memory that a block may ask for: 227 KiB on an H100, 99 KiB on consumer cards, where the widest heads do not fit.
int64_t shared_memory_limit() {
    static const int bytes = [] {
        int device = 0, limit = 0;
        check_cuda(cudaGetDevice(&device), "asking for the GPU");
        check_cuda(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for shared memory");
        return limit;
    }();
    return bytes;
}

}  // namespace

bool suits_tensor_cores(const AttentionProblem& p) {
    for (const HeadRows* x : {&p.q, &p.o, &p.k, &p.k_shared, &p.v, &p.dout, &p.dq, &p.dk, &p.dv})
        if (!aligned(*x)) return false;
    if (p.q.width > 128 && shared_memory_limit() < kForwardBytes<192, 128>) return false;
    return p.block_table == nullptr && p.lanes_per_row == 1 && p.q.width <= 192 && p.v.width <= 128;
}

void run_tensor_attention(cudaStream_t stream, const AttentionProblem& p, int64_t heads, int64_t sequences, int64_t max_q) {
    const dim3 grid(static_cast<unsigned>(ceil_div(max_q, kTile)), static_cast<unsigned>(heads),
                    static_cast<unsigned>(sequences));
    if (p.q.width <= 64 && p.v.width <= 64) {
        launch<64, 64>(stream, p, grid);
    } else if (p.q.width <= 128) {
        launch<128, 128>(stream, p, grid);
    } else {
        launch<192, 128>(stream, p, grid);
    }
    check_launch("attention");
}

}  // namespace fathom::cuda
