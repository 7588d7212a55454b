// Attention backward (Dao et al. 2022), P recomputed from lse:
//   delta = dO . O,  P = exp(S - lse),  dP = dO V^T,  dS = scale P (dP - delta),
//   dV = P^T dO,  dK = dS^T Q,  dQ = dS K.
// One kernel per key tile (dK, dV: query tiles in ascending order) and one per query tile (dQ: key tiles in ascending order),
// so that every sum has one owner and one order. A block has 128 channels of its output; others compute the scores again.
#include "cuda/attention_tile.cuh"
#include "cuda/cuda_ops.h"

namespace fathom {
namespace cuda {

namespace {

// delta[row, head] = dout . o, one warp each.
__global__ void __launch_bounds__(256) delta_kernel(AttentionProblem p, int64_t heads, int64_t pairs) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t pair = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / kWarp;
    if (pair >= pairs) return;
    float sum = 0;
    for (int64_t c = lane; c < p.o.width; c += kWarp)
        sum = fmaf(at(p.dout, pair / heads, pair % heads, c), at(p.o, pair / heads, pair % heads, c), sum);
    sum = warp_sum(sum);
    if (lane == 0) p.delta[pair] = sum;
}

// One tile of queries and keys: P, and if wanted dS.
struct TileGradient {
    const AttentionProblem& p;
    const Sequence& s;
    int64_t head, heads, query0, key0;  // first query and key of the tile, in the sequence

    // p_tile or ds_tile by (query, key), 0 where the query does not see the key.
    __device__ void compute(float (&result)[4][4], Slices& slices, bool derivative) const {
        const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
        float scores[4][4]{}, dp[4][4]{};
        add_products(
            scores, slices, p.q.width,
            [&](int q, int64_t c) { return query0 + q < s.len_q ? at(p.q, s.q0 + query0 + q, head, c) : 0.0f; },
            [&](int k, int64_t c) { return key0 + k < s.len_k ? key_at(p, s, key0 + k, head, c) : 0.0f; });
        if (derivative) {
            add_products(
                dp, slices, p.v.width,
                [&](int q, int64_t c) { return query0 + q < s.len_q ? at(p.dout, s.q0 + query0 + q, head, c) : 0.0f; },
                [&](int k, int64_t c) { return key0 + k < s.len_k ? value_at(p, s, key0 + k, head, c) : 0.0f; });
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int64_t query = query0 + 4 * ty + i, row = s.q0 + query;
            const bool inside = query < s.len_q;
            const float lse = inside ? p.lse[row * p.lse_row + head] : 0.0f;
            const float delta = inside && derivative ? p.delta[row * heads + head] : 0.0f;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const bool seen = inside && key0 + tx + 16 * j < s.visible(query);
                const float weight = seen ? expf(p.scale * scores[i][j] - lse) : 0.0f;
                result[i][j] = derivative ? p.scale * weight * (dp[i][j] - delta) : weight;
            }
        }
    }
};

// Which 128 channels of [dv | dk with its shared part] a block has.
struct OutputChannels {
    bool value;
    int64_t begin;
    __device__ OutputChannels(const AttentionProblem& p, int64_t index) {
        const int64_t value_blocks = (p.v.width + kColumns - 1) / kColumns;
        value = index < value_blocks;
        begin = (value ? index : index - value_blocks) * kColumns;
    }
};

__global__ void __launch_bounds__(256) key_gradient_kernel(const __grid_constant__ AttentionProblem p, int column_blocks) {
    __shared__ Slices slices;
    __shared__ float tile[kTile][kPad];  // [query][key]
    auto& rows = *reinterpret_cast<Rightside*>(&slices);
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
    const Sequence s(p, blockIdx.z / column_blocks);
    const OutputChannels mine(p, blockIdx.z % column_blocks);
    const int64_t key0 = static_cast<int64_t>(blockIdx.x) * kTile, head = blockIdx.y;
    if (key0 >= s.len_k) return;
    // The first query that sees this tile's first key; tiles of queries are counted from the sequence's first.
    const int64_t first = max(int64_t{0}, key0 - (s.len_k - s.len_q)) / kTile * kTile;
    Output out{};
    for (int64_t query0 = first; query0 < s.len_q; query0 += kTile) {
        float part[4][4];
        TileGradient{p, s, head, gridDim.y, query0, key0}.compute(part, slices, !mine.value);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) tile[4 * ty + i][tx + 16 * j] = part[i][j];
        const HeadRows& from = mine.value ? p.dout : p.q;
        add_outputs(out, tile, rows, [&](int q, int c) {
            const bool inside = query0 + q < s.len_q && mine.begin + c < from.width;
            return inside ? at(from, s.q0 + query0 + q, head, mine.begin + c) : 0.0f;
        });
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int64_t key = key0 + 4 * ty + i, row = s.k0 + key;
        if (key >= s.len_k) continue;
#pragma unroll
        for (int j = 0; j < kColumns / 16; ++j) {
            const int64_t c = mine.begin + tx + 16 * j;
            const bool shared = !mine.value && c >= p.k.width;
            const HeadRows& to = mine.value ? p.dv : shared ? p.dk_shared : p.dk;
            const int64_t channel = shared ? c - p.k.width : c;
            if (channel < to.width) store(to.data, to.type, row * to.row + head * to.head + channel, out[i][j]);
        }
    }
}

__global__ void __launch_bounds__(256) query_gradient_kernel(const __grid_constant__ AttentionProblem p, int column_blocks) {
    __shared__ Slices slices;
    __shared__ float tile[kTile][kPad];  // [key][query]
    auto& rows = *reinterpret_cast<Rightside*>(&slices);
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
    const Sequence s(p, blockIdx.z / column_blocks);
    const int64_t columns = static_cast<int64_t>(blockIdx.z % column_blocks) * kColumns;
    const int64_t query0 = static_cast<int64_t>(blockIdx.x) * kTile, head = blockIdx.y;
    if (query0 >= s.len_q) return;
    const int64_t last = s.visible(min(s.len_q, query0 + kTile) - 1);
    Output out{};
    for (int64_t key0 = 0; key0 < last; key0 += kTile) {
        float part[4][4];
        TileGradient{p, s, head, gridDim.y, query0, key0}.compute(part, slices, true);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) tile[tx + 16 * j][4 * ty + i] = part[i][j];
        add_outputs(out, tile, rows, [&](int k, int c) {
            const bool inside = key0 + k < s.len_k && columns + c < p.q.width;
            return inside ? key_at(p, s, key0 + k, head, columns + c) : 0.0f;
        });
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int64_t query = query0 + 4 * ty + i;
        if (query >= s.len_q) continue;
#pragma unroll
        for (int j = 0; j < kColumns / 16; ++j) {
            const int64_t c = columns + tx + 16 * j;
            if (c < p.q.width) store(p.dq.data, p.dq.type, (s.q0 + query) * p.dq.row + head * p.dq.head + c, out[i][j]);
        }
    }
}

template <class T>
void sum_shared(cudaStream_t stream, const Tensor& dk_shared, const float* per_head, int64_t heads) {
    const Rows<T> to(dk_shared);
    const int64_t width = dk_shared.dim(1);
    loop(stream, "attention_backward", dk_shared.dim(0), width, [=] __device__(int64_t i, int64_t c) {
        float sum = 0;
        for (int64_t j = 0; j < heads; ++j) sum += per_head[(i * heads + j) * width + c];
        to.at(i)[c] = narrow<T>(sum);
    });
}

}  // namespace
}  // namespace cuda

void CudaOps::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dk_shared, const Tensor& dv,
                                 const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& k_shared, const Tensor& v,
                                 const Tensor& o, const Tensor& lse, const Spans& spans, double scale) {
    constexpr auto kOp = "attention_backward";
    cuda::AttentionProblem p = cuda::expanded_problem(kOp, o, lse, q, k, k_shared, v, spans, scale);
    const int64_t n = q.dim(0), m = k.dim(0), h = q.dim(1), shared = q.dim(2) - k.dim(2);
    check_tensor(kOp, "dq", dq, {n, h, q.dim(2)});
    check_tensor(kOp, "dk", dk, {m, h, k.dim(2)});
    check_tensor(kOp, "dv", dv, {m, h, v.dim(2)});
    check_tensor(kOp, "dout", dout, {n, h, v.dim(2)});
    if (k_shared) check_tensor(kOp, "dk_shared", dk_shared, {m, shared});
    if (n == 0 || m == 0) return;
    const int64_t sequences = spans.cu_q.dim(0) - 1;
    p.dout = cuda::head_rows(dout);
    p.dq = cuda::head_rows(dq);
    p.dk = cuda::head_rows(dk);
    p.dv = cuda::head_rows(dv);
    if (const cuda::AttentionSizes sizes{n, m, h, sequences};
        compute_ == DType::kBF16 && cuda::suits_hopper(p, sizes) && (!k_shared || dk_shared.dtype == DType::kBF16)) {
        cuda::run_hopper_attention_backward(lane_->stream, lane_->workspace, p, sizes, dk_shared);
        return;
    }
    lane_->workspace.begin((n * h + m * h * shared) * 4);
    p.delta = lane_->workspace.take<float>(n * h);
    auto* per_head = lane_->workspace.take<float>(m * h * shared);
    p.dk_shared = {per_head, DType::kF32, h * shared, shared, shared};
    const int64_t query_columns = cuda::ceil_div(p.q.width, cuda::kColumns),
                  key_columns = query_columns + cuda::ceil_div(p.v.width, cuda::kColumns);
    check(sequences * key_columns <= 65535, "attention_backward: too many sequences in one batch");
    const auto grid = [&](int64_t longest, int64_t columns) {
        return dim3(static_cast<unsigned>(cuda::ceil_div(longest, cuda::kTile)), static_cast<unsigned>(h),
                    static_cast<unsigned>(sequences * columns));
    };
    cuda::delta_kernel<<<static_cast<unsigned>(cuda::ceil_div(n * h, 8)), 256, 0, lane_->stream>>>(p, h, n * h);
    if (compute_ == DType::kBF16 && cuda::suits_tensor_cores(p)) {
        cuda::run_tensor_attention_backward(lane_->stream, p, h, sequences, spans.max_q, spans.max_k);
    } else {
        cuda::key_gradient_kernel<<<grid(spans.max_k, key_columns), 256, 0, lane_->stream>>>(p, static_cast<int>(key_columns));
        cuda::query_gradient_kernel<<<grid(spans.max_q, query_columns), 256, 0, lane_->stream>>>(
            p, static_cast<int>(query_columns));
    }
    cuda::check_launch(kOp);
    if (!k_shared) return;
    cuda::with_activation(kOp, dk_shared.dtype,
                          [&](auto type) { cuda::sum_shared<decltype(type)>(lane_->stream, dk_shared, per_head, h); });
}

}  // namespace fathom
