// The router: affinities, choice of experts, weights, and its backward (DeepSeekMoE 3, V2 2.2.2, V3 2.1.2). E <= a few hundred
// per token, so the choice is plain code: about 10 E K steps per token, no visible time beside the experts.
#include <limits>

#include "cpu/cpu_ops.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

void affinities(const Kernels& kernels, float* scores, const float* logits, int64_t experts, ScoringFunc scoring_func) {
    if (scoring_func == ScoringFunc::kSigmoid) return kernels.sigmoid(scores, logits, experts);
    const float shift = kernels.largest(logits, experts);
    kernels.exp_scaled(scores, logits, shift, 1.0f / kernels.sum_exp(logits, shift, experts), experts);
}

// Index of the largest of n values, ties to the lowest; takes it out by marking it in `taken`.
int64_t take_best(const float* values, bool* taken, int64_t n) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; ++i)
        if (!taken[i] && (best < 0 || values[i] > values[best])) best = i;
    taken[best] = true;
    return best;
}

float group_score(const float* values, int64_t size, TopkMethod method) {
    float first = kNever, second = kNever;
    for (int64_t i = 0; i < size; ++i) {
        second = std::max(second, std::min(first, values[i]));
        first = std::max(first, values[i]);
    }
    return method == TopkMethod::kNoauxTc && size > 1 ? first + second : first;
}

// Sets the values of all but the topk_group best groups to -infinity. `group_values` and `taken` have n_group entries.
void keep_best_groups(float* values, int64_t experts, const RouteRule& rule, float* group_values, bool* taken) {
    const int64_t size = experts / rule.n_group;
    for (int64_t g = 0; g < rule.n_group; ++g) {
        group_values[g] = group_score(values + g * size, size, rule.topk_method);
        taken[g] = false;
    }
    for (int64_t i = 0; i < rule.topk_group; ++i) take_best(group_values, taken, rule.n_group);
    for (int64_t g = 0; g < rule.n_group; ++g)
        if (!taken[g]) std::fill_n(values + g * size, size, kNever);
}

// weights[k] = scores[indices[k]], normalised and scaled as `rule` says.
void choice_weights(float* weights, const float* scores, const int32_t* indices, int64_t chosen, const RouteRule& rule) {
    float sum = 0;
    for (int64_t k = 0; k < chosen; ++k) sum += weights[k] = scores[indices[k]];
    const auto factor = static_cast<float>(rule.routed_scaling_factor);
    for (int64_t k = 0; k < chosen; ++k) weights[k] = (rule.norm_topk_prob ? weights[k] / (sum + 1e-20f) : weights[k]) * factor;
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
}

// Every index names an expert.
void check_indices(const int32_t* indices, int64_t chosen, int64_t experts) {
    for (int64_t k = 0; k < chosen; ++k)
        check(indices[k] >= 0 && indices[k] < experts, "route: an expert index is out of range");
}

}  // namespace

void CpuOps::route(const Tensor& indices, const Tensor& weights, const Tensor& scores, const Tensor& logits, const Tensor& bias,
                   const RouteRule& rule) {
    check_route("route", indices, weights, scores, rule);
    const int64_t n = scores.dim(0), experts = scores.dim(1), chosen = indices.dim(1);
    check_tensor("route", "logits", logits, DType::kF32, {n, experts});
    if (bias) check_tensor("route", "bias", bias, DType::kF32, {experts});
    const bool limited = rule.topk_method != TopkMethod::kGreedy && rule.n_group > 1;
    pool_.parallel_for(n, rows_per_task((10 + 2 * chosen) * experts), [&](int64_t begin, int64_t end, int thread) {
        auto* values = scratch_.of_thread<float>(thread, 3 * experts);
        float* group_values = values + experts;
        auto* taken = reinterpret_cast<bool*>(group_values + experts);
        for (int64_t i = begin; i < end; ++i) {
            float* s = row(scores, i);
            affinities(kernels_, s, row(logits, i), experts, rule.scoring_func);
            std::copy_n(s, experts, values);
            if (bias) kernels_.add(values, values, bias.as<float>(), experts);
            if (limited) keep_best_groups(values, experts, rule, group_values, taken);
            std::fill_n(taken, experts, false);
            auto* choice = row<int32_t>(indices, i);
            for (int64_t k = 0; k < chosen; ++k) choice[k] = static_cast<int32_t>(take_best(values, taken, experts));
            choice_weights(row(weights, i), s, choice, chosen, rule);
        }
    });
}

void CpuOps::route_weights(const Tensor& weights, const Tensor& scores, const Tensor& logits, const Tensor& indices,
                           const RouteRule& rule) {
    check_route("route_weights", indices, weights, scores, rule);
    const int64_t n = scores.dim(0), experts = scores.dim(1), chosen = indices.dim(1);
    check_tensor("route_weights", "logits", logits, DType::kF32, {n, experts});
    pool_.parallel_for(n, rows_per_task(10 * experts), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            check_indices(row<int32_t>(indices, i), chosen, experts);
            affinities(kernels_, row(scores, i), row(logits, i), experts, rule.scoring_func);
            choice_weights(row(weights, i), row(scores, i), row<int32_t>(indices, i), chosen, rule);
        }
    });
}

// With S the sum of the chosen scores: w_i = a s_i / S gives ds_i = (a / S) (g_i - sum_j g_j s_j / S) on the chosen; w_i = a
// s_i gives a g_i. Then through s' of softmax or sigmoid.
void CpuOps::route_backward(const Tensor& dlogits, const Tensor& dweights, const Tensor& dscores, const Tensor& scores,
                            const Tensor& indices, const RouteRule& rule) {
    check_route("route_backward", indices, dweights, scores, rule);
    const int64_t n = scores.dim(0), experts = scores.dim(1), chosen = indices.dim(1);
    check_tensor("route_backward", "dlogits", dlogits, DType::kF32, {n, experts});
    if (dscores) check_tensor("route_backward", "dscores", dscores, DType::kF32, {n, experts});
    const auto factor = static_cast<float>(rule.routed_scaling_factor);
    pool_.parallel_for(n, rows_per_task(6 * experts), [&](int64_t begin, int64_t end, int thread) {
        float* ds = scratch_.of_thread<float>(thread, experts);
        for (int64_t i = begin; i < end; ++i) {
            const float* s = row(scores, i);
            const auto* choice = row<int32_t>(indices, i);
            check_indices(choice, chosen, experts);
            if (dscores) std::copy_n(row(dscores, i), experts, ds);
            if (!dscores) std::fill_n(ds, experts, 0.0f);
            float sum = 0, mean = 0;
            for (int64_t k = 0; dweights && k < chosen; ++k) {
                sum += s[choice[k]];
                mean += row(dweights, i)[k] * s[choice[k]];
            }
            sum += 1e-20f;
            mean /= sum;
            for (int64_t k = 0; dweights && k < chosen; ++k) {
                const float g = row(dweights, i)[k];
                ds[choice[k]] += rule.norm_topk_prob ? factor / sum * (g - mean) : factor * g;
            }
            float* dz = row(dlogits, i);
            const float shift = rule.scoring_func == ScoringFunc::kSoftmax ? kernels_.dot(ds, s, experts) : 0.0f;
            for (int64_t e = 0; e < experts; ++e)
                dz[e] = rule.scoring_func == ScoringFunc::kSoftmax ? s[e] * (ds[e] - shift) : ds[e] * s[e] * (1.0f - s[e]);
        }
    });
}

}  // namespace fathom
