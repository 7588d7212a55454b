#include "ops/plan_ops.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace fathom {
namespace {

Tensor f32(std::initializer_list<int64_t> dims) { return {nullptr, DType::kF32, dims}; }

TEST(PlanOps, AMatmulIsTwoFlopsPerMultiplyAdd) {
    PlanOps ops;
    ops.matmul(f32({5, 7}), f32({5, 11}), Tensor(nullptr, DType::kBF16, {7, 11}));
    const OpCost& cost = ops.cost(OpFamily::kMatmul);
    EXPECT_EQ(cost.calls, 1);
    EXPECT_EQ(cost.flops, 2 * 5 * 7 * 11);
    EXPECT_EQ(cost.weight_bytes, 2 * 7 * 11);
    EXPECT_EQ(cost.read_bytes, 4 * 5 * 11);
    EXPECT_EQ(cost.written_bytes, 4 * 5 * 7);
}

// A = S H (d_n + d_r + d_v) FLOPs per token of the usual count takes S / 2 visible keys where there are (S + 1) / 2.
TEST(PlanOps, CausalAttentionAgreesWithTheMfuFormula) {
    constexpr int64_t kSequences = 3, kLength = 64, kHeads = 4, kNope = 16, kRope = 8, kValue = 12,
                      kRows = kSequences * kLength;
    PlanOps ops;
    Spans spans;
    spans.cu_q = spans.cu_k = Tensor(nullptr, DType::kI32, {kSequences + 1});
    spans.max_q = spans.max_k = kLength;
    ops.attention(f32({kRows, kHeads, kValue}), f32({kRows, kHeads}), f32({kRows, kHeads, kNope + kRope}),
                  f32({kRows, kHeads, kNope}), f32({kRows, kRope}), f32({kRows, kHeads, kValue}), spans, 1);
    const double per_token = kLength * kHeads * (kNope + kRope + kValue);
    EXPECT_DOUBLE_EQ(ops.cost(OpFamily::kAttention).flops, kRows * per_token * (kLength + 1) / kLength);
}

TEST(PlanOps, ADecodeStepReadsTheWholeCacheOfEverySequence) {
    PlanOps ops;
    Spans spans;
    spans.cu_q = spans.cu_k = Tensor(nullptr, DType::kI32, {3});
    spans.block_table = Tensor(nullptr, DType::kI32, {2, 10});
    spans.max_q = 1;
    spans.max_k = 100;
    ops.latent_attention(f32({2, 4, 32}), f32({2, 4}), f32({2, 4, 40}), Tensor(nullptr, DType::kBF16, {50, 16, 40}), spans, 1);
    const OpCost& cost = ops.cost(OpFamily::kAttention);
    EXPECT_EQ(cost.flops, 2 * 2 * 100 * 4 * (40 + 32));
    EXPECT_EQ(cost.read_bytes, 2 * 100 * 40 * 2 + 2 * 4 * 40 * 4 + 2 * 10 * 4);
}

TEST(PlanOps, FewRowsReadFewExperts) {
    PlanOps ops;
    const std::vector<Weight> experts(16, Tensor(nullptr, DType::kBF16, {8, 4}));
    const Tensor offsets(nullptr, DType::kI32, {17});
    ops.grouped_matmul(f32({3, 8}), f32({3, 4}), experts, offsets);
    EXPECT_EQ(ops.total().weight_bytes, 3 * 8 * 4 * 2);
    ops.clear();
    ops.grouped_matmul(f32({300, 8}), f32({300, 4}), experts, offsets);
    EXPECT_EQ(ops.total().weight_bytes, 16 * 8 * 4 * 2);
    EXPECT_EQ(ops.total().flops, 2 * 300 * 8 * 4);
}

TEST(PlanOps, Fp8WeightsBringTheirScales) {
    PlanOps ops;
    const Weight w(Tensor(nullptr, DType::kF8E4M3, {200, 300}), Tensor(nullptr, DType::kF32, {2, 3}));
    ops.matmul(f32({1, 200}), f32({1, 300}), w);
    EXPECT_EQ(ops.total().weight_bytes, 200 * 300 + 2 * 3 * 4);
}

TEST(PlanOps, AnArenaOverItHasSizesButNoData) {
    PlanOps ops;
    Arena arena("plan", [&](int64_t bytes) { return ops.allocate(bytes); });
    const Tensor x = arena.allocate(DType::kF32, {1000, 1000});
    EXPECT_EQ(x.data, nullptr);
    EXPECT_EQ(arena.used(), 4'000'000);
    EXPECT_GE(ops.allocated_bytes(), 4'000'000);
    std::vector<float> host(4, 1.0f);
    ops.read_back(host.data(), x.slice(0, 0, 1).slice(1, 0, 4));
    EXPECT_EQ(host, std::vector<float>(4, 0.0f));
}

}  // namespace
}  // namespace fathom
