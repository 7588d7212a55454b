#include "ops/op_test.h"

namespace fathom {
namespace {

using LossOptimizer = OpTest;
INSTANTIATE_TEST_SUITE_P(, LossOptimizer, testing::ValuesIn(backends()), backend_name);

TEST_P(LossOptimizer, SwigluFollowsItsFormula) {
    for (int i = 0; i < kCases; ++i) {
        const Dims dims{rows(), width()};
        const Pair gate = random(dims, 3), up = random(dims), y = empty(dims);
        run([&](Ops& o, Side at) { o.swiglu(at(y), at(gate), at(up)); });
        expect_close(y);
    }
}

TEST_P(LossOptimizer, SwigluMayWriteOverGateOrUp) {
    const Pair gate = random({7, 50}), up = random({7, 50}), again = random({7, 50});
    run([&](Ops& o, Side at) {
        o.swiglu(at(gate), at(gate), at(up));
        o.swiglu(at(up), at(again), at(up));
    });
    expect_close(gate);
    expect_close(up);
}

TEST_P(LossOptimizer, SiluOfExtremeGatesIsFinite) {
    const Pair gate = values({1, 6}, {-1e4, -100, -88, 88, 100, 1e4}, DType::kF32), up = constant({1, 6}, 1);
    const Pair y = empty({1, 6}), dgate = empty({1, 6}), dup = empty({1, 6});
    run([&](Ops& o, Side at) {
        o.swiglu(at(y), at(gate), at(up));
        o.swiglu_backward(at(dgate), at(dup), at(up), at(gate), at(up));
    });
    expect_close(y);
    expect_close(dgate);
    expect_close(dup);
}

TEST_P(LossOptimizer, SwigluBackwardFollowsItsFormula) {
    for (int i = 0; i < kCases; ++i) {
        const Dims dims{rows(), width()};
        const Pair gate = random(dims, 3), up = random(dims), dy = random(dims), dgate = empty(dims), dup = empty(dims);
        run([&](Ops& o, Side at) { o.swiglu_backward(at(dgate), at(dup), at(dy), at(gate), at(up)); });
        expect_close(dgate);
        expect_close(dup);
    }
}

TEST_P(LossOptimizer, CrossEntropyLeavesOutNegativeTargets) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = rows(), vocabulary = coin() ? width() : integer(1, 700);
        std::vector<int64_t> target;
        for (int64_t r = 0; r < n; ++r) target.push_back(integer(0, 4) == 0 ? -1 : integer(0, vocabulary - 1));
        const Pair logits = random({n, vocabulary}, 4), targets = ints({n}, target);
        const Pair loss = empty({n}), dlogits = empty({n, vocabulary});
        run([&](Ops& o, Side at) {
            o.cross_entropy(at(loss), at(logits), at(targets));
            o.cross_entropy_backward(at(dlogits), at(logits), at(targets), 0.125);
            o.cross_entropy_backward(at(logits), at(logits), at(targets), -3);
        });
        expect_close(loss);
        expect_close(dlogits);
        expect_close(logits);
    }
}

TEST_P(LossOptimizer, TokenLogprobIsOfThePolicyThatSampled) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = rows(), vocabulary = coin() ? width() : integer(1, 300), words = (vocabulary + 31) / 32;
        std::vector<int64_t> target, bits;
        for (int64_t r = 0; r < n; ++r) target.push_back(integer(0, 4) == 0 ? -1 : integer(0, vocabulary - 1));
        for (int64_t w = 0; w < n * words; ++w) bits.push_back(integer(INT32_MIN, INT32_MAX));
        const Pair logits = random({n, vocabulary}, 4), targets = ints({n}, target), allowed = ints({n, words}, bits);
        const Pair logprob = empty({n}), entropy = empty({n}), dlogprob = random({n}), dlogits = empty({n, vocabulary});
        const bool masked = coin();
        const double temperature = coin() ? 1 : 0.6;
        run([&](Ops& o, Side at) {
            const Tensor mask = masked ? at(allowed) : Tensor();
            o.token_logprob(at(logprob), at(entropy), at(logits), at(targets), mask, temperature);
            o.token_logprob_backward(at(dlogits), at(logits), at(targets), mask, at(dlogprob), temperature);
            o.token_logprob_backward(at(logits), at(logits), at(targets), mask, at(dlogprob), temperature);
        });
        for (const Pair& found : {logprob, entropy}) expect_close(found, 4, 4);  // sums that may cancel
        for (const Pair& found : {dlogits, logits}) expect_close(found, 4);
    }
}

TEST_P(LossOptimizer, TokenLogprobIsMinusCrossEntropyToTheBit) {
    const Pair logits = random({20, 333}, 5), targets = ints({20}, std::vector<int64_t>(20, 77));
    const Pair loss = empty({20}), logprob = empty({20}), sum = empty({20, 1});
    run([&](Ops& o, Side at) {
        o.cross_entropy(at(loss), at(logits), at(targets));
        o.token_logprob(at(logprob), {}, at(logits), at(targets), {}, 1);
        o.add(at(sum), at(loss).view({20, 1}), at(logprob).view({20, 1}));
    });
    expect_equal(sum);
}

TEST_P(LossOptimizer, KlDivergenceFollowsItsFormulaBothWays) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = rows(), vocabulary = coin() ? width() : integer(1, 300);
        std::vector<int64_t> target;
        for (int64_t r = 0; r < n; ++r) target.push_back(integer(-1, 1));
        const Pair logits = random({n, vocabulary}, 2), teacher = random({n, vocabulary}, 2), targets = ints({n}, target);
        const Pair loss = empty({n}), dlogits = empty({n, vocabulary});
        const bool reverse = coin();
        run([&](Ops& o, Side at) {
            o.kl_divergence(at(loss), at(logits), at(teacher), at(targets), reverse);
            o.kl_divergence_backward(at(dlogits), at(logits), at(teacher), at(targets), reverse, 0.25);
            o.kl_divergence_backward(at(logits), at(logits), at(teacher), at(targets), reverse, -2);
        });
        for (const Pair& found : {loss, dlogits, logits}) expect_close(found, 4, 4);  // differences that may cancel
    }
}

TEST_P(LossOptimizer, CrossEntropyOfHugeLogitsIsFinite) {
    const Pair logits = values({2, 4}, {1e4, -1e4, 9999, 0, -3e4, -3e4, -3e4, -3e4}, DType::kF32), targets = ints({2}, {1, 2});
    const Pair loss = empty({2}), dlogits = empty({2, 4});
    run([&](Ops& o, Side at) {
        o.cross_entropy(at(loss), at(logits), at(targets));
        o.cross_entropy_backward(at(dlogits), at(logits), at(targets), 1);
    });
    expect_close(loss);
    expect_close(dlogits);
}

TEST_P(LossOptimizer, AdamwUpdatesMastersMomentsAndTheRoundedParameter) {
    for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
        for (int i = 0; i < kCases; ++i) {
            const Dims dims = coin() ? Dims{width()} : Dims{integer(1, 60), width()};
            const auto packed = [&](double spread, double mean, DType of) { return random(dims, spread, mean, of, true); };
            const Pair param = packed(1, 0, type), master = packed(1, 0, DType::kF32), grad = packed(1, 0, DType::kF32);
            const DType moments = coin() ? DType::kF32 : DType::kBF16;
            const Pair m = packed(0.1, 0, moments), v = packed(0.001, 0.01, moments);
            AdamWStep step;
            step.learning_rate = 1e-2;
            step.grad_scale = 0.3;
            step.step = integer(1, 2000);
            run([&](Ops& o, Side at) { o.adamw(at(param), at(master), at(m), at(v), at(grad), step); });
            expect_close(master);
            for (const Pair& moment : {m, v}) expect_close(moment, moments == DType::kF32 ? 1 : 2);
            expect_close(param, type == DType::kF32 ? 1 : 2);
        }
    }
}

TEST_P(LossOptimizer, TheParameterMayBeTheMasterItself) {
    const Pair master = random({100}), grad = random({100}), m = constant({100}, 0), v = constant({100}, 0);
    AdamWStep step;
    step.learning_rate = 0.1;
    for (step.step = 1; step.step <= 10; ++step.step)
        run([&](Ops& o, Side at) { o.adamw(at(master), at(master), at(m), at(v), at(grad), step); });
    expect_close(master);
}

TEST_P(LossOptimizer, SquareNormAddsInF64) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
        const Pair sum = values({1}, {0.5}, DType::kF64);
        for (int i = 0; i < kCases; ++i) {
            const Pair x = random({rows() * width()}, 1, 0, type);
            run([&](Ops& o, Side at) { o.square_norm(at(sum), at(x)); });
        }
        expect_close(sum, 10);
    }
}

}  // namespace
}  // namespace fathom
