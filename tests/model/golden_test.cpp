// The model against independent implementations: Hugging Face transformers (fixtures) and a float64 NumPy program (V1 and
// configs that no fixture has), on every back end that is linked in.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "model/back_ends.h"
#include "model/fixture.h"

namespace fathom {
namespace {

constexpr double kLogits = 2e-4, kHidden = 2e-4, kGradient = 1e-4, kLoss = 1e-4;

struct Case {
    std::string fixture;
    std::string back_end;
};

class Golden : public ::testing::TestWithParam<Case> {
protected:
    void SetUp() override {
        if (fixture_folder(GetParam().fixture).empty()) GTEST_SKIP() << GetParam().fixture << " is only in ../shared";
    }
    [[nodiscard]] ModelRun load(bool with_mtp = false) const {
        return {GetParam().fixture, make_ops(GetParam().back_end), {.with_mtp = with_mtp}};
    }
    [[nodiscard]] nlohmann::json answers() const {
        std::ifstream file(fixture_folder(GetParam().fixture) / "golden.json");
        return nlohmann::json::parse(file);
    }
};

TEST_P(Golden, LogitsHiddenStatesAndRoutingAgree) {
    ModelRun run = load();
    const Tensor golden = *run.golden.find("logits");
    for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
        if (form == AttentionForm::kAbsorbed && !run.loaded.config.mla()) continue;
        Batch batch = run.golden_batch(form, false);
        std::vector<Routing> routing(static_cast<size_t>(run.loaded.config.num_hidden_layers));
        std::vector<Tensor> states;
        batch.record = &routing;
        const Tensor hidden = run.model().forward(run.cx, batch, nullptr, nullptr, &states);
        EXPECT_LE(max_difference(run.host(run.model().logits(run.cx, hidden)), golden), kLogits);
        for (size_t l = 0; l < states.size(); ++l) {
            const auto expected = run.golden.find("hidden." + std::to_string(l));
            if (!expected) continue;
            EXPECT_LE(max_difference(run.host(states[l].slice(0, 0, expected->dim(0))), *expected), kHidden) << "layer " << l;
        }
        for (size_t l = 0; l < routing.size(); ++l) {
            const auto expected = run.golden.find("router." + std::to_string(l) + ".indices");
            if (!expected) continue;
            const int64_t k = expected->dim(1);
            const Tensor indices = run.host(routing[l].indices);
            for (int64_t i = 0; i < expected->dim(0); ++i) {
                const auto* chosen = indices.as<int32_t>() + i * k;
                const auto* wanted = expected->as<int32_t>() + i * k;
                ASSERT_EQ(std::set<int32_t>(chosen, chosen + k), std::set<int32_t>(wanted, wanted + k))
                    << "layer " << l << ", row " << i;
            }
        }
    }
}

double mean_loss_and_gradients(ModelRun& run, bool recompute) {
    const Tensor targets = run.tokens_ahead(1, -1), loss = run.cx.empty({targets.dim(0)}, true);
    DeepSeek::Saved saved;
    run.model().set_recompute(recompute);
    const Tensor hidden = run.model().forward(run.cx, run.golden_batch(AttentionForm::kExpanded, true), nullptr, &saved);
    const Tensor dhidden = run.cx.empty({hidden.dim(0), hidden.dim(1)}, true), ids = *run.golden.find("input_ids");
    const auto count = static_cast<double>(ids.dim(0) * (ids.dim(1) - 1));
    run.model().head().loss_and_gradient(run.cx, loss, dhidden, hidden, targets, 1 / count);
    run.model().backward(run.cx, dhidden, saved);
    double sum = 0;
    for (const double row : to_doubles(run.host(loss))) sum += row;
    return sum / count;
}

TEST_P(Golden, LossAndGradientsAgree) {
    if (GetParam().fixture == "mtp") GTEST_SKIP() << "has gradients of the prediction module only";
    if (GetParam().fixture == "v3-fp8-blocks") GTEST_SKIP() << "no gradients through FP8 storage";
    for (const bool recompute : {false, true}) {
        ModelRun run = load();
        run.allocate_gradients();
        EXPECT_NEAR(mean_loss_and_gradients(run, recompute), answers().at("loss").get<double>(), kLoss);
        double square = 0;
        run.model().visit([&](const std::string& name, Param& param) {
            const Tensor grad = run.host(param.grad);
            for (const double g : to_doubles(grad)) square += param.trained() ? g * g : 0;
            const auto expected = run.golden.find("grad." + name);
            if (!expected) return;
            EXPECT_LE(relative_error(grad, *expected), kGradient) << name;
        });
        if (!answers().contains("grad_norm")) continue;
        EXPECT_NEAR(std::sqrt(square) / answers()["grad_norm"].get<double>(), 1, kGradient);
    }
}

TEST_P(Golden, FiveAdamWStepsAgree) {
    if (!answers().contains("adamw_losses")) GTEST_SKIP() << "no optimizer answers";
    if (GetParam().back_end == "reference") GTEST_SKIP() << "six passes in plain loops are too long for a unit test";
    ModelRun run(GetParam().fixture, make_ops(GetParam().back_end), {.dtype = DType::kF32});
    run.allocate_gradients();
    struct Moments {
        Tensor m, v;
    };
    std::vector<Moments> moments;
    run.model().visit([&](const std::string&, Param& param) {
        const DType f = run.ops->compute_dtype();
        const Tensor master = param.allocate(run.state, f);
        run.ops->copy(master, param.weight.codes);
        param.weight = master;
        moments.push_back({param.allocate(run.state, f), param.allocate(run.state, f)});
        run.ops->fill(moments.back().m, 0);
        run.ops->fill(moments.back().v, 0);
    });
    const auto expected = answers()["adamw_losses"].get<std::vector<double>>(),
               norms = answers()["adamw_grad_norms"].get<std::vector<double>>();
    for (size_t step = 0; step < expected.size(); ++step) {
        EXPECT_NEAR(mean_loss_and_gradients(run, false) / expected[step], 1, kLoss) << "step " << step;
        const Tensor sum = run.saved.allocate(DType::kF64, {1});
        run.ops->fill(sum, 0);
        run.model().visit([&](const std::string&, Param& param) {
            if (param.trained()) run.ops->square_norm(sum, param.grad);
        });
        const double norm = std::sqrt(*run.host(sum).as<double>());
        EXPECT_NEAR(norm / norms[step], 1, 1e-3) << "step " << step;
        size_t i = 0;
        run.model().visit([&](const std::string&, Param& param) {
            const Moments& state = moments[i++];
            AdamWStep rule{.learning_rate = 1e-3,
                           .weight_decay = param.is_matrix() ? 0.1 : 0.0,
                           .grad_scale = std::min(1.0, 1 / (norm + 1e-6))};
            rule.step = static_cast<int64_t>(step) + 1;
            if (param.trained()) run.ops->adamw(param.weight.codes, param.weight.codes, state.m, state.v, param.grad, rule);
            run.ops->fill(param.grad, 0);
        });
        run.saved.clear();
    }
    // The loss after the fifth update. On v3-true-head-dims one of the 192 rows then chooses another expert than in float64
    // (both back ends run in lockstep: 0 flips and losses within 2e-5 before, 1 flip and 1.5e-3 here). The seed is AdamW's
    // first step, which moves a weight by lr * sign(gradient) however small the gradient: where it is rounding noise,
    // kv_a_proj_with_mqa of layer 0 differs by up to 3.5e-4 from then on.
    const double tolerance = GetParam().fixture == "v3-true-head-dims" ? 3e-3 : kLoss;
    EXPECT_NEAR(mean_loss_and_gradients(run, false) / answers()["adamw_final_loss"].get<double>(), 1, tolerance);
}

TEST_P(Golden, MultiTokenPredictionAgreesAndLeavesTheMainLogitsBitEqual) {
    if (GetParam().fixture != "mtp") GTEST_SKIP() << "no prediction module";
    ModelRun run = load(true), without = load(false);
    DeepSeek::Saved saved;
    const Tensor hidden = run.model().forward(run.cx, run.golden_batch(AttentionForm::kExpanded, true), nullptr, &saved);
    const Tensor plain =
        without.model().forward(without.cx, without.golden_batch(AttentionForm::kExpanded, false), nullptr, nullptr);
    EXPECT_EQ(
        max_difference(run.host(run.model().logits(run.cx, hidden)), without.host(without.model().logits(without.cx, plain))),
        0);

    // The last position of each sequence has no next token and no answer.
    const Tensor ahead = run.tokens_ahead(1, 0), expected = *run.golden.find("mtp.0.logits");
    const Tensor y = run.model().mtp_forward(run.cx, 0, hidden, ahead, saved.batch, nullptr, &saved);
    const Tensor logits = run.host(run.model().mtp_logits(run.cx, 0, y));
    const int64_t length = expected.dim(1) + 1;
    for (int64_t i = 0; i < expected.dim(0); ++i) {
        EXPECT_LE(max_difference(logits.slice(0, i * length, i * length + length - 1), expected.slice(0, i, i + 1)), kLogits);
    }

    run.allocate_gradients();
    const Tensor targets = run.tokens_ahead(2, -1), loss = run.cx.empty({1, targets.dim(0)}, true);
    const Tensor dhidden = run.cx.zeros({hidden.dim(0), hidden.dim(1)}, true);
    const double scale = 1 / static_cast<double>(expected.dim(0) * (length - 2));
    run.model().mtp_loss_and_gradient(run.cx, loss, dhidden, std::span(&ahead, 1), std::span(&targets, 1), scale, saved);
    run.model().backward(run.cx, dhidden, saved);
    double sum = 0;
    for (const double row : to_doubles(run.host(loss))) sum += row * scale;
    EXPECT_NEAR(sum, answers().at("mtp_losses").at(0).get<double>(), kLoss);
    run.model().visit([&](const std::string& name, Param& param) {
        const auto gradient = run.golden.find("mtp.0.grad." + name);
        if (!gradient) return;
        EXPECT_LE(relative_error(run.host(param.grad), *gradient), kGradient) << name;
    });
}

std::vector<Case> all_cases() {
    std::vector<Case> cases;
    for (const std::string& fixture : all_fixtures())
        for (const std::string& back_end : back_ends()) cases.push_back({fixture, back_end});
    return cases;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Golden, ::testing::ValuesIn(all_cases()), [](const ::testing::TestParamInfo<Case>& test) {
    std::string name = test.param.fixture + "_" + test.param.back_end;
    std::ranges::replace(name, '-', '_');
    return name;
});

}  // namespace
}  // namespace fathom
