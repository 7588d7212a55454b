#include "train/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "train/tiny_run.h"
#include "train/train_checkpoint.h"

namespace fathom {
namespace {

const std::string kRouterBias = "model.layers.1.mlp.gate.e_score_correction_bias";

TEST(Trainer, OverfitsAFewLines) {
    TinyRun run({"training.steps=60"});
    const double first = *run.steps(1).loss;
    const StepMetrics last = run.steps(59);
    EXPECT_NEAR(first, std::log(static_cast<double>(kByteVocabulary)), 0.2);
    EXPECT_LT(*last.loss, 0.5 * first);
    EXPECT_LT(*last.mtp_loss, 0.7 * first);
    EXPECT_EQ(last.step, 60);
    EXPECT_EQ(last.tokens, 60 * 2 * 48);
}

// epsilon = 1 makes the update nearly the gradient itself, so that the weights compare gradients.
TEST(Trainer, AccumulationEqualsOneBiggerBatch) {
    const std::vector<std::string> same{"optimizer.epsilon=1", "training.clip=0", "optimizer.lr=1"};
    auto big = same, small = same;
    big.insert(big.end(), {"training.rows_per_batch=4"});
    small.insert(small.end(), {"training.rows_per_batch=1", "training.gradient_accumulation=4"});
    TinyRun one(big), four(small);
    const std::string name = "model.layers.1.self_attn.o_proj.weight";
    const std::vector<float> start = one.values_of(name);
    const StepMetrics a = one.steps(1), b = four.steps(1);
    EXPECT_NEAR(*a.loss, *b.loss, 1e-6);
    EXPECT_NEAR(*a.mtp_loss, *b.mtp_loss, 1e-6);
    EXPECT_NEAR(*a.grad_norm, *b.grad_norm, 1e-5 * *a.grad_norm);
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.max_vio, b.max_vio);
    const std::vector<float> x = one.values_of(name), y = four.values_of(name);
    double difference = 0, update = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        difference += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
        update += std::pow(static_cast<double>(x[i]) - static_cast<double>(start[i]), 2);
    }
    EXPECT_GT(update, 0);
    EXPECT_LT(std::sqrt(difference / update), 1e-3);
}

TEST(Trainer, ABalanceLossIsTheMeanOverTheBatchesOfAStep) {
    const std::vector<std::string> loss{"balance.loss=[{kind = \"expert\", alpha = 0.5}]", "optimizer.lr=0"};
    auto accumulated = loss;
    accumulated.emplace_back("training.gradient_accumulation=2");
    TinyRun single(loss), both(accumulated);
    const double first = *single.steps(1).balance_loss, second = *single.steps(1).balance_loss;
    EXPECT_GT(first, 0);
    // The bias moved between the two single steps, which changes who is chosen a little.
    EXPECT_NEAR(*both.steps(1).balance_loss, (first + second) / 2, 0.02 * first);
}

TEST(Trainer, RecomputingActivationsGivesTheSameBytes) {
    for (const std::string dtype : {"training.dtype=f32", "training.dtype=bf16"}) {
        for (const bool deterministic : {false, true}) {
            TinyRun kept({dtype}, deterministic), recomputed({dtype, "training.recompute=true"}, deterministic);
            const StepMetrics a = kept.steps(4), b = recomputed.steps(4);
            EXPECT_EQ(*a.loss, *b.loss);
            EXPECT_EQ(a.max_vio, b.max_vio);
            EXPECT_TRUE(kept.weights() == recomputed.weights()) << dtype << (deterministic ? ", deterministic" : "");
        }
    }
}

TEST(Trainer, RepeatsToTheByteWithAnyThreadsAndEitherArithmetic) {
    for (const std::string dtype : {"training.dtype=f32", "training.dtype=bf16"}) {
        for (const bool deterministic : {false, true}) {
            TinyRun one({dtype}, deterministic, 1), again({dtype}, deterministic, 1), two({dtype}, deterministic, 2);
            one.steps(4), again.steps(4), two.steps(4);
            EXPECT_TRUE(one.weights() == again.weights()) << dtype;
            EXPECT_TRUE(one.weights() == two.weights()) << dtype;
        }
    }
}

TEST(Trainer, DeterministicArithmeticIsTheSameFunction) {
    TinyRun expanded({}, false), absorbed({}, true);
    for (int i = 0; i < 4; ++i) EXPECT_NEAR(*expanded.steps(1).loss, *absorbed.steps(1).loss, 1e-3);
    EXPECT_FALSE(expanded.weights() == absorbed.weights()) << "the two forms round at different points";
}

TEST(Trainer, RouterBiasMovesAgainstTheLoad) {
    TinyRun run({"balance.bias_update_speed=0.01", "metrics.expert_load_every=1"});
    const StepMetrics step = run.steps(1);
    ASSERT_EQ(step.expert_load.size(), 2U);  // layer 1 and the MTP module
    const std::vector<int64_t>& load = step.expert_load[0];
    const int64_t total = std::accumulate(load.begin(), load.end(), int64_t{0});
    const std::vector<float> bias = run.values_of(kRouterBias);
    int moved = 0;
    for (size_t e = 0; e < load.size(); ++e) {
        const int64_t excess = load[e] * static_cast<int64_t>(load.size()) - total;
        EXPECT_EQ(bias[e], excess > 0 ? -0.01F : excess < 0 ? 0.01F : 0.0F) << "expert " << e;
        moved += excess != 0 ? 1 : 0;
    }
    EXPECT_GT(moved, 0);
    TinyRun still({"balance.bias_update_until=0"});
    still.steps(1);
    for (const float value : still.values_of(kRouterBias)) EXPECT_EQ(value, 0);
}

TEST(Trainer, BalanceStatisticsDescribeTheLoad) {
    TinyRun run({"metrics.expert_load_every=2"});
    EXPECT_TRUE(run.steps(1).expert_load.empty());
    const StepMetrics step = run.steps(1);
    ASSERT_EQ(step.expert_load.size(), 2U);
    for (size_t layer = 0; layer < 2; ++layer) {
        const std::vector<int64_t>& load = step.expert_load[layer];
        ASSERT_EQ(load.size(), 8U);
        EXPECT_EQ(std::accumulate(load.begin(), load.end(), int64_t{0}), 2 * 48 * 2) << "K experts per token of one step";
        const double mean = 2 * 48 * 2 / 8.0;
        double square = 0;
        for (const int64_t tokens : load) square += std::pow(static_cast<double>(tokens) - mean, 2) / 8;
        EXPECT_NEAR(step.max_vio[layer], static_cast<double>(*std::ranges::max_element(load)) / mean - 1, 1e-12);
        EXPECT_NEAR(step.load_std[layer], std::sqrt(square) / mean, 1e-12);
        EXPECT_EQ(step.dead_experts[layer], std::ranges::count(load, 0));
    }
}

TEST(Trainer, EvaluatingChangesNothingAndRepeats) {
    TinyRun run, undisturbed;
    run.steps(2), undisturbed.steps(2);
    PackedLoader documents = run.loader(false);
    const double loss = run.trainer.evaluate(documents, 0);
    EXPECT_EQ(run.trainer.evaluate(documents, 0), loss);
    EXPECT_NE(run.trainer.evaluate(documents, 1), loss);
    EXPECT_NEAR(loss, *run.steps(1).loss, 0.7);
    undisturbed.steps(1);
    EXPECT_TRUE(run.weights() == undisturbed.weights());
    EXPECT_EQ(run.trainer.state().loader, undisturbed.trainer.state().loader);
    EXPECT_EQ(run.steps(1).max_vio, undisturbed.steps(1).max_vio);
}

TEST(Trainer, AStepsLossIsTheMeanOfItsTokens) {
    for (const bool deterministic : {false, true}) {
        TinyRun run({}, deterministic);
        run.steps(2);
        PackedLoader ahead = run.loader(true);
        ahead.restore(run.trainer.state().loader);
        const TokenBatch batch = *ahead.next();
        const std::vector<float> losses = run.trainer.token_losses(batch);
        const double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
        const auto targets = std::ranges::count_if(batch.targets, [](int32_t t) { return t != kNoTarget; });
        EXPECT_LT(targets, std::ssize(batch.targets)) << "documents end in this batch";
        EXPECT_EQ(*run.steps(1).loss, sum / static_cast<double>(targets));
    }
}

TEST(Trainer, WithoutItsMtpModuleASavedModelHasTheSameMainLosses) {
    TinyRun run({"training.dtype=bf16"});
    run.steps(3);
    const std::filesystem::path folder = fresh_folder("without_mtp");
    save_training_checkpoint(folder, run.model, run.ops, run.trainer.optimizer(), run.trainer.state(), {});
    PackedLoader documents = run.loader(false);
    const TokenBatch batch = *documents.next();
    const std::vector<float> expected = run.trainer.token_losses(batch);
    for (const bool with_mtp : {false, true}) {
        LoadedModel loaded = load_model(training_checkpoints(folder).back(), run.ops, {.with_mtp = with_mtp});
        EXPECT_EQ(loaded.config.num_nextn_predict_layers, with_mtp ? 1 : 0);
        TrainConfig config = run.config;
        config.model.config = loaded.config;
        Trainer trainer(config, *loaded.model, run.ops, std::make_unique<PackedLoader>(run.loader(true)), false);
        EXPECT_EQ(trainer.token_losses(batch), expected);
    }
    std::filesystem::remove_all(folder);
}

TEST(Trainer, ARunWithRoundedMomentsGoesOnFromItsCheckpoint) {
    const std::vector<std::string> settings{"training.dtype=bf16", "optimizer.moments=bf16"};
    TinyRun whole(settings), first(settings), second(settings), other({"training.dtype=bf16"});
    whole.steps(4);
    first.steps(2);
    const std::filesystem::path folder = fresh_folder("rounded_moments");
    save_training_checkpoint(folder, first.model, first.ops, first.trainer.optimizer(), first.trainer.state(), {});
    const std::filesystem::path saved = training_checkpoints(folder).back();
    second.trainer.restore(load_training_checkpoint(saved, second.model, second.ops, second.trainer.optimizer()));
    second.steps(2);
    EXPECT_TRUE(second.weights() == whole.weights());
    try {
        (void)load_training_checkpoint(saved, other.model, other.ops, other.trainer.optimizer());
        FAIL() << "moments of another type";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("optimizer.moments"), std::string::npos) << error.what();
    }
    std::filesystem::remove_all(folder);
}

TEST(Trainer, AGradientThatIsNotANumberStopsBeforeTheWeightsChange) {
    TinyRun run;
    run.steps(1);
    run.model.visit([](const std::string& name, Param& param) {
        if (name.find("mlp.gate.weight") != std::string::npos) param.weight.codes.as<float>()[0] = NAN;
    });
    const std::string before = run.weights();
    try {
        (void)run.trainer.step();
        FAIL() << "a NaN in the router";
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kInput);
        EXPECT_NE(std::string(error.what()).find("step 2: the gradient is not finite"), std::string::npos) << error.what();
    }
    EXPECT_TRUE(run.weights() == before);
    const std::filesystem::path folder = fresh_folder("not_finite");
    EXPECT_THROW(save_training_checkpoint(folder, run.model, run.ops, run.trainer.optimizer(), run.trainer.state(), {}), Error);
    EXPECT_TRUE(std::filesystem::is_empty(folder));
    std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace fathom
