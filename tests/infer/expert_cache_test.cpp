#include "infer/expert_cache.h"

#include <gtest/gtest.h>

#include "infer/engine_run.h"

namespace fathom {
namespace {

// Of the fixture's 48 experts 24 have room, the fewest that are allowed: 16 of a layer and 8 on their way.
class PagedModel : public ::testing::TestWithParam<const char*> {
protected:
    static constexpr int64_t kExpertBytes = 3 * 64 * 48 * 2;  // bf16
    EngineRun run{GetParam(), 2};
    ThreadPool one{1};
    CpuOps background{one};
    const std::vector<int32_t> prompt = run.golden_ints("prompt"), expected = run.golden_ints("greedy_nocache");
};

TEST_P(PagedModel, SaysWhatTheWholeModelSaysWhateverHasRoom) {
    for (const int64_t slots : {24, 30, 48}) {
        ExpertCache cache(*run.loaded.model, run.ops, background, slots * kExpertBytes);
        EXPECT_EQ(cache.slots(), slots);
        EXPECT_EQ(cache.experts(), 48);
        for (const int64_t chunk : {1, 5, 512}) {
            EXPECT_EQ(run.greedy(prompt, expected.size(), {.prefill_chunk = chunk, .experts = &cache}), expected)
                << slots << " slots, chunks of " << chunk;
        }
        const ExpertCache::Counters n = cache.counters();
        EXPECT_GT(n.required, 0);
        EXPECT_LE(n.foreseen, n.hits);
        EXPECT_LE(n.hits, n.required);
        EXPECT_LE(n.required - n.hits, n.fetched);  // what was missing was fetched, and more in advance
        EXPECT_EQ(n.bytes_read, n.fetched * kExpertBytes);
        if (slots == 48) {
            EXPECT_LE(n.fetched, 48);  // nothing twice
        } else {
            EXPECT_GT(n.fetched, 48);
        }
    }
}

TEST_P(PagedModel, WhatAPromptWasReadByIsFetchedWhenOneBeginsLikeIt) {
    ExpertCache cache(*run.loaded.model, run.ops, background, 32 * kExpertBytes);
    const EngineOptions options{.block_size = 8, .experts = &cache};
    std::vector<int32_t> other(prompt.rbegin(), prompt.rend());
    (void)run.greedy(prompt, 8, options);
    (void)run.greedy(other, 8, options);
    EXPECT_EQ(cache.counters().recalled, 0) << "nothing is known of how these begin";
    std::vector<int32_t> alike = prompt;
    alike.back() = other.back();
    for (int i = 0; i < 3; ++i) {
        (void)run.greedy(alike, 8, options);
        (void)run.greedy(other, 8, options);
    }
    EXPECT_GT(cache.counters().recalled, 0);
    EXPECT_EQ(run.greedy(prompt, expected.size(), options), expected);
}

TEST_P(PagedModel, GivesTheModelBackAsItWas) {
    std::vector<const void*> before, after;
    run.loaded.model->visit([&](const std::string&, Param& param) { before.push_back(param.weight.codes.data); });
    {
        ExpertCache cache(*run.loaded.model, run.ops, background, 24 * kExpertBytes);
        (void)run.greedy(prompt, 8, {.experts = &cache});
    }
    run.loaded.model->visit([&](const std::string&, Param& param) { after.push_back(param.weight.codes.data); });
    EXPECT_EQ(before, after);
    EXPECT_EQ(run.greedy(prompt, expected.size(), {}), expected);
}

TEST_P(PagedModel, RoomForLessThanALayerIsRefused) {
    try {
        const ExpertCache cache(*run.loaded.model, run.ops, background, 24 * kExpertBytes - 1);
        FAIL() << "23 slots are too few";
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kUsage);
        EXPECT_NE(std::string(error.what()).find("at least 24"), std::string::npos) << error.what();
    }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, PagedModel, ::testing::Values("v3", "v2-lite-greedy"),
                         [](const auto& test) { return test_name(test.param); });

}  // namespace
}  // namespace fathom
