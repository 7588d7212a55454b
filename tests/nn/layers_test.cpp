// Every layer's backward against its forward under dual numbers, in the shapes where mistakes hide: odd heads, several
// documents, one expert, all experts, biases, balance losses.
#include <gtest/gtest.h>

#include <vector>

#include "nn/adjoint.h"
#include "nn/block.h"
#include "nn/head.h"
#include "nn/mtp.h"
#include "nn/stacked.h"

namespace fathom {
namespace {

// Three documents of different lengths, 9 tokens in all.
template <class Side>
Batch documents(Side& side, AttentionForm form, int64_t rope_dim) {
    static const std::vector<int32_t> tokens{3, 1, 4, 1, 5, 2, 6, 0, 3};
    const std::span<const int32_t> all(tokens);
    const std::vector<SequenceChunk> chunks{
        {all.subspan(0, 4), 0, form, {}}, {all.subspan(4, 1), 0, form, {}}, {all.subspan(5, 4), 0, form, {}}};
    Batch batch = make_batch(side.cx, chunks, 0, true);
    std::vector<float> frequencies;
    for (int64_t i = 0; i < rope_dim / 2; ++i) frequencies.push_back(0.7f / static_cast<float>(i + 1));
    const Tensor inv_freq = side.cx.saved.allocate(DType::kF32, {rope_dim / 2});
    side.cx.ops.write(inv_freq, frequencies.data());
    batch.rope = side.cx.empty({batch.rows, rope_dim}, true);
    side.cx.ops.rope_table(batch.rope, batch.positions, inv_freq, 1.1);
    return batch;
}

constexpr int64_t kRows = 9, kHidden = 10, kRope = 4;

MlaConfig mla_config(int64_t q_lora_rank, bool bias) {
    return {kHidden, 3, q_lora_rank, 7, 5, kRope, 3, bias, 0.37, RopePairing::kInterleaved};
}

// Of width 6 a matrix ends between the arena's boundaries, so that gate and up are two products; of width kStacked they are
// one.
constexpr int64_t kStacked = 8;

MoeConfig moe_config(int64_t experts, int64_t k, RouteRule rule, int64_t shared, int64_t width = 6) {
    return {0, {kHidden, experts, k, rule, rule.topk_method == TopkMethod::kNoauxTc}, width, shared};
}

const RouteRule kV2Rule{ScoringFunc::kSoftmax, TopkMethod::kGroupLimitedGreedy, 2, 1, false, 16.0};
const RouteRule kV3Rule{ScoringFunc::kSigmoid, TopkMethod::kNoauxTc, 2, 1, true, 2.5};
const RouteRule kGreedyRule{ScoringFunc::kSoftmax, TopkMethod::kGreedy, 1, 1, true, 1.0};

void expect_mla_adjoint(const MlaConfig& config, AttentionForm form) {
    expect_adjoint([&](auto& side) {
        Mla mla(config);
        side.bind(mla);
        const Tensor x = side.input({kRows, kHidden});
        const Batch batch = documents(side, form, kRope);
        Mla::Saved saved;
        const Tensor dy = side.output(mla.forward(side.cx, x, batch, nullptr, &saved));
        side.gradient(x, mla.backward(side.cx, dy, batch, saved));
    });
}

TEST(Mla, BackwardIsTheAdjointOfTheExpandedForm) {
    expect_mla_adjoint(mla_config(6, false), AttentionForm::kExpanded);
    expect_mla_adjoint(mla_config(0, false), AttentionForm::kExpanded);
    expect_mla_adjoint(mla_config(6, true), AttentionForm::kExpanded);
}

TEST(Mla, BackwardIsTheAdjointOfTheAbsorbedForm) {
    expect_mla_adjoint(mla_config(6, false), AttentionForm::kAbsorbed);
    expect_mla_adjoint(mla_config(0, true), AttentionForm::kAbsorbed);
}

TEST(Mla, BothFormsAreTheSameFunction) {
    AdjointSide<double> side;
    Mla mla(mla_config(6, true));
    side.bind(mla);
    const Tensor x = side.input({kRows, kHidden});
    const Values<double> expanded(mla.forward(side.cx, x, documents(side, AttentionForm::kExpanded, kRope), nullptr, nullptr));
    const Values<double> absorbed(mla.forward(side.cx, x, documents(side, AttentionForm::kAbsorbed, kRope), nullptr, nullptr));
    for (size_t i = 0; i < expanded.data.size(); ++i) EXPECT_NEAR(expanded.data[i], absorbed.data[i], 1e-12);
}

TEST(Mla, WithoutGradientsNeighboursAreOneProductOfTheSameNumbers) {
    AdjointSide<double> side;
    // 27 rows of 16: the latent's matrix begins where that of the queries ends.
    Mla mla({16, 3, 0, 7, 5, kRope, 3, false, 0.37, RopePairing::kInterleaved});
    side.bind(mla);
    const Tensor x = side.input({kRows, 16});
    for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
        Mla::Saved saved;
        const Batch batch = documents(side, form, kRope);
        const Values<double> kept(mla.forward(side.cx, x, batch, nullptr, &saved));
        const Values<double> joined(mla.forward(side.cx, x, batch, nullptr, nullptr));
        EXPECT_EQ(kept.data, joined.data);
    }
}

TEST(Mha, BackwardIsTheAdjointOfForward) {
    for (const bool bias : {false, true}) {
        expect_adjoint([&](auto& side) {
            Mha mha({kHidden, 3, 3, 4, bias, 0.5, RopePairing::kHalves});
            side.bind(mha);
            const Tensor x = side.input({kRows, kHidden});
            const Batch batch = documents(side, AttentionForm::kExpanded, 4);
            Mha::Saved saved;
            const Tensor dy = side.output(mha.forward(side.cx, x, batch, nullptr, &saved));
            side.gradient(x, mha.backward(side.cx, dy, batch, saved));
        });
    }
}

// Layer(x), where the layer says h + Layer(x).
template <class Side, class Layer>
Tensor alone(Side& side, const Layer& layer, const Tensor& x, const Batch& batch, typename Layer::Saved& saved) {
    const Tensor y = side.cx.zeros({x.dim(0), x.dim(1)});
    layer.forward(side.cx, y, y, x, batch, &saved);
    return y;
}

TEST(Mlp, BackwardIsTheAdjointOfForward) {
    for (const int64_t width : {int64_t{7}, kStacked}) {
        expect_adjoint([=](auto& side) {
            Mlp mlp(kHidden, width);
            side.bind(mlp);
            const Tensor x = side.input({kRows, kHidden});
            Mlp::Saved saved;
            const Tensor dy = side.output(alone(side, mlp, x, {}, saved));
            side.gradient(x, mlp.backward(side.cx, dy, {}, saved));
        });
    }
}

TEST(Stacked, NeighboursInMemoryAreOneMatrix) {
    Arena arena("weights");
    std::vector<Param> gate, up;
    for (int i = 0; i < 2; ++i) {
        for (std::vector<Param>* params : {&gate, &up}) {
            params->push_back(Param::matrix(kStacked, 10));
            params->back().weight = params->back().allocate(arena, DType::kF32);
        }
    }
    const Stacked both = stacked(gate, up);
    ASSERT_EQ(both.weights.size(), 2U);
    EXPECT_EQ(both.weights[1].codes.describe(), "F32[16, 10]");
    EXPECT_EQ(both.weights[1].codes.data, gate[1].weight.codes.data);
    EXPECT_FALSE(stacked(up, gate)) << "the other way around";
    gate[1].grad = gate[1].allocate(arena, DType::kF32);
    EXPECT_FALSE(stacked(gate, up)) << "only one of them is trained";
    gate[1].grad = {};
    up[1].weight.scheme = Scheme::kFp8Block;
    EXPECT_FALSE(stacked(gate, up)) << "scales of two matrices";
}

TEST(Stacked, CodesAreOneMatrixWhereTheirScalesAreToo) {
    Arena codes("codes"), scales("scales"), zeros("zeros");
    const auto groups = [&](int64_t rows) {
        Weight w(codes.allocate(DType::kU8, {rows, 64}), scales.allocate(DType::kBF16, {rows, 4}));
        w.scheme = Scheme::kGroups;
        w.zeros = zeros.allocate(DType::kU8, {rows, 4});
        return w;
    };
    const Weight gate = groups(16), up = groups(16);
    const Weight both = stacked(gate, up);
    EXPECT_EQ(both.codes.describe(), "U8[32, 64]");
    EXPECT_EQ(both.scales.describe(), "BF16[32, 4]");
    EXPECT_EQ(both.zeros.describe(), "U8[32, 4]");
    EXPECT_EQ(both.in_features(), 128);
    Weight apart = up;
    apart.scales = scales.allocate(DType::kBF16, {16, 4});
    EXPECT_FALSE(stacked(gate, apart).codes) << "other scales lie between";
    apart = up;
    apart.zeros = {};
    EXPECT_FALSE(stacked(gate, apart).codes) << "only one has zero points";

    const auto blocks = [&](int64_t rows) {
        return Weight(codes.allocate(DType::kF8E4M3, {rows, 1024}), scales.allocate(DType::kF32, {(rows + 127) / 128, 8}));
    };
    const Weight whole = blocks(256), next = blocks(256), partial = blocks(200), last = blocks(200);
    EXPECT_EQ(stacked(whole, next).scales.describe(), "F32[4, 8]");
    EXPECT_FALSE(stacked(partial, last).codes) << "a block would begin inside one of the other matrix";

    const auto panels = [&](int64_t rows, BlockType type) {
        Weight w(codes.allocate(DType::kU8, {rows / Weight::kPanelRows, 8 * traits_of(type).panel_bytes}), type);
        w.scheme = Scheme::kPanels;
        return w;
    };
    const Weight first = panels(32, BlockType::kQ80), second = panels(64, BlockType::kQ80), other = panels(64, BlockType::kQ40);
    EXPECT_EQ(stacked(first, second).out_features(), 96);
    EXPECT_EQ(stacked(first, second).in_features(), first.in_features());
    EXPECT_FALSE(stacked(second, other).codes) << "of two types";
}

void expect_moe_adjoint(const MoeConfig& config) {
    expect_adjoint([&](auto& side) {
        Moe moe(config);
        side.bind(moe);
        const Tensor x = side.input({kRows, kHidden});
        const Batch batch = documents(side, AttentionForm::kExpanded, kRope);
        Moe::Saved saved;
        const Tensor dy = side.output(alone(side, moe, x, batch, saved));
        side.gradient(x, moe.backward(side.cx, dy, batch, saved));
    });
}

TEST(Moe, BackwardIsTheAdjointOfForward) {
    expect_moe_adjoint(moe_config(8, 3, kV3Rule, 1));
    expect_moe_adjoint(moe_config(8, 3, kV2Rule, 2));
    expect_moe_adjoint(moe_config(5, 2, kGreedyRule, 0));
    expect_moe_adjoint(moe_config(8, 3, kV3Rule, 1, kStacked));
}

TEST(Moe, BackwardHoldsForOneExpertAndForAllExperts) {
    expect_moe_adjoint(moe_config(1, 1, {.routed_scaling_factor = 1.5}, 1));
    expect_moe_adjoint(moe_config(4, 4, kGreedyRule, 1));
}

// The balance losses enter in the backward, so the forward's directional derivative must count them as a second output.
TEST(Moe, BalanceLossesReachTheGateAndTheInput) {
    const std::vector<BalanceLoss> losses{
        {BalanceLossKind::kExpert, 0.3, true},     {BalanceLossKind::kExpert, 0.2, false},
        {BalanceLossKind::kDevice, 0.5, false, 2}, {BalanceLossKind::kCommunication, 0.4, false, 2, 1},
        {BalanceLossKind::kSwitch, 0.1, false},    {BalanceLossKind::kGshard, 0.7, true},
        {BalanceLossKind::kSquared, 0.9, false}};
    for (const RouteRule& rule : {kV2Rule, kV3Rule}) {
        for (const BalanceLoss& loss : losses) {
            expect_adjoint([&](auto& side) {
                Moe moe(moe_config(8, 3, rule, 1));
                side.bind(moe);
                moe.router().balance = {loss};
                moe.statistics.balance_loss = side.cx.zeros({1}, true);
                const Tensor x = side.input({kRows, kHidden});
                const Batch batch = documents(side, AttentionForm::kExpanded, kRope);
                Moe::Saved saved;
                const Tensor dy = side.output(alone(side, moe, x, batch, saved));
                side.gradient(x, moe.backward(side.cx, dy, batch, saved));
                side.loss(moe.statistics.balance_loss);
            });
        }
    }
}

TEST(Router, BiasChangesSelectionNotWeights) {
    AdjointSide<double> side;
    Router router({kHidden, 8, 3, {ScoringFunc::kSigmoid, TopkMethod::kNoauxTc}, true});
    const ParamVisitor bind = [&](const std::string& name, Param& param) { side.bind(name, param); };
    router.visit(Names("gate.", bind));
    const Tensor x = side.input({kRows, kHidden});
    auto* bias = router.correction_bias()->vector().as<double>();
    std::fill_n(bias, 8, 0.0);
    const Values<double> scores(router.forward(side.cx, x, {}, false).scores);
    bias[5] = 10;  // now every token takes expert 5 first
    const Router::Choice choice = router.forward(side.cx, x, {}, false);
    for (int64_t i = 0; i < kRows; ++i) {
        EXPECT_EQ(choice.indices.as<int32_t>()[i * 3], 5);
        EXPECT_EQ(choice.weights.as<double>()[i * 3], scores.data[static_cast<size_t>(i * 8 + 5)]);
    }
}

TEST(Router, ReplayedExpertsGetTheWeightsOfTheCurrentScores) {
    AdjointSide<double> side;
    Router router({kHidden, 8, 3, kV3Rule, true});
    const ParamVisitor bind = [&](const std::string& name, Param& param) { side.bind(name, param); };
    router.visit(Names("gate.", bind));
    const Tensor x = side.input({kRows, kHidden});
    const Router::Choice chosen = router.forward(side.cx, x, {}, false);
    const Router::Choice replayed = router.forward(side.cx, x, chosen.indices, false);
    for (int64_t i = 0; i < kRows * 3; ++i) {
        EXPECT_EQ(chosen.indices.as<int32_t>()[i], replayed.indices.as<int32_t>()[i]);
        EXPECT_DOUBLE_EQ(chosen.weights.as<double>()[i], replayed.weights.as<double>()[i]);
    }
}

TEST(Block, BackwardIsTheAdjointOfForward) {
    const auto expect = [](auto make_block) {
        expect_adjoint([&](auto& side) {
            Block block = make_block();
            side.bind(block);
            const Tensor x = side.input({kRows, kHidden});
            const Batch batch = documents(side, AttentionForm::kExpanded, kRope);
            const Tensor y = side.cx.empty({kRows, kHidden}, true), dx = side.cx.empty({kRows, kHidden}, true);
            Block::Saved saved;
            block.forward(side.cx, y, x, batch, nullptr, &saved);
            block.backward(side.cx, dx, side.output(y), batch, saved);
            side.gradient(x, dx);
        });
    };
    expect([] { return Block(kHidden, 1e-6, Mla(mla_config(6, false)), Moe(moe_config(8, 3, kV3Rule, 1))); });
    expect([] { return Block(kHidden, 1e-5, Mha({kHidden, 2, 2, 4, false, 0.5, RopePairing::kHalves}), Mlp(kHidden, 12)); });
}

TEST(Head, GradientOfTheChunkedLossIsTheAdjoint) {
    expect_adjoint([](auto& side) {
        Linear lm_head(17, kHidden);
        side.bind(lm_head);
        const Tensor x = side.input({kRows, kHidden});
        const std::vector<int32_t> wanted{3, -1, 16, 0, 5, 5, -1, 2, 9};
        const Tensor targets = side.cx.ints(wanted, true), loss = side.cx.empty({kRows}, true),
                     dx = side.cx.empty({kRows, kHidden}, true);
        Head(lm_head).loss_and_gradient(side.cx, loss, dx, x, targets, 1.0);
        side.loss(loss);
        side.gradient(x, dx);
    });
}

TEST(Head, AFewScoresHaveTheirLogitsAdjoint) {
    expect_adjoint([](auto& side) {
        Linear score(1, kHidden);
        side.bind(score);
        const Tensor x = side.input({kRows, kHidden});
        const Tensor dscores = side.output(Head(score).logits(side.cx, x)), dx = side.cx.empty({kRows, kHidden}, true);
        Head(score).logits_backward(side.cx, dx, dscores, x);
        side.gradient(x, dx);
    });
}

TEST(Mtp, BackwardIsTheAdjointOfForward) {
    expect_adjoint([](auto& side) {
        Mtp mtp(kHidden, 1e-6, Block(kHidden, 1e-6, Mla(mla_config(0, false)), Moe(moe_config(4, 2, kGreedyRule, 1))));
        side.bind(mtp);
        const Tensor hidden = side.input({kRows, kHidden}), embedding = side.input({kRows, kHidden});
        const Batch batch = documents(side, AttentionForm::kExpanded, kRope);
        Mtp::Saved saved;
        const Tensor y = mtp.forward(side.cx, hidden, embedding, batch, nullptr, &saved);
        const Tensor doutput = side.output(mtp.output(side.cx, y)), dnext = side.output(y);
        const Tensor dhidden = side.cx.empty({kRows, kHidden}, true), dembedding = side.cx.empty({kRows, kHidden}, true);
        mtp.backward(side.cx, dhidden, dembedding, doutput, dnext, batch, saved);
        side.gradient(hidden, dhidden);
        side.gradient(embedding, dembedding);
    });
}

}  // namespace
}  // namespace fathom
