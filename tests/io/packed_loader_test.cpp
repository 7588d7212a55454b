#include "io/packed_loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

using Ids = std::vector<int32_t>;

// Document i of length n is 1000 i, 1000 i + 1, ..., 1000 i + n - 1: a token says where it comes from.
class PackedLoaderTest : public testing::Test {
protected:
    fs::path folder_ = fs::path(testing::TempDir()) /
                       ("packed_loader_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));

    void TearDown() override { fs::remove_all(folder_); }

    TokenDataset dataset_of(const std::vector<int64_t>& lengths, int64_t documents_per_shard = 1000) const {
        fs::create_directories(folder_);
        std::string shards;
        for (size_t first = 0, s = 0; first < lengths.size(); first += static_cast<size_t>(documents_per_shard), ++s) {
            ShardHeader header;
            header.vocab_size = 1'000'000;
            TokenShardWriter writer(header);
            for (size_t i = first; i < std::min(lengths.size(), first + static_cast<size_t>(documents_per_shard)); ++i) {
                Ids ids(static_cast<size_t>(lengths[i]));
                std::iota(ids.begin(), ids.end(), static_cast<int32_t>(1000 * i));
                writer.add(ids, 1);
            }
            const auto path = shard_path(folder_, static_cast<int64_t>(s));
            writer.write(path, 0);
            shards += (s > 0 ? ", " : "") + ("{\"checksum\": \"" + hash_text(TokenShard(path).checksum()) + "\"}");
        }
        std::ofstream(manifest_path(folder_))
            << "{\"version\": 1, \"vocab_size\": 1000000, \"bos_id\": null, \"eos_id\": 0, \"shards\": [" << shards << "]}";
        return TokenDataset(folder_);
    }

    static PackedLoaderOptions options(int64_t sequence_length, int64_t rows, bool shuffle, uint64_t seed = 1) {
        return {.sequence_length = sequence_length, .rows_per_batch = rows, .seed = seed, .shuffle = shuffle};
    }
};

const std::vector<int64_t> kLengths{5, 1, 17, 2, 9, 3, 40, 1, 8, 6, 2, 30};  // 124 tokens

// What every batch must satisfy, worked out from the tokens alone.
void expect_sound(const TokenBatch& batch, const std::vector<int64_t>& lengths, int64_t sequence_length) {
    const size_t n = batch.tokens.size();
    ASSERT_EQ(batch.positions.size(), n);
    ASSERT_EQ(batch.targets.size(), n);
    ASSERT_GE(batch.cu_seqlens.size(), 2u);
    EXPECT_EQ(batch.cu_seqlens.front(), 0);
    EXPECT_EQ(batch.cu_seqlens.back(), static_cast<int32_t>(n));
    for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
        const int64_t begin = batch.cu_seqlens[s], end = batch.cu_seqlens[s + 1];
        ASSERT_LT(begin, end);
        EXPECT_EQ(begin / sequence_length, (end - 1) / sequence_length) << "a segment lies in one row";
        for (int64_t t = begin; t < end; ++t) {
            const auto i = static_cast<size_t>(t);
            EXPECT_EQ(batch.positions[i], t - begin);
            EXPECT_EQ(batch.tokens[i], batch.tokens[static_cast<size_t>(begin)] + (t - begin))
                << "a segment is of one document";
            const int64_t length = lengths[static_cast<size_t>(batch.tokens[i] / 1000)];
            ASSERT_LT(batch.tokens[i] % 1000, length);
            EXPECT_EQ(batch.targets[i], batch.tokens[i] % 1000 == length - 1 ? kNoTarget : batch.tokens[i] + 1);
        }
    }
}

TEST_F(PackedLoaderTest, ASmallExampleIsCutAndMaskedAsDocumented) {
    PackedLoader loader(dataset_of({3, 4, 1}), options(5, 1, false));
    const auto first = loader.next(), second = loader.next();
    ASSERT_TRUE(first && second);
    EXPECT_EQ(*first, (TokenBatch{.tokens = {0, 1, 2, 1000, 1001},
                                  .positions = {0, 1, 2, 0, 1},
                                  .targets = {1, 2, -1, 1001, 1002},
                                  .cu_seqlens = {0, 3, 5}}));
    EXPECT_EQ(
        *second,
        (TokenBatch{.tokens = {1002, 1003, 2000}, .positions = {0, 1, 0}, .targets = {1003, -1, -1}, .cu_seqlens = {0, 2, 3}}));
    EXPECT_FALSE(loader.next());
    EXPECT_FALSE(loader.next());
}

TEST_F(PackedLoaderTest, WithoutShuffleTheWholeSetComesOnceInOrder) {
    for (const int64_t sequence_length : {1, 3, 7, 8, 200})
        for (const int64_t rows : {1, 2, 5}) {
            PackedLoader loader(dataset_of(kLengths, 5), options(sequence_length, rows, false));
            Ids tokens;
            int64_t batches = 0;
            while (const auto batch = loader.next()) {
                expect_sound(*batch, kLengths, sequence_length);
                tokens.insert(tokens.end(), batch->tokens.begin(), batch->tokens.end());
                ++batches;
                EXPECT_TRUE(std::ssize(batch->tokens) == sequence_length * rows || std::ssize(tokens) == 124);
            }
            EXPECT_EQ(batches, loader.batches_per_epoch());
            Ids expected;
            for (size_t i = 0; i < kLengths.size(); ++i)
                for (int64_t k = 0; k < kLengths[i]; ++k)
                    expected.push_back(static_cast<int32_t>(1000 * static_cast<int64_t>(i) + k));
            EXPECT_EQ(tokens, expected);
        }
}

// 124 tokens in rows of 8: 16 rows, and 4 tokens to fill the last one up.
TEST_F(PackedLoaderTest, ShuffledEveryEpochHoldsEveryTokenAndBatchesAreFull) {
    PackedLoader loader(dataset_of(kLengths, 5), options(8, 3, true));
    EXPECT_EQ(loader.rows_per_epoch(), 16);
    EXPECT_EQ(loader.batches_per_epoch(), 6);
    Ids tokens;
    while (tokens.size() < 6 * 128) {
        const auto batch = loader.next();
        ASSERT_TRUE(batch);
        ASSERT_EQ(batch->tokens.size(), 24u);
        expect_sound(*batch, kLengths, 8);
        tokens.insert(tokens.end(), batch->tokens.begin(), batch->tokens.end());
    }
    std::set<Ids> epochs;
    for (int epoch = 0; epoch < 6; ++epoch) {
        const Ids part(tokens.begin() + 128 * epoch, tokens.begin() + 128 * (epoch + 1));
        EXPECT_EQ(std::set<int32_t>(part.begin(), part.end()).size(), 124u);
        epochs.insert(part);
    }
    EXPECT_EQ(epochs.size(), 6u) << "each epoch has an order of its own";
}

TEST_F(PackedLoaderTest, LongDocumentsAreCutElsewhereEveryEpochAndTheirRowsAreSpread) {
    const std::vector<int64_t> lengths{900, 900};
    PackedLoader loader(dataset_of(lengths), options(10, 1, true));
    std::set<int32_t> cuts;
    int64_t switches = 0, full_rows = 0;
    for (int epoch = 0; epoch < 20; ++epoch) {
        int32_t before = -1;
        for (int64_t row = 0; row < loader.rows_per_epoch(); ++row) {
            const TokenBatch batch = *loader.next();
            if (batch.cu_seqlens.size() > 2) continue;
            ++full_rows;
            cuts.insert(batch.tokens[0] % 1000 % 10);
            switches += before >= 0 && before != batch.tokens[0] / 1000;
            before = batch.tokens[0] / 1000;
        }
    }
    EXPECT_GE(full_rows, 20 * 178) << "all but heads and tails fill rows of their own";
    EXPECT_EQ(cuts.size(), 10u);
    EXPECT_GT(switches, full_rows / 2 - 200);  // neighbouring rows come from different documents about every second time
    EXPECT_LT(switches, full_rows / 2 + 200);
}

TEST_F(PackedLoaderTest, AnEpochSmallerThanARowRepeatsItself) {
    PackedLoader loader(dataset_of({2, 1}), options(8, 1, true));
    const TokenBatch batch = *loader.next();
    expect_sound(batch, {2, 1}, 8);
    EXPECT_EQ(batch.tokens.size(), 8u);
    EXPECT_EQ(loader.rows_per_epoch(), 1);
}

// All 24 orders of four documents are equally likely: chi-square with 23 degrees of freedom, 99.9 % below 49.7.
TEST_F(PackedLoaderTest, OrdersAreUniform) {
    PackedLoader loader(dataset_of({1, 1, 1, 1}), options(4, 1, true));
    std::map<Ids, int> counts;
    constexpr int kEpochs = 4800;
    for (int i = 0; i < kEpochs; ++i) ++counts[loader.next()->tokens];
    EXPECT_EQ(counts.size(), 24u);
    double chi_square = 0;
    for (const auto& [order, count] : counts) chi_square += (count - 200.0) * (count - 200.0) / 200.0;
    EXPECT_LT(chi_square, 49.7);
}

TEST_F(PackedLoaderTest, TheSeedDecidesTheOrder) {
    const auto batch = [&](uint64_t seed) { return *PackedLoader(dataset_of(kLengths), options(124, 1, true, seed)).next(); };
    EXPECT_EQ(batch(1), batch(1));
    EXPECT_NE(batch(1), batch(2));
}

TEST_F(PackedLoaderTest, RestoredAtAnyBatchTheRestIsTheSame) {
    for (const bool shuffle : {true, false}) {
        PackedLoader reference(dataset_of(kLengths, 5), options(7, 2, shuffle));
        std::vector<std::optional<TokenBatch>> batches;
        std::vector<PackedLoader::State> states;
        for (int i = 0; i < 30; ++i) {
            states.push_back(reference.state());
            batches.push_back(reference.next());
        }
        PackedLoader loader(dataset_of(kLengths, 5), options(7, 2, shuffle));
        (void)loader.next();
        for (const size_t i : {29u, 0u, 13u, 8u, 9u, 10u, 1u}) {
            loader.restore(states[i]);
            EXPECT_EQ(loader.state(), states[i]);
            for (size_t k = i; k < batches.size(); ++k) ASSERT_EQ(loader.next(), batches[k]) << "from " << i << " at " << k;
        }
    }
}

TEST_F(PackedLoaderTest, AStateOfOtherDataIsRefused) {
    PackedLoader once(dataset_of(kLengths), options(7, 2, false)), forever(dataset_of(kLengths), options(7, 2, true));
    EXPECT_EQ(once.rows_per_epoch(), 18);
    for (const PackedLoader::State state : {PackedLoader::State{0, 19}, {-1, 0}, {0, -1}}) {
        EXPECT_THROW(once.restore(state), Error);
        EXPECT_THROW(forever.restore(state), Error);
    }
    EXPECT_THROW(once.restore({1, 0}), Error);
    EXPECT_NO_THROW(once.restore({0, 18}));
    EXPECT_FALSE(once.next());
    EXPECT_NO_THROW(forever.restore({1'000'000, 5}));
}

TEST_F(PackedLoaderTest, ShiftedTargetsStayInsideTheSegment) {
    PackedLoader loader(dataset_of({3, 4, 1}), options(5, 1, false));
    const auto first = loader.next();
    EXPECT_EQ(shifted_targets(*first, 1), first->targets);
    // The second row's 1002 is the target behind 1001, but 1003 lies beyond what this row has seen.
    EXPECT_EQ(shifted_targets(*first, 2), (Ids{2, -1, -1, 1002, -1}));
    EXPECT_EQ(shifted_targets(*first, 3), (Ids{-1, -1, -1, -1, -1}));
    EXPECT_EQ(shifted_targets(*first, 9), (Ids{-1, -1, -1, -1, -1}));
}

TEST_F(PackedLoaderTest, ShiftedTargetsAreTheTokenKAheadOfItsOwnDocument) {
    PackedLoader loader(dataset_of(kLengths), options(16, 4, true));
    for (int i = 0; i < 4; ++i) {
        const TokenBatch batch = *loader.next();
        for (int64_t k = 1; k <= 18; ++k) {
            const Ids shifted = shifted_targets(batch, k);
            for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s)
                for (int32_t t = batch.cu_seqlens[s]; t < batch.cu_seqlens[s + 1]; ++t) {
                    const auto at = static_cast<size_t>(t);
                    const int64_t ahead = batch.tokens[at] % 1000 + k;
                    const bool reached =
                        t + k - 1 < batch.cu_seqlens[s + 1] && ahead < kLengths[static_cast<size_t>(batch.tokens[at] / 1000)];
                    EXPECT_EQ(shifted[at], reached ? batch.tokens[at] + k : kNoTarget);
                }
        }
    }
}

}  // namespace
}  // namespace fathom
