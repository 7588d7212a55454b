#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "nn/gradient.h"
#include "train/tiny_run.h"

namespace fathom {
namespace {

constexpr AdamWStep kRule{.learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1};

struct Bench {
    TrainConfig config = tiny_config();
    ThreadPool pool{1};
    CpuOps ops{pool};
    DeepSeek model{config.model.config};
    Optimizer optimizer;

    explicit Bench(DType dtype, DType moments = DType::kF32) : optimizer(model, ops, dtype, moments) {
        optimizer.initialize(3, 0.02);
    }
    // A gradient that differs from element to element.
    void make_gradients(int64_t step) {
        for (const Optimizer::State& state : optimizer.states()) {
            if (!state.param->trained()) continue;
            for (int64_t i = 0; i < state.param->size(); ++i) state.param->grad.as<float>()[i] = gradient(i, step);
        }
    }
    static float gradient(int64_t i, int64_t step) {
        return static_cast<float>(std::sin(static_cast<double>(i + 1) * 0.7 + static_cast<double>(step)) * 0.01);
    }
};

std::vector<float> values(const Tensor& t) { return {t.as<float>(), t.as<float>() + t.size()}; }

TEST(Optimizer, AdamWFollowsTheFormulaForThreeStepsAndDecaysMatricesOnly) {
    Bench bench(DType::kF32);
    std::vector<std::vector<float>> start;
    for (const auto& state : bench.optimizer.states()) start.push_back(values(state.master));
    AdamWStep rule = kRule;
    rule.grad_scale = 0.5;
    for (rule.step = 1; rule.step <= 3; ++rule.step) {
        bench.make_gradients(rule.step);
        bench.optimizer.step(rule);
    }
    int64_t decayed = 0, undecayed = 0;
    for (size_t s = 0; s < start.size(); ++s) {
        const Optimizer::State& state = bench.optimizer.states()[s];
        if (!state.param->trained()) continue;
        const bool matrix = state.param->is_matrix();
        (matrix ? decayed : undecayed) += 1;
        for (size_t i = 0; i < start[s].size(); ++i) {
            double p = static_cast<double>(start[s][i]), m = 0, v = 0;
            for (int64_t t = 1; t <= 3; ++t) {
                const double g = 0.5 * static_cast<double>(Bench::gradient(static_cast<int64_t>(i), t));
                m = 0.9 * m + 0.1 * g;
                v = 0.95 * v + 0.05 * g * g;
                const double mean = m / (1 - std::pow(0.9, t)), square = v / (1 - std::pow(0.95, t));
                if (matrix) p *= 1 - 1e-2 * 0.1;
                p -= 1e-2 * mean / (std::sqrt(square) + 1e-8);
            }
            ASSERT_NEAR(static_cast<double>(state.master.as<float>()[i]), p, 2e-6) << state.name << " " << i;
        }
    }
    EXPECT_GT(decayed, 10);
    EXPECT_GT(undecayed, 5);
}

TEST(Optimizer, NormsStartAtOneBiasesAtZeroAndMatricesHaveTheAskedDeviation) {
    Bench bench(DType::kF32);
    for (const auto& state : bench.optimizer.states()) {
        const std::vector<float> v = values(state.master);
        if (state.param->is_matrix()) {
            double square = 0;
            for (const float x : v) square += static_cast<double>(x) * static_cast<double>(x);
            const double count = static_cast<double>(v.size());
            EXPECT_NEAR(std::sqrt(square / count), 0.02, 0.02 * 4 / std::sqrt(2 * count)) << state.name;
        } else {
            for (const float x : v) EXPECT_EQ(x, state.param->kind == ParamKind::kNorm ? 1.0F : 0.0F) << state.name;
        }
    }
}

TEST(Optimizer, Bf16ParametersAreTheRoundedMasters) {
    Bench bench(DType::kBF16);
    AdamWStep rule = kRule;
    for (rule.step = 1; rule.step <= 2; ++rule.step) {
        bench.make_gradients(rule.step);
        bench.optimizer.step(rule);
        int64_t inexact = 0;
        for (const auto& state : bench.optimizer.states()) {
            const Tensor& codes = state.param->weight.codes;
            if (!state.param->trained()) {
                EXPECT_EQ(codes.dtype, DType::kF32) << "a router's bias stays f32";
                continue;
            }
            ASSERT_EQ(codes.dtype, DType::kBF16);
            for (int64_t i = 0; i < codes.size(); ++i) {
                const float master = state.master.as<float>()[i];
                ASSERT_EQ(static_cast<float>(codes.as<BFloat16>()[i]), static_cast<float>(BFloat16(master))) << state.name;
                inexact += static_cast<float>(codes.as<BFloat16>()[i]) != master ? 1 : 0;
            }
        }
        EXPECT_GT(inexact, 1000) << "masters hold more than their parameters";
    }
}

TEST(Optimizer, Bf16MomentsAreThoseOfF32RoundedAfterTheStep) {
    Bench wide(DType::kF32), narrow(DType::kF32, DType::kBF16);
    AdamWStep rule = kRule;
    for (Bench* bench : {&wide, &narrow}) {
        bench->make_gradients(1);
        bench->optimizer.step(rule);
    }
    int64_t inexact = 0;
    for (size_t s = 0; s < wide.optimizer.states().size(); ++s) {
        const Optimizer::State &exact = wide.optimizer.states()[s], &rounded = narrow.optimizer.states()[s];
        if (!exact.param->trained()) continue;
        ASSERT_EQ(values(rounded.master), values(exact.master)) << "the first step does not see the rounding";
        for (const auto& [of, from] : {std::pair(rounded.m, exact.m), std::pair(rounded.v, exact.v)}) {
            ASSERT_EQ(of.dtype, DType::kBF16);
            for (int64_t i = 0; i < of.size(); ++i) {
                const float number = from.as<float>()[i];
                ASSERT_EQ(of.as<BFloat16>()[i].bits, BFloat16(number).bits) << exact.name << " " << i;
                inexact += static_cast<float>(BFloat16(number)) != number ? 1 : 0;
            }
        }
    }
    EXPECT_GT(inexact, 1000);
    rule.step = 2;
    double square = 0, difference = 0;
    for (Bench* bench : {&wide, &narrow}) {
        bench->make_gradients(2);
        bench->optimizer.step(rule);
    }
    for (size_t s = 0; s < wide.optimizer.states().size(); ++s) {
        const std::vector<float> exact = values(wide.optimizer.states()[s].master),
                                 rounded = values(narrow.optimizer.states()[s].master);
        for (size_t i = 0; i < exact.size(); ++i) {
            square += std::pow(static_cast<double>(exact[i]), 2);
            difference += std::pow(static_cast<double>(exact[i]) - static_cast<double>(rounded[i]), 2);
        }
    }
    EXPECT_GT(difference, 0);
    EXPECT_LT(std::sqrt(difference / square), 2e-3) << "8 bits of a step of 1e-2";
}

TEST(Optimizer, TheGradientNormIsThatOfAllTensorsTogether) {
    Bench bench(DType::kF32);
    bench.make_gradients(1);
    double square = 0;
    for (const auto& state : bench.optimizer.states()) {
        for (int64_t i = 0; state.param->trained() && i < state.param->size(); ++i)
            square += std::pow(static_cast<double>(Bench::gradient(i, 1)), 2);
    }
    EXPECT_NEAR(bench.optimizer.gradient_norm(), std::sqrt(square), 1e-9);
    bench.optimizer.zero_gradients();
    EXPECT_EQ(bench.optimizer.gradient_norm(), 0);
}

TEST(Optimizer, WhatGradientsHeldBeforeTheyWereMarkedAsZeroIsForgotten) {
    Bench bench(DType::kF32);
    bench.make_gradients(1);
    bench.optimizer.zero_gradients();
    EXPECT_EQ(bench.optimizer.gradient_norm(), 0) << "nothing has reached any of them";
    for (const Optimizer::State& state : bench.optimizer.states()) {
        if (!state.param->trained()) continue;
        EXPECT_FALSE(state.param->grad_is_zero);
        for (const float g : values(state.param->grad)) ASSERT_EQ(g, 0) << state.name;
    }
}

TEST(Optimizer, TheFirstProductTakesTheGradientsPlaceAndTheSecondIsAdded) {
    Bench bench(DType::kF32);
    bench.make_gradients(1);
    bench.optimizer.zero_gradients();
    Arena arena("test");
    Context cx{bench.ops, arena, arena, {}};
    for (const Optimizer::State& state : bench.optimizer.states()) {
        if (!state.param->is_matrix()) continue;
        const Tensor dy = arena.allocate(DType::kF32, {2, state.param->rows}),
                     x = arena.allocate(DType::kF32, {2, state.param->cols});
        bench.ops.fill(dy, 0.5);
        bench.ops.fill(x, 3);
        for (const float expected : {3.0F, 6.0F}) {  // two rows of 0.5 * 3
            add_gradient(cx, *state.param, dy, x);
            for (const float g : values(state.param->grad)) ASSERT_EQ(g, expected) << state.name;
        }
    }
}

TEST(Optimizer, AWeightThatIsNotANumberIsSeen) {
    Bench bench(DType::kF32);
    EXPECT_TRUE(bench.optimizer.weights_finite());
    bench.optimizer.states()[3].master.as<float>()[1] = NAN;
    EXPECT_FALSE(bench.optimizer.weights_finite());
    bench.optimizer.states()[3].master.as<float>()[1] = 3e38F;
    EXPECT_TRUE(bench.optimizer.weights_finite());
}

}  // namespace
}  // namespace fathom
