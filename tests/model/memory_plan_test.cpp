#include "model/memory_plan.h"

#include <gtest/gtest.h>
#include <filesystem>

#include "base/file.h"
#include "model/flop_count.h"
#include "model/parameter_count.h"

namespace fathom {
namespace {

ModelConfig released(const std::string& name) {
    return ModelConfig::parse(read_text(std::filesystem::path(FATHOM_TEST_DATA) / "configs" / (name + ".json")));
}

constexpr const char* kReleased[] = {"deepseek-moe-16b", "deepseek-v2-lite",  "deepseek-v2",
                                     "deepseek-v3",      "moonlight-16b-a3b", "kimi-k2"};

// Two derivations of one number: the formula, and the model's own forward through a back end that counts.
TEST(MemoryPlan, TheForwardCostsWhatTheFormulaSays) {
    for (const char* name : kReleased) {
        const ModelConfig config = released(name);
        constexpr int64_t kBatch = 3, kLength = 40;
        const DryRun run = dry_run_forward(config, kBatch, kLength, DType::kBF16);
        const double formula = kBatch * kLength * count_flops(config, mean_keys(kLength)).forward();
        EXPECT_EQ(run.tokens, kBatch * kLength);
        EXPECT_NEAR(run.cost.flops / formula, 1, 1e-12) << name;
    }
}

// The dry run counts what is computed again: up-projections and scores in the backward, whole layers on request. The formula
// gives no credit for it.
TEST(MemoryPlan, ATrainingStepCostsThreeForwardsAndWhatIsRecomputed) {
    for (const char* name : {"deepseek-v2-lite", "deepseek-v3"}) {
        const ModelConfig config = released(name);
        const double formula = 64 * count_flops(config, mean_keys(64)).training();
        const DryRun kept = dry_run_training(config, 1, 64, DType::kBF16, false),
                     recomputed = dry_run_training(config, 1, 64, DType::kBF16, true);
        EXPECT_GT(kept.cost.flops, formula) << name;
        EXPECT_LT(kept.cost.flops, 1.15 * formula) << name;
        EXPECT_GT(recomputed.cost.flops, kept.cost.flops + 0.7 * formula / 3) << name;
        EXPECT_LT(recomputed.cost.flops, kept.cost.flops + formula / 3) << name;
    }
}

TEST(MemoryPlan, RecomputationTradesSavedActivationsForTime) {
    const ModelConfig config = released("deepseek-v2-lite");
    const DryRun kept = dry_run_training(config, 2, 256, DType::kBF16, false),
                 recomputed = dry_run_training(config, 2, 256, DType::kBF16, true);
    EXPECT_LT(recomputed.saved_bytes, kept.saved_bytes / 4);
    // The residual stream before each of 27 layers, after the last and after the final norm stays in any case.
    EXPECT_GE(recomputed.saved_bytes, 29 * 2 * 256 * config.hidden_size * 4);
}

TEST(MemoryPlan, AnMhaModelHasADryRunToo) {
    const DryRun run = dry_run_training(released("deepseek-moe-16b"), 1, 32, DType::kF32, false);
    EXPECT_GT(run.saved_bytes, 0);
    EXPECT_GT(run.cost.flops, 0);
}

TEST(MemoryPlan, WeightsTakeWhatTheirTypesTake) {
    const ModelConfig config = released("deepseek-v3");
    const int64_t numbers = count_parameters(config).total();
    const WeightBytes bytes = plan_weights(config);
    EXPECT_EQ(bytes.f32, 4 * numbers);
    EXPECT_EQ(bytes.bf16, 2 * numbers + 2 * 58 * 256);  // router biases stay f32
    // One byte a number, and 2 % for embedding, head, routers, norms and scales.
    EXPECT_NEAR(static_cast<double>(bytes.fp8) / static_cast<double>(numbers), 1.004, 0.002);
}

TEST(MemoryPlan, MixedPrecisionTrainingHoldsEighteenBytesPerParameter) {
    ModelConfig config = released("deepseek-v2-lite");  // no router bias, no MTP
    const int64_t numbers = count_parameters(config).total();
    const TrainingState bf16 = plan_training_state(config, DType::kBF16), f32 = plan_training_state(config, DType::kF32);
    EXPECT_EQ(bf16.total(), 18 * numbers);
    EXPECT_EQ(f32.total(), 16 * numbers);
    EXPECT_EQ(f32.masters, 0);
    EXPECT_EQ(plan_training_state(config, DType::kBF16, DType::kBF16).total(), 14 * numbers);
    config.num_nextn_predict_layers = 1;
    EXPECT_EQ(plan_training_state(config, DType::kF32).weights, 4 * (numbers + count_parameters(config).mtp));
}

// V2's paper, table 1 and section 2.1.4: 576 numbers a layer.
TEST(MemoryPlan, TheLatentCacheHolds576NumbersPerTokenAndLayer) {
    EXPECT_EQ(cache_bytes_per_token(released("deepseek-v3"), DType::kBF16), 61 * 576 * 2);
    EXPECT_EQ(cache_bytes_per_token(released("deepseek-moe-16b"), DType::kF32), 28 * 2 * 16 * 128 * 4);
}

}  // namespace
}  // namespace fathom
