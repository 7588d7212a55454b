#include "infer/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>

#include "infer/engine_run.h"

namespace fathom {
namespace {

class PerplexityTest : public ::testing::Test {
protected:
    EngineRun run{"v3", 1};
    const Tensor logits = *run.golden.find("logits");  // [2, 96, vocab]
    const std::vector<int32_t> ids = run.golden_ints("input_ids");

    // -log p of token i + 1 of the first sequence, by transformers' logits.
    [[nodiscard]] double golden_nll(int64_t i) const {
        const auto* row = logits.as<float>() + i * logits.dim(2);
        double sum = 0;
        for (int64_t v = 0; v < logits.dim(2); ++v) sum += std::exp(static_cast<double>(row[v]));
        return std::log(sum) - static_cast<double>(row[ids[static_cast<size_t>(i) + 1]]);
    }
    [[nodiscard]] std::span<const int32_t> first(size_t tokens) const { return std::span(ids).first(tokens); }
};

TEST_F(PerplexityTest, AgreesWithTransformersInOneWindow) {
    double expected = 0;
    for (int64_t i = 0; i < 95; ++i) expected += golden_nll(i);
    for (const bool deterministic : {false, true}) {
        const auto result = perplexity(run.model(), run.ops, first(96), {.context = 95, .deterministic = deterministic});
        EXPECT_EQ(result.tokens, 95);
        EXPECT_NEAR(result.nll, expected, 1e-3);
        EXPECT_NEAR(result.perplexity(), std::exp(expected / 95), 1e-3 * result.perplexity());
    }
}

TEST_F(PerplexityTest, EveryTokenButTheFirstIsScoredOnceWhateverTheStride) {
    for (const int64_t stride : {0, 1, 7, 30}) {
        int64_t last = 0;
        const auto result =
            perplexity(run.model(), run.ops, first(96), {.context = 30, .stride = stride}, [&](const PerplexityResult& so_far) {
                EXPECT_GT(so_far.tokens, last);
                last = so_far.tokens;
            });
        EXPECT_EQ(result.tokens, 95) << stride;
        EXPECT_EQ(last, 95);
    }
}

TEST_F(PerplexityTest, AStrideOfOneLooksBackAWholeWindow) {
    // Window k begins at k, so its only new token has `context` tokens before it: sums of single windows.
    constexpr int64_t kContext = 40;
    double expected = perplexity(run.model(), run.ops, first(kContext + 1), {.context = kContext}).nll;
    for (size_t k = 1; k + kContext < 46; ++k) {
        const auto window = std::span(ids).subspan(k, kContext + 1);
        const auto whole = perplexity(run.model(), run.ops, window, {.context = kContext});
        const auto but_last = perplexity(run.model(), run.ops, window.first(kContext), {.context = kContext});
        expected += whole.nll - but_last.nll;
    }
    EXPECT_NEAR(perplexity(run.model(), run.ops, first(46), {.context = kContext, .stride = 1}).nll, expected, 1e-3);
}

TEST_F(PerplexityTest, ATextOfOneTokenPredictsNothing) {
    const auto result = perplexity(run.model(), run.ops, first(1), {});
    EXPECT_EQ(result.tokens, 0);
    EXPECT_EQ(result.nll, 0);
}

}  // namespace
}  // namespace fathom
