#include "rl/policy_loss.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace fathom {
namespace {

constexpr double kStdEpsilon = 1e-4;

struct Moments {
    double mean = 0, std = 0;
    bool equal = true;  // all values are one number
};

Moments moments(std::span<const double> values) {
    double sum = 0, square = 0, first = 0;
    int64_t count = 0;
    Moments m;
    for (const double value : values) {
        if (std::isnan(value)) continue;
        if (count++ == 0) first = value;
        m.equal &= value == first;
        sum += value;
    }
    if (count == 0) return m;
    m.mean = m.equal ? first : sum / static_cast<double>(count);
    for (const double value : values) square += std::isnan(value) ? 0 : (value - m.mean) * (value - m.mean);
    if (count > 1) m.std = std::sqrt(square / static_cast<double>(count - 1));
    return m;
}

struct Kl {
    double value = 0, derivative = 0;  // by the policy's log-probability
};

Kl kl_estimate(KlEstimator estimator, double logprob, double reference) {
    const double log_r = reference - logprob;
    switch (estimator) {
        case KlEstimator::kK1:
            return {-log_r, 1};
        case KlEstimator::kK2:
            return {0.5 * log_r * log_r, -log_r};
        default:
            return {std::exp(log_r) - log_r - 1, 1 - std::exp(log_r)};
    }
}

double divisor(const PolicyLossOptions& options, const PolicyNormalizer& over, size_t length) {
    const auto at_least_one = [](int64_t n) { return static_cast<double>(std::max<int64_t>(n, 1)); };
    switch (options.loss_type) {
        case LossType::kGrpo:
            return at_least_one(over.answers) * static_cast<double>(length);
        case LossType::kDrGrpo:
            return at_least_one(over.answers) * at_least_one(options.max_completion_length);
        default:
            return at_least_one(over.tokens);
    }
}

// -min(ratio A, clip(ratio) A), and its derivative by log ratio.
Kl surrogate(double log_ratio, double advantage, const PolicyLossOptions& o, PolicyLossSums& sums) {
    const double ratio = std::exp(log_ratio), bounded = o.delta > 0 ? std::min(ratio, o.delta) : ratio;
    const double clipped = std::clamp(ratio, 1 - o.epsilon, 1 + o.epsilon_high);
    sums.ratio += ratio;
    sums.clipped_low += advantage < 0 && ratio < 1 - o.epsilon ? 1 : 0;
    sums.clipped_high += advantage > 0 && ratio > 1 + o.epsilon_high ? 1 : 0;
    if (clipped * advantage < bounded * advantage) return {-clipped * advantage, 0};
    return {-bounded * advantage, bounded < ratio ? 0 : -ratio * advantage};
}

}  // namespace

void PolicyLossSums::add(const PolicyLossSums& other) {
    loss += other.loss;
    kl += other.kl;
    ratio += other.ratio;
    tokens += other.tokens;
    clipped_low += other.clipped_low;
    clipped_high += other.clipped_high;
    masked_answers += other.masked_answers;
}

std::vector<double> group_advantages(std::span<const double> rewards, int64_t group_size, RewardScaling scaling) {
    check(group_size > 0 && std::ssize(rewards) % group_size == 0, "group_advantages: rewards come in whole groups");
    const double batch_std = moments(rewards).std;
    std::vector<double> advantages(rewards.size(), 0);
    for (size_t begin = 0; begin < rewards.size(); begin += static_cast<size_t>(group_size)) {
        const auto group = rewards.subspan(begin, static_cast<size_t>(group_size));
        const Moments m = moments(group);
        if (m.equal) continue;
        const double scale =
            scaling == RewardScaling::kNone ? 1 : (scaling == RewardScaling::kGroup ? m.std : batch_std) + kStdEpsilon;
        for (size_t i = 0; i < group.size(); ++i) {
            if (!std::isnan(group[i])) advantages[begin + i] = (group[i] - m.mean) / scale;
        }
    }
    return advantages;
}

PolicyLossSums policy_loss(std::span<double> dlogprob, const PolicyTokens& answer, const PolicyLossOptions& options,
                           const PolicyNormalizer& over) {
    const size_t length = answer.logprob.size();
    check(answer.old.size() == length && dlogprob.size() == length, "policy_loss: one number per token");
    check(options.beta == 0 || answer.reference.size() == length, "policy_loss: beta needs a reference");
    std::ranges::fill(dlogprob, 0.0);
    PolicyLossSums sums;
    if (length == 0) return sums;
    sums.tokens = static_cast<int64_t>(length);
    const auto at = [](std::span<const float> values, size_t t) { return static_cast<double>(values[t]); };
    double mean = 0;
    for (size_t t = 0; t < length; ++t) mean += (at(answer.logprob, t) - at(answer.old, t)) / static_cast<double>(length);
    if (options.off_policy_mask > 0 && answer.advantage < 0 && -mean > options.off_policy_mask) {
        sums.masked_answers = 1;
        return sums;
    }
    const bool whole = options.importance_sampling_level == ImportanceLevel::kSequence;
    const double scale = 1 / divisor(options, over, length);
    for (size_t t = 0; t < length; ++t) {
        const double log_ratio = at(answer.logprob, t) - at(answer.old, t);
        const Kl policy = surrogate(whole ? mean : log_ratio, answer.advantage, options, sums);
        sums.loss += scale * policy.value;
        if (whole) {  // every token moves the one ratio by 1 / length
            for (double& d : dlogprob) d += scale * policy.derivative / static_cast<double>(length);
        } else {
            dlogprob[t] += scale * policy.derivative;
        }
        if (options.beta == 0) continue;
        Kl kl = kl_estimate(options.kl_estimator, at(answer.logprob, t), at(answer.reference, t));
        sums.kl += kl.value;
        if (options.unbiased_kl) {
            const double ratio = std::exp(log_ratio);
            kl = {ratio * kl.value, ratio * (kl.value + kl.derivative)};
        }
        sums.loss += scale * options.beta * kl.value;
        dlogprob[t] += scale * options.beta * kl.derivative;
    }
    return sums;
}

}  // namespace fathom
