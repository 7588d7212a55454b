// The auxiliary balance losses. All are sums over experts of c_i P_i (kSquared: of (P_i - 1/E)^2) with c_i from the counts, so
// dL/dP_i is all that differs; P is the mean over a unit's tokens of p = s / sum s, and ds_j = (g_j - sum_i g_i p_i) / sum s.
#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/cpu_ops.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {
namespace {

// What one unit (the batch, or one sequence) of T tokens contributes.
struct UnitStatistics {
    int64_t tokens = 0;
    std::vector<double> mean;     // P_i
    std::vector<int64_t> chosen;  // #{t chose i}
    std::vector<int64_t> first;   // #{t's first choice is i}
    std::vector<int64_t> sent;    // #{t chose an expert of device d}
};

double row_sum(const float* s, int64_t experts) {
    double sum = 0;
    for (int64_t e = 0; e < experts; ++e) sum += s[e];
    return std::max(sum, 1e-20);
}

UnitStatistics statistics_of(const Tensor& scores, const Tensor& indices, int64_t begin, int64_t end, int64_t devices) {
    const int64_t experts = scores.dim(1), chosen = indices.dim(1), per_device = experts / devices;
    const auto count = static_cast<size_t>(experts);
    UnitStatistics unit{end - begin, std::vector<double>(count), std::vector<int64_t>(count), std::vector<int64_t>(count),
                        std::vector<int64_t>(static_cast<size_t>(devices))};
    std::vector<int64_t> last_sent(static_cast<size_t>(devices), -1);
    for (int64_t t = begin; t < end; ++t) {
        const float* s = row(scores, t);
        const double factor = 1.0 / (row_sum(s, experts) * static_cast<double>(unit.tokens));
        for (int64_t e = 0; e < experts; ++e) unit.mean[static_cast<size_t>(e)] += s[e] * factor;
        for (int64_t k = 0; k < chosen; ++k) {
            const int32_t expert = row<int32_t>(indices, t)[k];
            check(expert >= 0 && expert < experts, "balance_loss: an expert index is out of range");
            ++unit.chosen[static_cast<size_t>(expert)];
            if (k == 0) ++unit.first[static_cast<size_t>(expert)];
            const auto device = static_cast<size_t>(expert / per_device);
            if (std::exchange(last_sent[device], t) != t) ++unit.sent[device];
        }
    }
    return unit;
}

// c_i = dL/dP_i (for kSquared at the current P), alpha left out.
std::vector<double> slopes(const UnitStatistics& unit, int64_t chosen, const BalanceLoss& rule) {
    const size_t experts = unit.mean.size();
    const size_t per_device = experts / static_cast<size_t>(rule.devices);
    const auto e = static_cast<double>(experts), tokens = static_cast<double>(unit.tokens);
    const double f = e / (static_cast<double>(chosen) * tokens);  // f_i = f chosen_i
    std::vector<double> slope(experts);
    for (size_t i = 0; i < experts; ++i) {
        const size_t device = i / per_device;
        switch (rule.kind) {
            case BalanceLossKind::kExpert:
                slope[i] = f * static_cast<double>(unit.chosen[i]);
                break;
            case BalanceLossKind::kDevice:
                for (size_t j = device * per_device; j < (device + 1) * per_device; ++j)
                    slope[i] += f * static_cast<double>(unit.chosen[j]) / static_cast<double>(per_device);
                break;
            case BalanceLossKind::kCommunication:
                slope[i] = static_cast<double>(rule.devices) / (static_cast<double>(rule.device_limit) * tokens) *
                           static_cast<double>(unit.sent[device]);
                break;
            case BalanceLossKind::kSwitch:
                slope[i] = e * static_cast<double>(unit.first[i]) / tokens;
                break;
            case BalanceLossKind::kGshard:
                slope[i] = static_cast<double>(unit.first[i]) / (tokens * e);
                break;
            case BalanceLossKind::kSquared:
                slope[i] = 2 * (unit.mean[i] - 1 / e);
                break;
        }
    }
    return slope;
}

double loss_of(const UnitStatistics& unit, const std::vector<double>& slope, BalanceLossKind kind) {
    double loss = 0;
    for (size_t i = 0; i < slope.size(); ++i)
        loss += kind == BalanceLossKind::kSquared ? slope[i] * slope[i] / 4 : slope[i] * unit.mean[i];
    return loss;
}

// dscores[t] += factor (c - c . p_t) / sum s_t, factor = alpha / (T units).
void add_gradient(const Tensor& dscores, const Tensor& scores, int64_t t, const std::vector<double>& slope, double factor) {
    const auto experts = static_cast<int64_t>(slope.size());
    const float* s = row(scores, t);
    const double sum = row_sum(s, experts);
    double mean = 0;
    for (int64_t e = 0; e < experts; ++e) mean += slope[static_cast<size_t>(e)] * s[e];
    mean /= sum;
    for (int64_t e = 0; e < experts; ++e)
        row(dscores, t)[e] += static_cast<float>(factor * (slope[static_cast<size_t>(e)] - mean) / sum);
}

}  // namespace

void CpuOps::balance_loss(const Tensor& loss, const Tensor& dscores, const Tensor& scores, const Tensor& indices,
                          const Tensor& cu_seqlens, const BalanceLoss& rule) {
    check_tensor("balance_loss", "scores", scores, DType::kF32, {kAny, kAny});
    const int64_t n = scores.dim(0), experts = scores.dim(1);
    check_tensor("balance_loss", "loss", loss, DType::kF32, {1});
    check_tensor("balance_loss", "dscores", dscores, DType::kF32, {n, experts});
    check_tensor("balance_loss", "indices", indices, DType::kI32, {n, kAny});
    check(rule.devices >= 1 && experts % rule.devices == 0, "balance_loss: devices must divide the number of experts");
    std::vector<int64_t> starts = {0, n};
    if (rule.per_sequence) {
        check_tensor("balance_loss", "cu_seqlens", cu_seqlens, DType::kI32, {kAny});
        starts.assign(cu_seqlens.as<int32_t>(), cu_seqlens.as<int32_t>() + cu_seqlens.dim(0));
        check(!starts.empty() && starts.front() == 0 && starts.back() == n, "balance_loss: cu_seqlens does not cover the rows");
    }
    starts.erase(std::unique(starts.begin(), starts.end()), starts.end());  // sequences without tokens are no units
    const auto units = static_cast<int64_t>(starts.size()) - 1;
    std::vector<double> losses(static_cast<size_t>(std::max<int64_t>(units, 0)));
    pool_.parallel_for(units, 1, [&](int64_t first, int64_t last, int) {
        for (int64_t u = first; u < last; ++u) {
            const int64_t begin = starts[static_cast<size_t>(u)], end = starts[static_cast<size_t>(u) + 1];
            const UnitStatistics unit = statistics_of(scores, indices, begin, end, rule.devices);
            const std::vector<double> slope = slopes(unit, indices.dim(1), rule);
            losses[static_cast<size_t>(u)] = loss_of(unit, slope, rule.kind);
            const double factor = rule.alpha / static_cast<double>((end - begin) * units);
            for (int64_t t = begin; t < end; ++t) add_gradient(dscores, scores, t, slope, factor);
        }
    });
    double sum = 0;
    for (const double value : losses) sum += value;
    if (units > 0) loss.as<float>()[0] += static_cast<float>(rule.alpha * sum / static_cast<double>(units));
}

}  // namespace fathom
