// Attention backward in bf16 on tensor cores, as attention_backward.cu says it: a kernel per key tile (dK, dV; queries 32 at a
// time in ascending order) and one per query tile (dQ; keys 32 at a time). A warp has 16 rows of the 64 of its block; scores of
// the tile stay in registers and are the left operand of the next product, rounded to bf16.
#include "cuda/attention_tensor.cuh"

namespace fathom::cuda {
namespace {

constexpr int kStep = 32;  // queries, or keys, at a time

// S^T and dP^T of 64 keys (rows) and 32 queries (columns) become dK and dV.
template <int kQ, int kV>
__global__ void __launch_bounds__(kTensorThreads) key_kernel(const __grid_constant__ AttentionProblem p) {
    using KeyTile = RowTile<kTile, kQ>;
    using ValueTile = RowTile<kTile, kV>;
    using QueryStep = RowTile<kStep, kQ>;
    using OutputStep = RowTile<kStep, kV>;
    extern __shared__ __align__(16) Bf16 space[];
    Bf16 *const keys = space, *const values = keys + KeyTile::kElements, *const queries = values + ValueTile::kElements,
                *const douts = queries + QueryStep::kElements;
    __shared__ float lse[kStep], delta[kStep];
    const int lane = static_cast<int>(threadIdx.x) % kWarp, row0 = static_cast<int>(threadIdx.x) / kWarp * 16;
    const Sequence s(p, blockIdx.z);
    const int64_t key0 = static_cast<int64_t>(blockIdx.x) * kTile, head = blockIdx.y, heads = gridDim.y;
    if (key0 >= s.len_k) return;
    KeyTile::fetch(keys, p.k.data,
                   [&](int j, int c) { return key0 + j < s.len_k ? key_channels(p, s, key0 + j, head, c) : nullptr; });
    ValueTile::fetch(values, p.v.data,
                     [&](int j, int c) { return key0 + j < s.len_k ? channels_of(p.v, s.k0 + key0 + j, head, c) : nullptr; });
    float dk[kQ / 8][4]{}, dv[kV / 8][4]{};
    // Query tiles are counted from the sequence's first query; the first that sees a key of this tile.
    const int64_t start = max(int64_t{0}, key0 - (s.len_k - s.len_q)) / kStep * kStep;
    for (int64_t query0 = start; query0 < s.len_q; query0 += kStep) {
        __syncthreads();
        QueryStep::fetch(queries, p.q.data, [&](int i, int c) {
            return query0 + i < s.len_q ? channels_of(p.q, s.q0 + query0 + i, head, c) : nullptr;
        });
        OutputStep::fetch(douts, p.dout.data, [&](int i, int c) {
            return query0 + i < s.len_q ? channels_of(p.dout, s.q0 + query0 + i, head, c) : nullptr;
        });
        if (threadIdx.x < kStep && query0 + threadIdx.x < s.len_q) {
            const int64_t row = s.q0 + query0 + threadIdx.x;
            lse[threadIdx.x] = p.lse[row * p.lse_row + head];
            delta[threadIdx.x] = p.delta[row * heads + head];
        }
        wait_for_copies();
        float weights[kStep / 8][4]{}, ds[kStep / 8][4]{};
        multiply_by_rows<kStep, kQ, kTile>(weights, keys, row0, queries);
        multiply_by_rows<kStep, kV, kTile>(ds, values, row0, douts);
#pragma unroll
        for (int j = 0; j < kStep / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int column = 8 * j + lane % 4 * 2 + e % 2;
                const int64_t query = query0 + column, key = key0 + row0 + lane / 4 + e / 2 * 8;
                const bool seen = query < s.len_q && key < s.visible(query);
                weights[j][e] = seen ? expf(p.scale * weights[j][e] - lse[column]) : 0.0f;
                ds[j][e] = seen ? p.scale * weights[j][e] * (ds[j][e] - delta[column]) : 0.0f;
            }
        multiply_weights<kStep, kV>(dv, weights, douts);
        multiply_weights<kStep, kQ>(dk, ds, queries);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int64_t key = key0 + row0 + lane / 4 + 8 * i, row = s.k0 + key;
        if (key >= s.len_k) continue;
#pragma unroll
        for (int j = 0; j < kV / 8; ++j) store_pair(p.dv, row, head, 8 * j + lane % 4 * 2, dv[j][2 * i], dv[j][2 * i + 1]);
#pragma unroll
        for (int j = 0; j < kQ / 8; ++j) {
            const int64_t c = 8 * j + lane % 4 * 2, behind = c - p.k.width;
            store_pair(p.dk, row, head, c, dk[j][2 * i], dk[j][2 * i + 1]);
            if (behind < 0 || behind >= p.dk_shared.width) continue;
            float* const shared =
                static_cast<float*>(p.dk_shared.data) + row * p.dk_shared.row + head * p.dk_shared.head + behind;
            shared[0] = dk[j][2 * i];
            shared[1] = dk[j][2 * i + 1];
        }
    }
}

// S and dP of 64 queries (rows) and 32 keys (columns) become dQ.
template <int kQ, int kV>
__global__ void __launch_bounds__(kTensorThreads) query_kernel(const __grid_constant__ AttentionProblem p) {
    using QueryTile = RowTile<kTile, kQ>;
    using OutputTile = RowTile<kTile, kV>;
    using KeyStep = RowTile<kStep, kQ>;
    using ValueStep = RowTile<kStep, kV>;
    extern __shared__ __align__(16) Bf16 space[];
    Bf16 *const queries = space, *const douts = queries + QueryTile::kElements, *const keys = douts + OutputTile::kElements,
                *const values = keys + KeyStep::kElements;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, row0 = static_cast<int>(threadIdx.x) / kWarp * 16;
    const Sequence s(p, blockIdx.z);
    const int64_t query0 = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kTile, head = blockIdx.y, heads = gridDim.y;
    if (query0 >= s.len_q) return;
    const int64_t count = min(s.len_q - query0, int64_t{kTile}), last = s.visible(query0 + count - 1);
    QueryTile::fetch(queries, p.q.data,
                     [&](int i, int c) { return i < count ? channels_of(p.q, s.q0 + query0 + i, head, c) : nullptr; });
    OutputTile::fetch(douts, p.dout.data,
                      [&](int i, int c) { return i < count ? channels_of(p.dout, s.q0 + query0 + i, head, c) : nullptr; });
    float lse[2], delta[2], dq[kQ / 8][4]{};
    int64_t visible[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int64_t query = query0 + min(int64_t{row0 + lane / 4 + 8 * i}, count - 1), row = s.q0 + query;
        lse[i] = p.lse[row * p.lse_row + head];
        delta[i] = p.delta[row * heads + head];
        visible[i] = s.visible(query);
    }
    for (int64_t key0 = 0; key0 < last; key0 += kStep) {
        __syncthreads();
        KeyStep::fetch(keys, p.k.data,
                       [&](int j, int c) { return key0 + j < last ? key_channels(p, s, key0 + j, head, c) : nullptr; });
        ValueStep::fetch(values, p.v.data,
                         [&](int j, int c) { return key0 + j < last ? channels_of(p.v, s.k0 + key0 + j, head, c) : nullptr; });
        wait_for_copies();
        float weights[kStep / 8][4]{}, ds[kStep / 8][4]{};
        multiply_by_rows<kStep, kQ, kTile>(weights, queries, row0, keys);
        multiply_by_rows<kStep, kV, kTile>(ds, douts, row0, values);
#pragma unroll
        for (int j = 0; j < kStep / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const bool seen = key0 + 8 * j + lane % 4 * 2 + e % 2 < visible[e / 2];
                const float weight = seen ? expf(p.scale * weights[j][e] - lse[e / 2]) : 0.0f;
                ds[j][e] = seen ? p.scale * weight * (ds[j][e] - delta[e / 2]) : 0.0f;
            }
        multiply_weights<kStep, kQ>(dq, ds, keys);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = row0 + lane / 4 + 8 * i;
        if (row >= count) continue;
#pragma unroll
        for (int j = 0; j < kQ / 8; ++j)
            store_pair(p.dq, s.q0 + query0 + row, head, 8 * j + lane % 4 * 2, dq[j][2 * i], dq[j][2 * i + 1]);
    }
}

template <int kQ, int kV>
void launch(cudaStream_t stream, const AttentionProblem& p, dim3 key_grid, dim3 query_grid) {
    constexpr int kBytes = 2 * (RowTile<kTile, kQ>::kElements + RowTile<kTile, kV>::kElements + RowTile<kStep, kQ>::kElements +
                                RowTile<kStep, kV>::kElements);
    static const bool raised =
        (raise_shared_memory(key_kernel<kQ, kV>, kBytes), raise_shared_memory(query_kernel<kQ, kV>, kBytes), true);
    (void)raised;
    key_kernel<kQ, kV><<<key_grid, kTensorThreads, kBytes, stream>>>(p);
    query_kernel<kQ, kV><<<query_grid, kTensorThreads, kBytes, stream>>>(p);
}

}  // namespace

void run_tensor_attention_backward(cudaStream_t stream, const AttentionProblem& p, int64_t heads, int64_t sequences,
                                   int64_t max_q, int64_t max_k) {
    const auto grid = [&](int64_t longest) {
        return dim3(static_cast<unsigned>(ceil_div(longest, kTile)), static_cast<unsigned>(heads),
                    static_cast<unsigned>(sequences));
    };
    if (p.q.width <= 64 && p.v.width <= 64) {
        launch<64, 64>(stream, p, grid(max_k), grid(max_q));
    } else if (p.q.width <= 128) {
        launch<128, 128>(stream, p, grid(max_k), grid(max_q));
    } else {
        launch<192, 128>(stream, p, grid(max_k), grid(max_q));
    }
    check_launch("attention_backward");
}

}  // namespace fathom::cuda
