#include "infer/paged_cache.h"

#include <gtest/gtest.h>

#include <set>

#include "base/threads.h"
#include "cpu/cpu_ops.h"
#include "model/deepseek.h"
#include "model/fixture.h"

namespace fathom {
namespace {

const std::vector<std::vector<CacheState>> kTwoLayers{{{"key", 6}, {"value", 4}}, {{"latent", 5}}};

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
    EXPECT_EQ(cache.view().layers[0].states[1].describe(), "BF16[7, 16, 4]");
    EXPECT_EQ(cache.view().layers[1].states[0].describe(), "BF16[7, 16, 5]");
    EXPECT_EQ(PagedCache::width_per_token(kTwoLayers), 15);
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

TEST_F(PagedCacheTest, SequencesNeverShareAPage) {
    PagedCache cache(ops, kTwoLayers, 64, 8, DType::kF32);
    CachedSequence a(cache), b(cache);
    for (int i = 0; i < 3; ++i) {
        ASSERT_TRUE(a.reserve(7));
        a.commit(7);
        ASSERT_TRUE(b.reserve(9));
        b.commit(9);
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
    a.commit(20);
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
        a.commit(20);
        const CachedSequence moved = std::move(a);
        EXPECT_EQ(moved.length(), 20);
        EXPECT_EQ(cache.free_blocks(), 1);
    }
    EXPECT_EQ(cache.free_blocks(), 4);
}

}  // namespace
}  // namespace fathom
