#include "model/flop_count.h"

#include <gtest/gtest.h>
#include <filesystem>

#include "base/file.h"

namespace fathom {
namespace {

ModelConfig released(const std::string& name) {
    return ModelConfig::parse(read_text(std::filesystem::path(FATHOM_TEST_DATA) / "configs" / (name + ".json")));
}

// Two published pairs of FLOP/s and tokens/s of V3's pre-training at 4096 tokens (Megatron-Bridge): 338e12 / 1297 with one MTP
// module, 961e12 / 3848 without.
TEST(FlopCount, TrainingV3CostsWhatMegatronPublishes) {
    ModelConfig v3 = released("deepseek-v3");
    EXPECT_NEAR(count_flops(v3, mean_keys(4096)).training() / 1e9, 260.6, 0.1);
    v3.num_nextn_predict_layers = 0;
    const FlopCount flops = count_flops(v3, mean_keys(4096));
    EXPECT_NEAR(flops.training() / 1e9, 250.4, 0.1);
    EXPECT_NEAR(flops.training() / (961e12 / 3848), 1, 0.003);
    EXPECT_NEAR((flops.layers + flops.head) / 2 / 1e9, 36.62, 0.01);
}

TEST(FlopCount, TheAbsorbedFormPaysPerKeyOnly) {
    const ModelConfig v3 = released("deepseek-v3");
    const FlopCount expanded = count_flops(v3, 1000), absorbed = count_flops(v3, 1000, AttentionForm::kAbsorbed);
    EXPECT_DOUBLE_EQ(absorbed.layers, expanded.layers);
    EXPECT_DOUBLE_EQ(absorbed.attention, 61.0 * 2 * 128 * (512 + 64 + 512) * 1000);
    EXPECT_DOUBLE_EQ(expanded.attention, 61.0 * 2 * 128 * (128 + 64 + 128) * 1000);
}

TEST(FlopCount, V1HasNoAbsorbedForm) {
    const ModelConfig v1 = released("deepseek-moe-16b");
    EXPECT_DOUBLE_EQ(count_flops(v1, 10, AttentionForm::kAbsorbed).attention, count_flops(v1, 10).attention);
}

TEST(FlopCount, ALaterTokenSeesMoreKeys) {
    EXPECT_DOUBLE_EQ(mean_keys(1), 1);
    EXPECT_DOUBLE_EQ(mean_keys(3), 2);
    EXPECT_DOUBLE_EQ(mean_keys(1, 100), 101);
}

}  // namespace
}  // namespace fathom
