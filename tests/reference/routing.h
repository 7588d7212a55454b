// Routing and balance losses of ReferenceOps; included by reference_ops.cpp only.
#pragma once

#include <limits>
#include <numeric>
#include <vector>

#include "reference/attention.h"
#include "reference/reference_ops.h"

namespace fathom {

inline constexpr double kTinySum = 1e-20;  // keeps 0 / 0 away where all chosen scores underflow (reference 4.3)

// Positions of the `count` largest, best first; the lower index wins a tie.
template <class T>
std::vector<int64_t> largest(const std::vector<T>& values, int64_t count) {
    std::vector<bool> taken(values.size());
    std::vector<int64_t> best;
    while (static_cast<int64_t>(best.size()) < count) {
        size_t at = values.size();
        for (size_t i = 0; i < values.size(); ++i)
            if (!taken[i] && (at == values.size() || values[i] > values[at])) at = i;
        check(at < values.size(), "route: fewer candidates than choices");
        taken[at] = true;
        best.push_back(static_cast<int64_t>(at));
    }
    return best;
}

// Scores outside the best groups become -infinity.
template <class T>
void keep_best_groups(std::vector<T>& scores, const RouteRule& rule) {
    const size_t size = scores.size() / static_cast<size_t>(rule.n_group);
    std::vector<T> group_scores;
    for (size_t first = 0; first < scores.size(); first += size) {
        const std::vector<T> group(scores.begin() + static_cast<int64_t>(first),
                                   scores.begin() + static_cast<int64_t>(first + size));
        const bool two = rule.topk_method == TopkMethod::kNoauxTc && size > 1;
        T sum = 0;
        for (const int64_t i : largest(group, two ? 2 : 1)) sum += group[static_cast<size_t>(i)];
        group_scores.push_back(sum);
    }
    std::vector<bool> kept(group_scores.size());
    for (const int64_t g : largest(group_scores, rule.topk_group)) kept[static_cast<size_t>(g)] = true;
    for (size_t i = 0; i < scores.size(); ++i)
        if (!kept[i / size]) scores[i] = T(-std::numeric_limits<double>::infinity());
}

template <class T>
Values<T> affinities(const Values<T>& logits, ScoringFunc func) {
    using std::exp;
    Values<T> scores(logits.dim(0), logits.dim(1));
    for (int64_t i = 0; i < logits.dim(0); ++i) {
        std::vector<T> row;
        for (int64_t e = 0; e < logits.dim(1); ++e) row.push_back(logits(i, e));
        if (func == ScoringFunc::kSoftmax) softmax(row);
        for (int64_t e = 0; e < logits.dim(1); ++e) {
            const T z = row[static_cast<size_t>(e)];
            scores(i, e) = func == ScoringFunc::kSoftmax ? z : T(1) / (T(1) + exp(-z));
        }
    }
    return scores;
}

template <class T>
void ReferenceOps<T>::route(const Tensor& indices, const Tensor& weights, const Tensor& scores, const Tensor& logits,
                            const Tensor& bias, const RouteRule& rule) {
    const Values<T> s = affinities(Values<T>(logits), rule.scoring_func), b(bias);
    Values<int64_t> chosen(s.dim(0), indices.dim(1));
    for (int64_t i = 0; i < s.dim(0); ++i) {
        std::vector<T> biased;
        for (int64_t e = 0; e < s.dim(1); ++e) biased.push_back(bias ? s(i, e) + b(e) : s(i, e));
        if (rule.topk_method != TopkMethod::kGreedy && rule.n_group > 1) keep_best_groups(biased, rule);
        const std::vector<int64_t> best = largest(biased, chosen.dim(1));
        for (int64_t k = 0; k < chosen.dim(1); ++k) chosen(i, k) = best[static_cast<size_t>(k)];
    }
    chosen.store(indices);
    route_weights(weights, scores, logits, indices, rule);
}

template <class T>
void ReferenceOps<T>::route_weights(const Tensor& weights, const Tensor& scores, const Tensor& logits, const Tensor& indices,
                                    const RouteRule& rule) {
    const Values<T> s = affinities(Values<T>(logits), rule.scoring_func);
    const Values<int64_t> chosen(indices);
    Values<T> w(s.dim(0), chosen.dim(1));
    for (int64_t i = 0; i < s.dim(0); ++i) {
        T sum = 0;
        for (int64_t k = 0; k < chosen.dim(1); ++k) sum += s(i, chosen(i, k));
        for (int64_t k = 0; k < chosen.dim(1); ++k) {
            w(i, k) = s(i, chosen(i, k)) * T(rule.routed_scaling_factor);
            if (rule.norm_topk_prob) w(i, k) /= sum + T(kTinySum);
        }
    }
    w.store(weights);
    s.store(scores);
}

// ds from the weights (w_k = alpha s_k, over sum_j s_j when normalised), then through softmax or sigmoid.
template <class T>
void ReferenceOps<T>::route_backward(const Tensor& dlogits, const Tensor& dweights, const Tensor& dscores, const Tensor& scores,
                                     const Tensor& indices, const RouteRule& rule) {
    const Values<T> dw(dweights), s(scores);
    const Values<int64_t> chosen(indices);
    Values<T> ds(s.dim(0), s.dim(1)), dz(s.dim(0), s.dim(1));
    if (dscores) ds = Values<T>(dscores);
    const T alpha = rule.routed_scaling_factor;
    for (int64_t i = 0; i < s.dim(0); ++i) {
        T sum = kTinySum, dot = 0;
        for (int64_t k = 0; k < chosen.dim(1); ++k) {
            sum += s(i, chosen(i, k));
            dot += dw(i, k) * s(i, chosen(i, k));
        }
        for (int64_t k = 0; k < chosen.dim(1); ++k)
            ds(i, chosen(i, k)) += rule.norm_topk_prob ? alpha * (dw(i, k) / sum - dot / (sum * sum)) : alpha * dw(i, k);
        T mean = 0;
        for (int64_t e = 0; e < s.dim(1); ++e) mean += ds(i, e) * s(i, e);
        for (int64_t e = 0; e < s.dim(1); ++e) {
            dz(i, e) = rule.scoring_func == ScoringFunc::kSoftmax ? s(i, e) * (ds(i, e) - mean)
                                                                  : ds(i, e) * s(i, e) * (T(1) - s(i, e));
        }
    }
    dz.store(dlogits);
}

// dL/dP_i of one unit [begin, end) at the mean affinities P; the loss is linear in P but for kSquared.
template <class T>
std::vector<T> balance_coefficients(const std::vector<T>& mean, const Values<int64_t>& chosen, int64_t begin, int64_t end,
                                    const BalanceLoss& rule) {
    const auto experts = static_cast<int64_t>(mean.size()), group = experts / rule.devices;
    const auto tokens = static_cast<double>(end - begin);
    std::vector<double> count(mean.size()), first(mean.size()), sent(static_cast<size_t>(rule.devices));
    for (int64_t t = begin; t < end; ++t) {
        std::vector<bool> reached(sent.size());
        for (int64_t k = 0; k < chosen.dim(1); ++k) {
            count[static_cast<size_t>(chosen(t, k))] += 1;
            reached[static_cast<size_t>(chosen(t, k) / group)] = true;
        }
        first[static_cast<size_t>(chosen(t, 0))] += 1;
        for (size_t d = 0; d < sent.size(); ++d) sent[d] += reached[d] ? 1 : 0;
    }
    std::vector<T> coefficients;
    for (int64_t i = 0; i < experts; ++i) {
        const auto e = static_cast<size_t>(i), d = static_cast<size_t>(i / group);
        const double f = static_cast<double>(experts) / (static_cast<double>(chosen.dim(1)) * tokens);
        double device_count = 0;
        for (size_t j = d * static_cast<size_t>(group); j < (d + 1) * static_cast<size_t>(group); ++j) device_count += count[j];
        switch (rule.kind) {
            case BalanceLossKind::kExpert:
                coefficients.push_back(T(f * count[e]));
                break;
            case BalanceLossKind::kDevice:
                coefficients.push_back(T(f * device_count / static_cast<double>(group)));
                break;
            case BalanceLossKind::kCommunication:
                coefficients.push_back(
                    T(static_cast<double>(rule.devices) / (static_cast<double>(rule.device_limit) * tokens) * sent[d]));
                break;
            case BalanceLossKind::kSwitch:
                coefficients.push_back(T(static_cast<double>(experts) * first[e] / tokens));
                break;
            case BalanceLossKind::kGshard:
                coefficients.push_back(T(first[e] / tokens / static_cast<double>(experts)));
                break;
            case BalanceLossKind::kSquared:
                coefficients.push_back(mean[e] - T(1.0 / static_cast<double>(experts)));
                break;
        }
    }
    return coefficients;
}

template <class T>
void ReferenceOps<T>::balance_loss(const Tensor& loss, const Tensor& dscores, const Tensor& scores, const Tensor& indices,
                                   const Tensor& cu_seqlens, const BalanceLoss& rule) {
    const Values<T> s(scores);
    const Values<int64_t> chosen(indices);
    Values<T> total(loss), ds(dscores);
    std::vector<int64_t> bounds{0, s.dim(0)};
    if (rule.per_sequence) bounds = Values<int64_t>(cu_seqlens).data;
    const T alpha = rule.alpha / static_cast<double>(bounds.size() - 1);  // units are averaged
    for (size_t unit = 0; unit + 1 < bounds.size(); ++unit) {
        const int64_t begin = bounds[unit], end = bounds[unit + 1], experts = s.dim(1);
        if (begin == end) continue;
        const T tokens = static_cast<double>(end - begin);
        std::vector<T> mean(static_cast<size_t>(experts)), sums;
        for (int64_t t = begin; t < end; ++t) {
            sums.push_back(0);
            for (int64_t e = 0; e < experts; ++e) sums.back() += s(t, e);
            for (int64_t e = 0; e < experts; ++e) mean[static_cast<size_t>(e)] += s(t, e) / sums.back() / tokens;
        }
        const std::vector<T> c = balance_coefficients(mean, chosen, begin, end, rule);
        const bool squared = rule.kind == BalanceLossKind::kSquared;
        for (size_t e = 0; e < c.size(); ++e) total(0) += alpha * c[e] * (squared ? c[e] : mean[e]);
        for (int64_t t = begin; t < end; ++t) {  // p = s / S: dL/ds_e = (dL/dp_e - sum_j dL/dp_j p_j) / S
            const T sum = sums[static_cast<size_t>(t - begin)];
            T dot = 0;
            for (size_t e = 0; e < c.size(); ++e) dot += c[e] * s(t, static_cast<int64_t>(e)) / sum;
            for (int64_t e = 0; e < experts; ++e)
                ds(t, e) += T(squared ? 2 : 1) * alpha / tokens * (c[static_cast<size_t>(e)] - dot) / sum;
        }
    }
    total.store(loss);
    ds.store(dscores);
}

}  // namespace fathom
