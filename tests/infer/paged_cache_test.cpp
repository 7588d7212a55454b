#include "infer/paged_cache.h"

#include <gtest/gtest.h>

#include <set>

#include "base/threads.h"
#include "cpu/cpu_ops.h"
#include "model/deepseek.h"
#include "model/fixture.h"
#include "nn/cache_type.h"

namespace fathom {
namespace {

const std::vector<std::vector<CacheState>> kTwoLayers{{{"key", 6}, {"value", 4}}, {{"latent", 5}}};

const std::vector<int32_t> kManyTokens(64, 5);
const std::span<const int32_t> kTokens(kManyTokens);

class PagedCacheTest : public ::testing::Test {
protected:
    ThreadPool pool{1};
    CpuOps ops{pool};
};

TEST_F(PagedCacheTest, HasOneTensorPerLayerAndState) {
    const PagedCache cache(ops, kTwoLayers, 100, 16, DType::kBF16);
    EXPECT_EQ(cache.capacity(), 112);  // whole pages
    EXPECT_EQ(cache.free_blocks(), 7);
    ASSERT_EQ(cache.view().layers.size(), 2u);
    ASSERT_EQ(cache.view().layers[0].states.size(), 2u);
    EXPECT_EQ(cache.view().layers[0].states[1].codes.describe(), "BF16[7, 16, 4]");
    EXPECT_EQ(cache.view().layers[1].states[0].codes.describe(), "BF16[7, 16, 5]");
    EXPECT_EQ(PagedCache::width_per_token(kTwoLayers), 15);
}

TEST_F(PagedCacheTest, PagesOfBlocksCountBytes) {
    const std::vector<std::vector<CacheState>> v3{{{"latent", 576}}};
    for (const auto& [name, bytes] : {std::pair("int8", 612), std::pair("int4", 324), std::pair("fp8", 576)}) {
        const CacheType type = *cache_type_from_name(name);
        EXPECT_EQ(cache_row_bytes(type, 576), bytes);
        const PagedCache cache(ops, v3, 32, 16, type);
        EXPECT_EQ(cache.view().layers[0].states[0].codes.bytes(), 32 * bytes);
    }
    EXPECT_LE(100 * cache_row_bytes(CacheType(BlockType::kQ40), 576), 30 * cache_row_bytes(DType::kBF16, 576));
    EXPECT_EQ(cache_row_bytes(CacheType(BlockType::kQ40), 80), 3 * 18);  // whole blocks
    EXPECT_FALSE(cache_type_from_name("int2").has_value());
}

TEST_F(PagedCacheTest, LatentCacheHoldsLatentAndRotaryKeyPerTokenAndLayer) {
    for (const char* name : {"v2-lite-greedy", "v2-group-limited", "v3", "v3-nope-lora-none"}) {
        const ModelConfig config = ModelConfig::load(fixture_folder(name));
        const auto states = DeepSeek(config).cache_states();
        const int64_t layers = config.num_hidden_layers + config.num_nextn_predict_layers;
        ASSERT_EQ(static_cast<int64_t>(states.size()), layers) << name;
        EXPECT_EQ(PagedCache::width_per_token(states), layers * (config.kv_lora_rank + config.qk_rope_head_dim)) << name;
    }
}

TEST_F(PagedCacheTest, SequencesThatRunSideBySideDoNotShareAPage) {
    PagedCache cache(ops, kTwoLayers, 64, 8, DType::kF32);
    CachedSequence a(cache), b(cache);
    for (int i = 0; i < 3; ++i) {
        ASSERT_TRUE(a.reserve(7));
        a.commit(kTokens.first(7));
        ASSERT_TRUE(b.reserve(9));
        b.commit(kTokens.first(9));
    }
    std::set<int32_t> pages(a.block_table().begin(), a.block_table().end());
    pages.insert(b.block_table().begin(), b.block_table().end());
    EXPECT_EQ(a.block_table().size(), 3u);  // 21 tokens
    EXPECT_EQ(b.block_table().size(), 4u);  // 27 tokens
    EXPECT_EQ(pages.size(), 7u);
    EXPECT_EQ(cache.free_blocks(), 1);
}

TEST_F(PagedCacheTest, AFullCacheRefusesAndChangesNothing) {
    PagedCache cache(ops, kTwoLayers, 32, 8, DType::kF32);
    CachedSequence a(cache), b(cache);
    ASSERT_TRUE(a.reserve(20));
    EXPECT_FALSE(b.reserve(9));
    EXPECT_TRUE(b.block_table().empty());
    EXPECT_TRUE(b.reserve(8));
    EXPECT_EQ(cache.free_blocks(), 0);
}

TEST_F(PagedCacheTest, RollbackGivesBackWholePagesOnly) {
    PagedCache cache(ops, kTwoLayers, 32, 8, DType::kF32);
    CachedSequence a(cache);
    ASSERT_TRUE(a.reserve(20));
    a.commit(kTokens.first(20));
    const int32_t first = a.block_table()[0];
    a.rollback(9);
    EXPECT_EQ(a.length(), 9);
    EXPECT_EQ(cache.free_blocks(), 2);
    a.rollback(8);
    EXPECT_EQ(cache.free_blocks(), 3);
    EXPECT_EQ(a.block_table()[0], first);
    EXPECT_THROW(a.rollback(10), LogicError);
}

TEST_F(PagedCacheTest, PagesComeBackWhenASequenceDies) {
    PagedCache cache(ops, kTwoLayers, 32, 8, DType::kF32);
    {
        CachedSequence a(cache);
        ASSERT_TRUE(a.reserve(20));
        a.commit(kTokens.first(20));
        const CachedSequence moved = std::move(a);
        EXPECT_EQ(moved.length(), 20);
        EXPECT_EQ(cache.free_blocks(), 1);
    }
    EXPECT_EQ(cache.free_blocks(), 4);
}

// Sequences that find each other's pages: page size 4, and a state whose numbers tell which token they belong to.
class PrefixCacheTest : public PagedCacheTest {
protected:
    PagedCache cache{ops, {{{"latent", 1}}}, 32, 4, DType::kF32};

    // Writes what is not in the cache yet and returns how many tokens were.
    int64_t compute(CachedSequence& sequence, const std::vector<int32_t>& tokens) {
        const int64_t reused = sequence.reuse(tokens), count = std::ssize(tokens);
        EXPECT_TRUE(sequence.reserve(count - reused));
        auto* state = cache.view().layers[0].states[0].codes.as<float>();
        for (int64_t i = reused; i < count; ++i) {
            state[sequence.block_table()[static_cast<size_t>(i / 4)] * 4 + i % 4] =
                static_cast<float>(tokens[static_cast<size_t>(i)]);
        }
        sequence.commit(std::span(tokens).subspan(static_cast<size_t>(reused)));
        return reused;
    }
    [[nodiscard]] std::vector<float> state_of(const CachedSequence& sequence) const {
        const auto* state = cache.view().layers[0].states[0].codes.as<float>();
        std::vector<float> values;
        for (int64_t i = 0; i < sequence.length(); ++i) {
            values.push_back(state[sequence.block_table()[static_cast<size_t>(i / 4)] * 4 + i % 4]);
        }
        return values;
    }
};

TEST_F(PrefixCacheTest, FullPagesAreSharedWhileTheirFirstUserStillRuns) {
    CachedSequence a(cache), b(cache);
    EXPECT_EQ(compute(a, {1, 2, 3, 4, 5, 6, 7, 8, 9}), 0);
    EXPECT_EQ(compute(b, {1, 2, 3, 4, 5, 6, 7, 8, 20, 21}), 8);
    EXPECT_EQ(a.block_table()[0], b.block_table()[0]);
    EXPECT_EQ(a.block_table()[1], b.block_table()[1]);
    EXPECT_NE(a.block_table()[2], b.block_table()[2]);
    EXPECT_EQ(cache.free_blocks(), 4);
    EXPECT_EQ(state_of(b), (std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8, 20, 21}));
}

TEST_F(PrefixCacheTest, ThePartOfAPageThatAgreesIsCopiedAndTheOriginalIsLeftAlone) {
    {
        CachedSequence a(cache);
        (void)compute(a, {1, 2, 3, 4, 5, 6, 7});
    }
    EXPECT_EQ(cache.free_blocks(), 8);
    CachedSequence b(cache), c(cache);
    EXPECT_EQ(compute(b, {1, 2, 3, 4, 5, 6, 30, 31, 32}), 6);
    EXPECT_EQ(state_of(b), (std::vector<float>{1, 2, 3, 4, 5, 6, 30, 31, 32}));
    EXPECT_EQ(compute(c, {1, 2, 3, 4, 5, 6, 7, 8}), 7);
    EXPECT_EQ(state_of(c), (std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8}));
    EXPECT_EQ(state_of(b), (std::vector<float>{1, 2, 3, 4, 5, 6, 30, 31, 32}));
}

TEST_F(PrefixCacheTest, EqualPagesBehindDifferentBeginningsAreDifferent) {
    CachedSequence a(cache), b(cache);
    (void)compute(a, {1, 2, 3, 4, 5, 6, 7, 8});
    EXPECT_EQ(compute(b, {9, 9, 9, 9, 5, 6, 7, 8}), 0);
}

TEST_F(PrefixCacheTest, SequencesOfAnotherSaltAreNotFound) {
    CachedSequence a(cache, 1), b(cache, 2), c(cache, 1);
    (void)compute(a, {1, 2, 3, 4, 5});
    EXPECT_EQ(b.reuse(std::vector<int32_t>{1, 2, 3, 4, 5}), 0);
    EXPECT_EQ(c.reuse(std::vector<int32_t>{1, 2, 3, 4, 5}), 4);
}

TEST_F(PrefixCacheTest, RoomComesFromWhatWasNotUsedForLongestEndsBeforeBeginnings) {
    for (const int32_t first : {100, 200}) {
        CachedSequence a(cache);
        (void)compute(a, {first, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});  // three pages each
    }
    {
        CachedSequence newer(cache);
        (void)compute(newer, {300, 1, 2, 3, 300, 1, 2, 3, 300, 1, 2, 3});  // two free pages, and the end of the oldest
    }
    CachedSequence oldest(cache), second(cache);
    EXPECT_EQ(oldest.reuse(std::vector<int32_t>{100, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}), 8);
    EXPECT_EQ(second.reuse(std::vector<int32_t>{200, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}), 12);
}

TEST_F(PrefixCacheTest, RollbackIntoASharedPageGivesThePageBack) {
    CachedSequence a(cache), b(cache);
    (void)compute(a, {1, 2, 3, 4, 5, 6, 7, 8, 9});
    (void)compute(b, {1, 2, 3, 4, 5, 6, 7, 8, 9});
    b.rollback(6);
    EXPECT_EQ(b.length(), 4);
    EXPECT_TRUE(b.reserve(2));
    b.commit(std::vector<int32_t>{50, 51});
    EXPECT_EQ(state_of(a), (std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8, 9}));
}

TEST_F(PrefixCacheTest, ForgottenPrefixesAreNotFound) {
    {
        CachedSequence a(cache);
        (void)compute(a, {1, 2, 3, 4, 5});
    }
    cache.forget();
    CachedSequence b(cache);
    EXPECT_EQ(b.reuse(std::vector<int32_t>{1, 2, 3, 4, 5}), 0);
    EXPECT_EQ(cache.listed_blocks(), 0);
}

}  // namespace
}  // namespace fathom
