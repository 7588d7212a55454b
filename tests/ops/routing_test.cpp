#include "ops/op_test.h"

namespace fathom {
namespace {

// Logits are multiples of 1/8: many exact ties, and no near ones that rounding could turn around.
class RoutingOps : public OpTest {
protected:
    Pair logits(int64_t n, int64_t experts) {
        std::vector<double> all;
        for (int64_t i = 0; i < n * experts; ++i) all.push_back(static_cast<double>(integer(-24, 24)) / 8);
        return values({n, experts}, all, DType::kF32);
    }
    Pair bias(int64_t experts, double mean) {
        std::vector<double> all;
        for (int64_t e = 0; e < experts; ++e) all.push_back(mean + static_cast<double>(integer(-8, 8)) / 64);
        return values({experts}, all, DType::kF32);
    }
    struct Shape {
        int64_t experts, k;
        RouteRule rule;
    };
    // Any rule: K = E, one expert, groups of one, several groups.
    Shape random_rule() {
        Shape shape;
        RouteRule& rule = shape.rule;
        rule.scoring_func = coin() ? ScoringFunc::kSoftmax : ScoringFunc::kSigmoid;
        rule.topk_method = std::array{TopkMethod::kGreedy, TopkMethod::kGroupLimitedGreedy,
                                      TopkMethod::kNoauxTc}[static_cast<size_t>(integer(0, 2))];
        rule.n_group = coin() ? 1 : integer(1, 8);
        const int64_t group = coin() ? integer(1, 4) : integer(1, 20);
        shape.experts = rule.n_group * group;
        rule.topk_group = integer(1, rule.n_group);
        shape.k = integer(1, std::min<int64_t>(rule.topk_group * group, 12));
        rule.norm_topk_prob = coin();
        rule.routed_scaling_factor = coin() ? 1.0 : 2.5;
        return shape;
    }
};
using Routing = RoutingOps;
INSTANTIATE_TEST_SUITE_P(, Routing, testing::ValuesIn(backends()), backend_name);

TEST_P(Routing, ChoosesAsTheRuleSaysWithTiesToTheLowerIndex) {
    for (int i = 0; i < 6 * kCases; ++i) {
        const Shape shape = random_rule();
        const int64_t n = rows();
        const Pair z = logits(n, shape.experts), indices = empty({n, shape.k}, DType::kI32);
        const Pair weights = empty({n, shape.k}), scores = empty({n, shape.experts});
        const Pair b = shape.rule.topk_method == TopkMethod::kNoauxTc && coin() ? bias(shape.experts, 0) : Pair();
        run([&](Ops& o, Side at) { o.route(at(indices), at(weights), at(scores), at(z), at(b), shape.rule); });
        expect_equal(indices);
        expect_close(weights);
        expect_close(scores);
    }
}

TEST_P(Routing, ChoosesAllExpertsInOrderWhenAllTie) {
    RouteRule rule;
    rule.scoring_func = ScoringFunc::kSigmoid;
    const Pair z = constant({3, 9}, 0.5), indices = empty({3, 9}, DType::kI32), weights = empty({3, 9}), scores = empty({3, 9});
    run([&](Ops& o, Side at) { o.route(at(indices), at(weights), at(scores), at(z), {}, rule); });
    const auto chosen = device_values(indices);
    for (int64_t i = 0; i < 3; ++i)
        for (int64_t k = 0; k < 9; ++k) EXPECT_EQ(chosen(i, k), k);
}

// Masking the dropped groups with 0 instead of minus infinity would choose from them when every biased score is negative.
TEST_P(Routing, NegativeBiasedScoresDoNotLetDroppedGroupsIn) {
    RouteRule rule{ScoringFunc::kSigmoid, TopkMethod::kNoauxTc, 4, 2, true, 2.5};
    const Pair z = logits(40, 32), b = bias(32, -3), indices = empty({40, 6}, DType::kI32);
    const Pair weights = empty({40, 6}), scores = empty({40, 32});
    run([&](Ops& o, Side at) { o.route(at(indices), at(weights), at(scores), at(z), at(b), rule); });
    expect_equal(indices);
    expect_close(weights);
    const auto chosen = device_values(indices);
    for (int64_t i = 0; i < 40; ++i) {
        std::vector<bool> groups(4);
        for (int64_t k = 0; k < 6; ++k) groups[static_cast<size_t>(chosen(i, k)) / 8] = true;
        EXPECT_LE(std::count(groups.begin(), groups.end(), true), 2);
    }
}

TEST_P(Routing, TheBiasChangesTheSelectionButNotTheWeights) {
    RouteRule rule{ScoringFunc::kSigmoid, TopkMethod::kNoauxTc, 1, 1, true, 1.0};
    const Pair z = constant({1, 4}, 0), b = values({4}, {0, 0, 1, 0.5}, DType::kF32);
    const Pair indices = empty({1, 2}, DType::kI32), weights = empty({1, 2}), scores = empty({1, 4});
    ops->route(indices.device, weights.device, scores.device, z.device, b.device, rule);
    EXPECT_EQ(device_values(indices).data, (std::vector<double>{2, 3}));
    EXPECT_EQ(device_values(weights).data, (std::vector<double>{0.5, 0.5}));
}

TEST_P(Routing, ReplayedChoicesGetTheWeightsTheyWouldHaveHad) {
    for (int i = 0; i < kCases; ++i) {
        const Shape shape = random_rule();
        const int64_t n = rows();
        const Pair z = logits(n, shape.experts), indices = choices(n, shape.k, shape.experts);
        const Pair weights = empty({n, shape.k}), scores = empty({n, shape.experts});
        run([&](Ops& o, Side at) { o.route_weights(at(weights), at(scores), at(z), at(indices), shape.rule); });
        expect_close(weights);
        expect_close(scores);
    }
}

TEST_P(Routing, BackwardFollowsItsFormula) {
    for (int i = 0; i < 2 * kCases; ++i) {
        const Shape shape = random_rule();
        const int64_t n = rows();
        const Pair z = logits(n, shape.experts), indices = choices(n, shape.k, shape.experts);
        const Pair weights = empty({n, shape.k}), scores = empty({n, shape.experts}), dlogits = empty({n, shape.experts});
        const Pair dweights = random({n, shape.k}), dscores = coin() ? random({n, shape.experts}) : Pair();
        run([&](Ops& o, Side at) {
            o.route_weights(at(weights), at(scores), at(z), at(indices), shape.rule);
            o.route_backward(at(dlogits), at(dweights), at(dscores), at(scores), at(indices), shape.rule);
        });
        expect_close(dlogits, 1, 1);
    }
}

TEST_P(Routing, BalanceLossesAndTheirGradientsFollowTheirFormulas) {
    for (const BalanceLossKind kind : {BalanceLossKind::kExpert, BalanceLossKind::kDevice, BalanceLossKind::kCommunication,
                                       BalanceLossKind::kSwitch, BalanceLossKind::kGshard, BalanceLossKind::kSquared}) {
        for (int i = 0; i < kCases; ++i) {
            BalanceLoss rule;
            rule.kind = kind;
            rule.alpha = 0.01;
            rule.devices = integer(1, 4);
            rule.device_limit = integer(1, rule.devices);
            rule.per_sequence = coin();
            const int64_t experts = rule.devices * integer(1, 9), k = integer(1, std::min<int64_t>(experts, 8));
            std::vector<int64_t> bounds{0};
            for (int64_t s = integer(0, 3); s >= 0; --s)
                bounds.push_back(bounds.back() + (coin() ? integer(1, 2) : integer(1, 60)));
            const int64_t n = bounds.back();
            const Pair cu_seqlens = ints({static_cast<int64_t>(bounds.size())}, bounds), indices = choices(n, k, experts);
            const Pair scores = empty({n, experts}), weights = empty({n, k}), z = logits(n, experts);
            const Pair loss = constant({1}, 0), dscores = constant({n, experts}, 0);
            RouteRule route;
            route.scoring_func = coin() ? ScoringFunc::kSigmoid : ScoringFunc::kSoftmax;
            run([&](Ops& o, Side at) {
                o.route_weights(at(weights), at(scores), at(z), at(indices), route);
                o.balance_loss(at(loss), at(dscores), at(scores), at(indices), at(cu_seqlens), rule);
            });
            // Squares of differences of nearly equal numbers, or of what f64 leaves of equal ones.
            expect_close(loss, kind == BalanceLossKind::kSquared ? 10 : 1, 1e-24);
            expect_close(dscores, 5, rule.alpha / static_cast<double>(n));
        }
    }
}

TEST_P(Routing, BalanceLossesAddUp) {
    const Pair scores = constant({4, 2}, 0.5), indices = ints({4, 1}, {0, 0, 0, 1}), bounds = ints({2}, {0, 4});
    const Pair loss = constant({1}, 10), dscores = constant({4, 2}, 1);
    BalanceLoss rule;
    rule.alpha = 0.5;
    for (int twice = 0; twice < 2; ++twice)
        run([&](Ops& o, Side at) { o.balance_loss(at(loss), at(dscores), at(scores), at(indices), at(bounds), rule); });
    EXPECT_NEAR(device_values(loss)(0), 11, 1e-6);  // f = (1.5, 0.5), P = (0.5, 0.5): alpha each time
    expect_close(dscores);
}

}  // namespace
}  // namespace fathom
