// Causal attention forward (FlashAttention, Dao et al. 2022), expanded and absorbed. For each tile of 64 keys, counted from the
// sequence's first key:
//   S = scale Q K^T;  m' = max(m, max S);  P = exp(S - m');  l = l e^(m - m') + sum P;  O = O e^(m - m') + P V
// and o = O / l, lse = m + log l. A block has 64 lanes and 128 output channels; blocks of further channels compute the scores
// again. Keys are never split among blocks, so a query's bits depend on its sequence alone.
#include "cuda/attention_tile.cuh"
#include "cuda/cuda_ops.h"

namespace fathom {
namespace cuda {
namespace {

__device__ __forceinline__ float half_warp_sum(float x) {
#pragma unroll
    for (int step = 8; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
    return x;
}
__device__ __forceinline__ float half_warp_max(float x) {
#pragma unroll
    for (int step = 8; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
    return x;
}

__global__ void __launch_bounds__(256) attention_kernel(const __grid_constant__ AttentionProblem p, int column_blocks) {
    __shared__ Slices slices;
    __shared__ float p_tile[kTile][kPad];                   // [key][lane]
    auto& values = *reinterpret_cast<Rightside*>(&slices);  // one is done with before the other begins
    const int thread = static_cast<int>(threadIdx.x), tx = thread % 16, ty = thread / 16;
    const Sequence s(p, blockIdx.z / column_blocks);
    const int64_t columns = static_cast<int64_t>(blockIdx.z % column_blocks) * kColumns;
    const int64_t lanes = s.len_q * p.lanes_per_row, first = static_cast<int64_t>(blockIdx.x) * kTile;
    if (first >= lanes) return;
    const int64_t count = min(lanes - first, int64_t{kTile});
    const auto row_of = [&](int lane) { return s.q0 + (first + lane) / p.lanes_per_row; };
    const auto head_of = [&](int lane) { return p.lanes_per_row == 1 ? blockIdx.y : (first + lane) % p.lanes_per_row; };
    const int64_t head = blockIdx.y;  // of keys and values; they have one when lanes are pairs
    int64_t visible[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) visible[i] = s.visible((first + min(int64_t{4 * ty + i}, count - 1)) / p.lanes_per_row);
    const int64_t last = s.visible((first + count - 1) / p.lanes_per_row);
    float top[4], sum[4];
    Output out{};
#pragma unroll
    for (int i = 0; i < 4; ++i) top[i] = -INFINITY, sum[i] = 0;

    for (int64_t begin = 0; begin < last; begin += kTile) {
        float scores[4][4]{};
        add_products(
            scores, slices, p.q.width,
            [&](int lane, int64_t c) { return lane < count ? at(p.q, row_of(lane), head_of(lane), c) : 0.0f; },
            [&](int key, int64_t c) { return begin + key < last ? key_at(p, s, begin + key, head, c) : 0.0f; });
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float largest = top[i], part = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                scores[i][j] = begin + tx + 16 * j < visible[i] ? p.scale * scores[i][j] : -INFINITY;
                largest = fmaxf(largest, scores[i][j]);
            }
            largest = half_warp_max(largest);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float weight = expf(scores[i][j] - largest);
                part += weight;
                p_tile[tx + 16 * j][4 * ty + i] = weight;
            }
            const float factor = expf(top[i] - largest);
            sum[i] = fmaf(sum[i], factor, half_warp_sum(part));
            top[i] = largest;
#pragma unroll
            for (int j = 0; j < kColumns / 16; ++j) out[i][j] *= factor;
        }
        add_outputs(out, p_tile, values, [&](int key, int c) {
            return begin + key < last && columns + c < p.v.width ? value_at(p, s, begin + key, head, columns + c) : 0.0f;
        });
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int lane = 4 * ty + i;
        if (lane >= count) continue;
        const int64_t row = row_of(lane), h = head_of(lane);
#pragma unroll
        for (int j = 0; j < kColumns / 16; ++j) {
            const int64_t c = columns + tx + 16 * j;
            // + 0 turns -0 into +0, which a chain may or may not have met according to how many masked keys it passed.
            if (c < p.v.width) store(p.o.data, p.o.type, row * p.o.row + h * p.o.head + c, out[i][j] / sum[i] + 0.0f);
        }
        if (columns == 0 && tx == 0) p.lse[row * p.lse_row + h] = top[i] + logf(sum[i]);
    }
}

}  // namespace

HeadRows head_rows(const Tensor& x) {
    if (!x) return {};
    return {x.data, x.dtype, x.stride[0], x.rank > 2 ? x.stride[1] : 0, x.dim(-1)};
}

AttentionProblem expanded_problem(const char* op, const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                                  const Tensor& k_shared, const Tensor& v, const Spans& spans, double scale) {
    check_tensor(op, "q", q, {kAny, kAny, kAny});
    const int64_t n = q.dim(0), h = q.dim(1), d_q = q.dim(2);
    check_tensor(op, "k", k, {kAny, h, kAny});
    const int64_t keys = k.dim(0), d_shared = d_q - k.dim(2);
    if (k_shared) check_tensor(op, "k_shared", k_shared, {keys, d_shared});
    check(k_shared || d_shared == 0, "attention: q is wider than k and k_shared is absent");
    check_tensor(op, "v", v, {keys, h, kAny});
    check_tensor(op, "o", o, {n, h, v.dim(2)});
    check_tensor(op, "lse", lse, DType::kF32, {n, h});
    check_tensor(op, "cu_q", spans.cu_q, DType::kI32, {kAny});
    check_tensor(op, "cu_k", spans.cu_k, DType::kI32, {spans.cu_q.dim(0)});
    AttentionProblem p;
    p.q = head_rows(q);
    p.o = head_rows(o);
    p.k = head_rows(k);
    p.k_shared = head_rows(k_shared);
    p.v = head_rows(v);
    p.lse = lse.as<float>();
    p.lse_row = lse.stride[0];
    p.cu_q = spans.cu_q.as<int32_t>();
    p.cu_k = spans.cu_k.as<int32_t>();
    p.scale = static_cast<float>(scale);
    return p;
}

namespace {

void run_attention(cudaStream_t stream, const char* op, const AttentionProblem& p, int64_t heads, const Spans& spans) {
    const int64_t sequences = spans.cu_q.dim(0) - 1, column_blocks = std::max<int64_t>(ceil_div(p.v.width, kColumns), 1);
    const int64_t tiles = ceil_div(spans.max_q * p.lanes_per_row, kTile);
    if (tiles == 0 || sequences == 0) return;
    constexpr int64_t kMaxGrid = 65535;
    check(sequences * column_blocks <= kMaxGrid, "attention: too many sequences in one batch");
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(heads),
                    static_cast<unsigned>(sequences * column_blocks));
    attention_kernel<<<grid, 256, 0, stream>>>(p, static_cast<int>(column_blocks));
    check_launch(op);
}

}  // namespace
}  // namespace cuda

void CudaOps::attention(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& k_shared,
                        const Tensor& v, const Spans& spans, double scale) {
    const cuda::AttentionProblem p = cuda::expanded_problem("attention", o, lse, q, k, k_shared, v, spans, scale);
    if (q.dim(0) == 0) return;
    const cuda::AttentionSizes sizes{q.dim(0), k.dim(0), q.dim(1), spans.cu_q.dim(0) - 1};
    if (compute_ == DType::kBF16 && cuda::suits_hopper(p, sizes)) {
        cuda::run_hopper_attention(*lane_, p, sizes);
    } else if (compute_ == DType::kBF16 && cuda::suits_tensor_cores(p)) {
        cuda::run_tensor_attention(lane_->stream, p, q.dim(1), spans.cu_q.dim(0) - 1, spans.max_q);
    } else {
        cuda::run_attention(lane_->stream, "attention", p, q.dim(1), spans);
    }
}

void CudaOps::latent_attention(const Tensor& u, const Tensor& lse, const Tensor& q, const Weight& cache, const Spans& spans,
                               double scale) {
    constexpr auto kOp = "latent_attention";
    check(cache.scheme == Scheme::kPlain, "latent_attention: this device has no quantized cache");
    const Tensor& latents = cache.codes;
    check_tensor(kOp, "q", q, {kAny, kAny, kAny});
    const int64_t n = q.dim(0), h = q.dim(1), width = q.dim(2);
    check_tensor(kOp, "u", u, {n, h, kAny});
    check_tensor(kOp, "lse", lse, DType::kF32, {n, h});
    check_tensor(kOp, "cu_q", spans.cu_q, DType::kI32, {kAny});
    check_tensor(kOp, "cu_k", spans.cu_k, DType::kI32, {spans.cu_q.dim(0)});
    check(u.dim(2) <= width, "latent_attention: u is wider than q");
    cuda::AttentionProblem p;
    p.q = cuda::head_rows(q);
    p.o = cuda::head_rows(u);
    p.lse = lse.as<float>();
    p.lse_row = lse.stride[0];
    p.cu_q = spans.cu_q.as<int32_t>();
    p.cu_k = spans.cu_k.as<int32_t>();
    p.scale = static_cast<float>(scale);
    p.lanes_per_row = h;
    if (spans.block_table) {
        check_tensor(kOp, "latents", latents, {kAny, kAny, width});
        check_tensor(kOp, "block_table", spans.block_table, DType::kI32, {spans.cu_q.dim(0) - 1, kAny});
        check(cuda::ceil_div(spans.max_k, latents.dim(1)) <= spans.block_table.dim(1),
              "latent_attention: the block table has too few pages for a sequence");
        p.block_table = spans.block_table.as<int32_t>();
        p.table_row = spans.block_table.stride[0];
        p.block = latents.dim(1);
        p.page = latents.stride[0];
        if (n > 0 && compute_ == DType::kBF16 && !deterministic_ && cuda::suits_hopper_latent(u, lse, q, latents, spans))
            return cuda::run_hopper_latent(*lane_, u, lse, q, latents, spans, scale);
    } else {
        check_tensor(kOp, "latents", latents, {kAny, width});
    }
    p.k = {latents.data, latents.dtype, latents.stride[static_cast<size_t>(latents.rank) - 2], 0, width};
    p.v = p.k;
    p.v.width = u.dim(2);
    if (n > 0 && compute_ == DType::kBF16 && cuda::suits_latent_tensor_cores(p)) {
        cuda::run_latent_tensor(lane_->stream, lane_->workspace, p, n, spans, deterministic_);
    } else if (n > 0) {
        cuda::run_attention(lane_->stream, kOp, p, 1, spans);
    }
}

}  // namespace fathom
