// The router: affinities of all experts, the K best of each row (one warp per row), and the way back.
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"

namespace fathom {
namespace cuda {
namespace {

constexpr int kRowsPerBlock = 4;

struct Rule {
    bool softmax, limited, sum_of_two, normalize;
    int64_t experts, chosen, n_group, topk_group;
    float factor;

    Rule(const RouteRule& rule, int64_t e, int64_t k)
        : softmax(rule.scoring_func == ScoringFunc::kSoftmax),
          limited(rule.topk_method != TopkMethod::kGreedy && rule.n_group > 1),
          sum_of_two(rule.topk_method == TopkMethod::kNoauxTc),
          normalize(rule.norm_topk_prob),
          experts(e),
          chosen(k),
          n_group(rule.n_group),
          topk_group(rule.topk_group),
          factor(static_cast<float>(rule.routed_scaling_factor)) {}
};

// s = softmax or sigmoid of z, which it may be, by a warp.
__device__ void affinities(float* s, const float* z, const Rule& rule, int lane) {
    if (!rule.softmax) {
#pragma unroll 4
        for (int64_t e = lane; e < rule.experts; e += kWarp) s[e] = 1.0f / (1.0f + expf(-z[e]));
        return;
    }
    float top = -INFINITY, sum = 0;
#pragma unroll 4
    for (int64_t e = lane; e < rule.experts; e += kWarp) top = fmaxf(top, z[e]);
    top = warp_max(top);
#pragma unroll 4
    for (int64_t e = lane; e < rule.experts; e += kWarp) sum += expf(z[e] - top);
    const float factor = 1.0f / warp_sum(sum);
#pragma unroll 4
    for (int64_t e = lane; e < rule.experts; e += kWarp) s[e] = factor * expf(z[e] - top);
}

// Index of the largest of n values in shared memory that is not taken (-infinity: taken or never there), ties to the lowest;
// takes it out through `taken`.
__device__ int take_best(const float* values, unsigned char* taken, int64_t n, int lane) {
    float best = 0;
    int at = INT_MAX;
    for (int64_t i = lane; i < n; i += kWarp)
        if (!taken[i] && (at == INT_MAX || values[i] > best)) best = values[i], at = static_cast<int>(i);
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(kAll, best, step);
        const int other_at = __shfl_xor_sync(kAll, at, step);
        const bool better = other_at != INT_MAX && (at == INT_MAX || other > best || (other == best && other_at < at));
        if (better) best = other, at = other_at;
    }
    __syncwarp();
    if (lane == 0) taken[at] = 1;
    __syncwarp();
    return at;
}

// Sets the values of all but the topk_group best groups to -infinity.
__device__ void keep_best_groups(float* values, float* group_values, unsigned char* taken, const Rule& rule, int lane) {
    const int64_t size = rule.experts / rule.n_group;
    for (int64_t g = lane; g < rule.n_group; g += kWarp) {
        float first = -INFINITY, second = -INFINITY;
        for (int64_t i = 0; i < size; ++i) {
            const float value = values[g * size + i];
            second = fmaxf(second, fminf(first, value));
            first = fmaxf(first, value);
        }
        group_values[g] = rule.sum_of_two && size > 1 ? first + second : first;
        taken[g] = 0;
    }
    __syncwarp();
    for (int64_t i = 0; i < rule.topk_group; ++i) take_best(group_values, taken, rule.n_group, lane);
    for (int64_t e = lane; e < rule.experts; e += kWarp)
        if (!taken[e / size]) values[e] = -INFINITY;
    __syncwarp();
}

// weights[k] = s[indices[k]], normalised and scaled, by a warp. The sum is in order of k.
__device__ void choice_weights(float* weights, const float* s, const int32_t* indices, const Rule& rule, int lane, int* fault) {
    float sum = 0;
    for (int64_t first = 0; first < rule.chosen; first += kWarp) {
        const int count = static_cast<int>(min(rule.chosen - first, int64_t{kWarp}));
        const int32_t expert = lane < count ? indices[first + lane] : 0;
        const bool known = expert >= 0 && expert < rule.experts;
        if (!known) *fault = kExpertIndex;
        if (!__all_sync(kAll, known)) return;
        const float mine = s[expert];
        for (int k = 0; k < count; ++k) sum += __shfl_sync(kAll, mine, k);
    }
    for (int64_t k = lane; k < rule.chosen; k += kWarp) {
        const float mine = s[indices[k]];
        weights[k] = (rule.normalize ? mine / (sum + 1e-20f) : mine) * rule.factor;
    }
}

// Floats that a warp works in: affinities and what is compared [2 E], then scores of groups, whose place is the choices' later.
__host__ __device__ int64_t floats_of(const Rule& rule) {
    return 2 * rule.experts + (rule.n_group > rule.chosen ? rule.n_group : rule.chosen);
}
int64_t shared_bytes(const Rule& rule) { return kRowsPerBlock * (4 * floats_of(rule) + rule.experts); }

// Shared memory: the floats of every warp, then what is taken [E]. Nothing is read back from slower memory.
__global__ void __launch_bounds__(kRowsPerBlock* kWarp)
    route_kernel(Rows<int32_t> indices, Rows<float> weights, Rows<float> scores, Rows<float> logits, const float* bias,
                 Rule rule, int64_t n, int* fault) {
    begin_before_large();
    extern __shared__ float shared[];
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + warp, experts = rule.experts;
    if (row >= n) return;
    float *s = shared + warp * floats_of(rule), *values = s + experts, *group_values = values + experts;
    auto* taken = reinterpret_cast<unsigned char*>(shared + kRowsPerBlock * floats_of(rule)) + warp * experts;
    // A lane reads what it wrote itself.
#pragma unroll 4
    for (int64_t e = lane; e < experts; e += kWarp) s[e] = logits.at(row)[e];
    affinities(s, s, rule, lane);
    for (int64_t e = lane; e < experts; e += kWarp) {
        scores.at(row)[e] = s[e];
        values[e] = bias == nullptr ? s[e] : s[e] + bias[e];
    }
    __syncwarp();
    if (rule.limited) keep_best_groups(values, group_values, taken, rule, lane);
    for (int64_t e = lane; e < experts; e += kWarp) taken[e] = 0;
    __syncwarp();
    auto* choice = reinterpret_cast<int32_t*>(group_values);
    for (int64_t k = 0; k < rule.chosen; ++k) {
        const int best = take_best(values, taken, experts, lane);
        if (lane == 0) choice[k] = best;
    }
    __syncwarp();
    for (int64_t k = lane; k < rule.chosen; k += kWarp) indices.at(row)[k] = choice[k];
    choice_weights(weights.at(row), s, choice, rule, lane, fault);
}

__global__ void __launch_bounds__(kRowsPerBlock* kWarp)
    route_weights_kernel(Rows<float> weights, Rows<float> scores, Rows<float> logits, Rows<int32_t> indices, Rule rule,
                         int64_t n, int* fault) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
    if (row >= n) return;
    affinities(scores.at(row), logits.at(row), rule, lane);
    __syncwarp();
    choice_weights(weights.at(row), scores.at(row), indices.at(row), rule, lane, fault);
}

// With S the sum of the chosen scores: w_i = a s_i / S gives ds_i = (a / S) (g_i - sum_j g_j s_j / S) on the chosen; w_i = a
// s_i gives a g_i. Then through s' of softmax or sigmoid. Shared memory: ds [E] per warp.
__global__ void __launch_bounds__(kRowsPerBlock* kWarp)
    route_backward_kernel(Rows<float> dlogits, Rows<float> dweights, Rows<float> dscores, Rows<float> scores,
                          Rows<int32_t> indices, Rule rule, int64_t n, int* fault) {
    extern __shared__ float shared[];
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + warp, experts = rule.experts;
    if (row >= n) return;
    float* ds = shared + warp * experts;
    const float* s = scores.at(row);
    for (int64_t e = lane; e < experts; e += kWarp) ds[e] = dscores.data == nullptr ? 0.0f : dscores.at(row)[e];
    __syncwarp();
    if (lane == 0 && dweights.data != nullptr) {
        const int32_t* choice = indices.at(row);
        const float* g = dweights.at(row);
        float sum = 1e-20f, mean = 0;
        for (int64_t k = 0; k < rule.chosen; ++k) {
            if (choice[k] < 0 || choice[k] >= experts) {
                *fault = kExpertIndex;
                continue;
            }
            sum += s[choice[k]];
            mean = fmaf(g[k], s[choice[k]], mean);
        }
        mean /= sum;
        for (int64_t k = 0; k < rule.chosen; ++k)
            if (choice[k] >= 0 && choice[k] < experts)
                ds[choice[k]] += rule.normalize ? rule.factor / sum * (g[k] - mean) : rule.factor * g[k];
    }
    __syncwarp();
    float shift = 0;
    for (int64_t e = lane; e < experts && rule.softmax; e += kWarp) shift = fmaf(ds[e], s[e], shift);
    shift = warp_sum(shift);
    for (int64_t e = lane; e < experts; e += kWarp)
        dlogits.at(row)[e] = rule.softmax ? s[e] * (ds[e] - shift) : ds[e] * s[e] * (1.0f - s[e]);
}

void check_route(const char* op, const Tensor& indices, const Tensor& weights, const Tensor& scores, const RouteRule& rule) {
    check_tensor(op, "scores", scores, DType::kF32, {kAny, kAny});
    check_tensor(op, "indices", indices, DType::kI32, {scores.dim(0), kAny});
    if (weights) check_tensor(op, "weights", weights, DType::kF32, {scores.dim(0), indices.dim(1)});
    const int64_t experts = scores.dim(1);
    check(rule.n_group >= 1 && experts % rule.n_group == 0, "route: n_group must divide the number of experts");
    check(rule.topk_group >= 1 && rule.topk_group <= rule.n_group, "route: topk_group is not in [1, n_group]");
    const bool limited = rule.topk_method != TopkMethod::kGreedy;
    check(indices.dim(1) <= (limited ? experts / rule.n_group * rule.topk_group : experts),
          "route: more experts per token than may be chosen");
    check(experts <= 1024, "route: more than 1024 experts");
}

unsigned blocks_of(int64_t n) { return static_cast<unsigned>(ceil_div(n, kRowsPerBlock)); }

}  // namespace
}  // namespace cuda

void CudaOps::route(const Tensor& indices, const Tensor& weights, const Tensor& scores, const Tensor& logits,
                    const Tensor& bias, const RouteRule& rule) {
    cuda::check_route("route", indices, weights, scores, rule);
    const int64_t n = scores.dim(0), experts = scores.dim(1);
    check_tensor("route", "logits", logits, DType::kF32, {n, experts});
    if (bias) check_tensor("route", "bias", bias, DType::kF32, {experts});
    if (n == 0) return;
    const cuda::Rule known(rule, experts, indices.dim(1));
    cuda::launch_early(cuda::route_kernel, dim3(cuda::blocks_of(n)), cuda::kRowsPerBlock * cuda::kWarp,
                       static_cast<size_t>(cuda::shared_bytes(known)), lane_->stream, cuda::Rows<int32_t>(indices),
                       cuda::Rows<float>(weights), cuda::Rows<float>(scores), cuda::Rows<float>(logits),
                       bias ? bias.as<float>() : nullptr, known, n, fault_.device());
    cuda::check_launch("route");
}

void CudaOps::route_weights(const Tensor& weights, const Tensor& scores, const Tensor& logits, const Tensor& indices,
                            const RouteRule& rule) {
    cuda::check_route("route_weights", indices, weights, scores, rule);
    const int64_t n = scores.dim(0), experts = scores.dim(1);
    check_tensor("route_weights", "logits", logits, DType::kF32, {n, experts});
    if (n == 0) return;
    cuda::route_weights_kernel<<<cuda::blocks_of(n), cuda::kRowsPerBlock * cuda::kWarp, 0, lane_->stream>>>(
        cuda::Rows<float>(weights), cuda::Rows<float>(scores), cuda::Rows<float>(logits), cuda::Rows<int32_t>(indices),
        cuda::Rule(rule, experts, indices.dim(1)), n, fault_.device());
    cuda::check_launch("route_weights");
}

void CudaOps::route_backward(const Tensor& dlogits, const Tensor& dweights, const Tensor& dscores, const Tensor& scores,
                             const Tensor& indices, const RouteRule& rule) {
    cuda::check_route("route_backward", indices, dweights, scores, rule);
    const int64_t n = scores.dim(0), experts = scores.dim(1);
    check_tensor("route_backward", "dlogits", dlogits, DType::kF32, {n, experts});
    if (dscores) check_tensor("route_backward", "dscores", dscores, DType::kF32, {n, experts});
    if (n == 0) return;
    const auto bytes = static_cast<size_t>(cuda::kRowsPerBlock * experts * 4);
    cuda::route_backward_kernel<<<cuda::blocks_of(n), cuda::kRowsPerBlock * cuda::kWarp, bytes, lane_->stream>>>(
        cuda::Rows<float>(dlogits), cuda::Rows<float>(dweights), cuda::Rows<float>(dscores), cuda::Rows<float>(scores),
        cuda::Rows<int32_t>(indices), cuda::Rule(rule, experts, indices.dim(1)), n, fault_.device());
    cuda::check_launch("route_backward");
}

}  // namespace fathom
