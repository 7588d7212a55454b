// The scalar head and the pairwise loss against float64 NumPy (tests/data/reward-model), and what both are made of.
#include "rl/reward_model.h"

#include <gtest/gtest.h>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "model/config.h"
#include "model/fixture.h"
#include "reference/reference_ops.h"

namespace fathom {
namespace {

constexpr const char* kFixture = FATHOM_TEST_DATA "/reward-model";

class RewardGolden : public testing::TestWithParam<std::string> {
protected:
    ThreadPool pool{2};
    std::unique_ptr<Ops> ops =
        GetParam() == "cpu" ? std::unique_ptr<Ops>(std::make_unique<CpuOps>(pool)) : std::make_unique<ReferenceOps<double>>();
    LoadedModel loaded = load_model(kFixture, *ops, {.head = HeadKind::kLabels});
    SafetensorsFile golden{std::filesystem::path(kFixture) / "golden.safetensors"};
    nlohmann::json summary = nlohmann::json::parse(read_text(std::filesystem::path(kFixture) / "golden.json"));
    Arena::Grow grow = [this](int64_t bytes) { return ops->allocate(bytes); };
    Arena scratch{"scratch", grow}, saved{"saved", grow}, state{"state", grow};
    Context cx{*ops, scratch, saved};

    [[nodiscard]] TokenBatch sequences() const {
        std::vector<std::span<const int32_t>> all;
        for (int64_t i = 0; i < 2 * summary["pairs"].get<int64_t>(); ++i) {
            const Tensor ids = *golden.find("ids." + std::to_string(i));
            all.emplace_back(ids.as<const int32_t>(), static_cast<size_t>(ids.size()));
        }
        return pack_sequences(all);
    }
    [[nodiscard]] Batch batch_of(const TokenBatch& tokens, bool keep) {
        std::vector<SequenceChunk> chunks;
        for (size_t i = 0; i + 1 < tokens.cu_seqlens.size(); ++i) {
            const auto begin = static_cast<size_t>(tokens.cu_seqlens[i]), end = static_cast<size_t>(tokens.cu_seqlens[i + 1]);
            chunks.push_back({std::span(tokens.tokens).subspan(begin, end - begin), 0, AttentionForm::kExpanded, {}});
        }
        return make_batch(cx, chunks, 0, keep);
    }
};

TEST_P(RewardGolden, ScoresAreThoseOfNumPy) {
    const TokenBatch tokens = sequences();
    const Tensor hidden = loaded.model->forward(cx, batch_of(tokens, false), nullptr, nullptr);
    const std::vector<float> scores = sequence_scores(cx, loaded.model->head(), hidden, tokens.cu_seqlens);
    const auto expected = to_doubles(*golden.find("scores"));
    ASSERT_EQ(scores.size(), expected.size());
    for (size_t i = 0; i < scores.size(); ++i) EXPECT_NEAR(static_cast<double>(scores[i]), expected[i], 2e-5) << i;
}

TEST_P(RewardGolden, LossAndGradientsAreThoseOfNumPy) {
    loaded.model->visit([&](const std::string&, Param& param) {
        param.grad = param.allocate(state, ops->compute_dtype());
        ops->fill(param.grad, 0);
    });
    const TokenBatch tokens = sequences();
    DeepSeek::Saved kept;
    const Tensor hidden = loaded.model->forward(cx, batch_of(tokens, true), nullptr, &kept);
    const Tensor dhidden = cx.empty({hidden.dim(0), hidden.dim(1)}, true);
    const auto pairs = summary["pairs"].get<double>();
    const PairwiseSums sums = pairwise_loss_and_gradient(cx, loaded.model->head(), dhidden, hidden, tokens.cu_seqlens,
                                                         summary["center"].get<double>(), 1 / pairs);
    loaded.model->backward(cx, dhidden, kept);
    EXPECT_NEAR(sums.loss / pairs, summary["loss"].get<double>(), 1e-5);
    EXPECT_NEAR(sums.accuracy(), 2.0 / 3, 1e-12);
    int compared = 0;
    loaded.model->visit([&](const std::string& name, Param& param) {
        const auto expected = golden.find("grad." + name);
        if (!expected) return;
        EXPECT_LE(relative_error(param.grad, *expected), 2e-5) << name;
        ++compared;
    });
    EXPECT_EQ(compared, 4);
}

INSTANTIATE_TEST_SUITE_P(BackEnds, RewardGolden, testing::Values("cpu", "reference"));

TEST(RewardModel, AClassifierIsNoLanguageModelAndTheOtherWayRound) {
    ThreadPool pool(1);
    CpuOps ops(pool);
    const auto expect = [&](const std::string& folder, HeadKind head, const std::string& part) {
        try {
            (void)load_model(folder, ops, {.head = head});
            ADD_FAILURE() << folder << " was opened";
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
        }
    };
    expect(kFixture, HeadKind::kVocabulary, "is a reward model, which writes nothing");
    expect(FATHOM_TEST_DATA "/configs_extra/one-expert", HeadKind::kLabels, "is a language model, which scores nothing");
    EXPECT_EQ(load_model(kFixture, ops, {.head = HeadKind::kAny}).config.num_labels, 1);
}

TEST(RewardModel, ItsConfigurationIsTransformersOwn) {
    ModelConfig config = ModelConfig::load(FATHOM_TEST_DATA "/configs_extra/one-expert");
    config.num_labels = 1;
    const auto json = nlohmann::json::parse(config.to_json());
    EXPECT_EQ(json["architectures"], nlohmann::json::array({"DeepseekV3ForSequenceClassification"}));
    EXPECT_EQ(json["id2label"], (nlohmann::json{{"0", "LABEL_0"}}));
    EXPECT_EQ(json["label2id"], (nlohmann::json{{"LABEL_0", 0}}));
    EXPECT_EQ(ModelConfig::parse(config.to_json()).num_labels, 1);
    ModelConfig back = ModelConfig::parse(config.to_json());
    back.num_labels = 0;
    const auto plain = nlohmann::json::parse(back.to_json());
    EXPECT_EQ(plain["architectures"], nlohmann::json::array({"DeepseekV3ForCausalLM"}));
    EXPECT_FALSE(plain.contains("id2label"));
}

TEST(PairwiseLoss, ItsGradientIsTheDerivativeOfTheLoss) {
    const std::vector<float> scores{0.5F, -0.25F, -3, 2, 40, -40, -40, 40, 1, 1};
    for (const double center : {0.0, 0.3}) {
        std::vector<float> gradient(scores.size());
        const PairwiseSums sums = pairwise_loss(gradient, scores, center, 2);
        EXPECT_TRUE(std::isfinite(sums.loss)) << "margins of 80 do not overflow";
        EXPECT_EQ(sums.pairs, 5);
        EXPECT_EQ(sums.right, 2.5) << "equal scores count half";
        for (size_t i = 0; i < scores.size(); ++i) {
            constexpr float kStep = 0x1p-10F;  // exact in f32 beside every score
            std::vector<float> up = scores, down = scores;
            up[i] += kStep;
            down[i] -= kStep;
            const double slope =
                (pairwise_loss({}, up, center, 1).loss - pairwise_loss({}, down, center, 1).loss) / (2 * 0x1p-10);
            EXPECT_NEAR(static_cast<double>(gradient[i]), 2 * slope, 1e-5) << i;
        }
    }
    std::vector<float> gradient(2);
    const PairwiseSums one = pairwise_loss(gradient, std::vector<float>{1, 0}, 0, 1);
    EXPECT_NEAR(one.loss, std::log1p(std::exp(-1.0)), 1e-15);
    EXPECT_NEAR(static_cast<double>(gradient[0]), -1 / (1 + std::exp(1.0)), 1e-7);
}

}  // namespace
}  // namespace fathom
