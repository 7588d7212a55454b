#include "rl/policy_loss.h"

#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/rng.h"

namespace fathom {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(GroupAdvantages, AreRewardsInDeviationsOfTheirGroup) {
    const std::vector<double> rewards{1, 0, 0, 1, 0, 0, 0, 1};
    const auto a = group_advantages(rewards, 4, RewardScaling::kGroup);
    EXPECT_NEAR(a[0], 0.5 / (std::sqrt(1.0 / 3) + 1e-4), 1e-12);
    EXPECT_NEAR(a[7], 0.75 / (0.5 + 1e-4), 1e-12);
    EXPECT_NEAR(group_advantages(rewards, 4, RewardScaling::kNone)[7], 0.75, 1e-12);
    const double all = std::sqrt((3 * 0.625 * 0.625 + 5 * 0.375 * 0.375) / 7);
    EXPECT_NEAR(group_advantages(rewards, 4, RewardScaling::kBatch)[7], 0.75 / (all + 1e-4), 1e-12);
}

TEST(GroupAdvantages, AreZeroWhereAGroupSaysNothing) {
    for (const RewardScaling scaling : {RewardScaling::kGroup, RewardScaling::kBatch, RewardScaling::kNone}) {
        const auto a = group_advantages(std::vector<double>{0.1, 0.1, 0.1, kNan, kNan, kNan, 2, kNan, kNan}, 3, scaling);
        EXPECT_EQ(a, std::vector<double>(9, 0.0));
    }
}

TEST(GroupAdvantages, AnswersWithoutAVerdictDoNotBiasTheOthers) {
    const auto with = group_advantages(std::vector<double>{1, 0, kNan, 0}, 4, RewardScaling::kGroup);
    const auto without = group_advantages(std::vector<double>{1, 0, 0}, 3, RewardScaling::kGroup);
    EXPECT_EQ(with, (std::vector<double>{without[0], without[1], 0, without[2]}));
}

struct Answer {
    std::vector<float> logprob, old, reference;
    double advantage;

    [[nodiscard]] PolicyTokens tokens() const { return {logprob, old, reference, advantage}; }
};

Answer random_answer(Rng& rng, size_t length, double spread) {
    Answer a;
    for (size_t t = 0; t < length; ++t) {
        const double x = -1 + 0.5 * rng.normal();
        a.logprob.push_back(static_cast<float>(x));
        a.old.push_back(static_cast<float>(x + spread * rng.normal()));
        a.reference.push_back(static_cast<float>(x + spread * rng.normal()));
    }
    a.advantage = rng.normal();
    return a;
}

// Every option against differences of the loss itself: steps of a power of two, so that the f32 inputs are exact.
TEST(PolicyLoss, ItsGradientIsTheDerivativeOfTheLossUnderEveryOption) {
    Rng rng(3);
    int64_t clipped = 0, checked = 0;
    for (int i = 0; i < 400; ++i) {
        PolicyLossOptions o;
        o.beta = i % 2 == 0 ? 0.3 : 0;
        o.kl_estimator = static_cast<KlEstimator>(i % 3);
        o.unbiased_kl = i % 5 == 0;
        o.delta = i % 7 == 0 ? 1.3 : 0;
        o.epsilon_high = 0.28;
        o.importance_sampling_level = static_cast<ImportanceLevel>(i / 2 % 2);
        o.loss_type = static_cast<LossType>(i / 4 % 4);
        o.max_completion_length = 50;
        const PolicyNormalizer over{3, 40};
        Answer a = random_answer(rng, 1 + rng.below(6), 0.3);
        std::vector<double> d(a.logprob.size()), unused(a.logprob.size());
        const PolicyLossSums sums = policy_loss(d, a.tokens(), o, over);
        clipped += sums.clipped_low + sums.clipped_high;
        for (size_t t = 0; t < d.size(); ++t) {
            const float kept = a.logprob[t], h = 0x1p-12F;
            const auto at = [&](float x) {
                a.logprob[t] = x;
                return policy_loss(unused, a.tokens(), o, over).loss;
            };
            const double up = at(kept + h), down = at(kept - h), middle = at(kept);
            if (std::abs(up - 2 * middle + down) > 1e-5) continue;  // a corner of the clipping lies between
            EXPECT_NEAR((up - down) / (2 * static_cast<double>(h)), d[t], 2e-5 * (1 + std::abs(d[t]))) << "case " << i;
            ++checked;
        }
    }
    EXPECT_GT(clipped, 100);
    EXPECT_GT(checked, 1000);
}

TEST(PolicyLoss, OnPolicyItIsThePolicyGradient) {
    for (const LossType type : {LossType::kGrpo, LossType::kBnpo, LossType::kDrGrpo, LossType::kDapo}) {
        const std::vector<float> logprob{-1, -2, -0.5};
        std::vector<double> d(3);
        const PolicyLossOptions options{.loss_type = type, .max_completion_length = 8};
        const auto sums = policy_loss(d, {logprob, logprob, {}, 2.0}, options, {.answers = 4, .tokens = 20});
        const double divisor = type == LossType::kGrpo ? 12 : type == LossType::kDrGrpo ? 32 : 20;
        for (const double g : d) EXPECT_DOUBLE_EQ(g, -2 / divisor);
        EXPECT_DOUBLE_EQ(sums.loss, -2.0 * 3 / divisor);
        EXPECT_EQ(sums.clipped_low + sums.clipped_high, 0);
    }
}

TEST(PolicyLoss, LeavesOutStaleAnswersThatWereBad) {
    const std::vector<float> now{-3, -3}, old{-1, -1};
    std::vector<double> d(2, 7);
    const PolicyLossOptions options{.off_policy_mask = 1.5};
    EXPECT_EQ(policy_loss(d, {now, old, {}, -1}, options, {1, 2}).masked_answers, 1);
    EXPECT_EQ(d, (std::vector<double>{0, 0}));
    EXPECT_EQ(policy_loss(d, {now, old, {}, 1}, options, {1, 2}).masked_answers, 0);
    EXPECT_EQ(policy_loss(d, {old, now, {}, -1}, options, {1, 2}).masked_answers, 0) << "more probable now";
}

TEST(PolicyLoss, OfAnEmptyAnswerIsNothing) {
    const PolicyLossSums sums = policy_loss({}, {{}, {}, {}, 1}, {.loss_type = LossType::kGrpo}, {1, 0});
    EXPECT_EQ(sums.loss, 0);
    EXPECT_EQ(sums.tokens, 0);
}

}  // namespace
}  // namespace fathom
