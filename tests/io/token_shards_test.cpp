#include "io/token_shards.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

class TokenShardsTest : public testing::Test {
protected:
    fs::path folder_ = fs::path(testing::TempDir()) /
                       ("token_shards_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));

    void SetUp() override { fs::create_directories(folder_); }
    void TearDown() override { fs::remove_all(folder_); }
};

using Ids = std::vector<int32_t>;

std::string message_of(const std::function<void()>& body) {
    try {
        body();
    } catch (const Error& e) {
        return e.what();
    }
    return "no error";
}

void write_bytes(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

fs::path write_shard(const fs::path& path, int64_t vocab_size, const std::vector<Ids>& documents) {
    ShardHeader header;
    header.vocab_size = vocab_size;
    header.settings_hash = 0x0123456789abcdef;
    header.source_begin = 5;
    TokenShardWriter writer(header);
    for (const auto& ids : documents) writer.add(ids, 100);
    writer.write(path, 9);
    return path;
}

Ids document_of(const TokenShard& shard, int64_t i) {
    Ids ids(static_cast<size_t>(shard.length(i)));
    shard.read(ids, i, 0);
    return ids;
}

template <class T>
T value_at(const std::string& bytes, size_t offset) {
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

void set(std::string& bytes, size_t offset, auto value) { std::memcpy(bytes.data() + offset, &value, sizeof value); }

// The file with a checksum that fits its content again.
std::string resealed(std::string bytes) {
    const auto content = std::as_bytes(std::span(bytes)).first(bytes.size() - 8);
    set(bytes, bytes.size() - 8, hash_bytes(content));
    return bytes;
}

// Vectors of the reference implementation (xxhsum -H3).
TEST(HashBytes, IsXxh3WithoutSeed) {
    EXPECT_EQ(hash_text(hash_bytes({})), "2d06800538d394c2");
    const std::string text = "abc";
    EXPECT_EQ(hash_text(hash_bytes(std::as_bytes(std::span(text)))), "78af5f94892f3950");
}

TEST_F(TokenShardsTest, TheFileIsLaidOutAsTheHeaderDocuments) {
    const std::string narrow = read_text(write_shard(folder_ / "a.ftok", 65536, {{1, 2, 65535}, {7}}));
    ASSERT_EQ(narrow.size(), 72u + 3 * 8 + 4 * 2 + 8);
    EXPECT_EQ(narrow.substr(0, 4), "FTOK");
    EXPECT_EQ(value_at<uint32_t>(narrow, 4), 1u);
    const uint64_t expected[] = {2, 65536, 2, 4, 0x0123456789abcdef, 5, 9, 200, 0, 3, 4};
    for (size_t i = 0; i < std::size(expected); ++i) EXPECT_EQ(value_at<uint64_t>(narrow, 8 + 8 * i), expected[i]) << i;
    EXPECT_EQ(value_at<uint16_t>(narrow, 72 + 24 + 4), 65535);
    EXPECT_EQ(value_at<uint64_t>(narrow, narrow.size() - 8),
              hash_bytes(std::as_bytes(std::span(narrow)).first(narrow.size() - 8)));

    const std::string wide = read_text(write_shard(folder_ / "b.ftok", 65537, {{65536}}));
    ASSERT_EQ(wide.size(), 72u + 2 * 8 + 4 + 8);
    EXPECT_EQ(value_at<uint64_t>(wide, 8), 4u);
    EXPECT_EQ(value_at<uint32_t>(wide, 72 + 16), 65536u);
}

TEST_F(TokenShardsTest, DocumentsComeBackWholeAndInPieces) {
    for (const int64_t vocab_size : {100, 200000}) {
        const std::vector<Ids> documents{{1, 2, 3}, {99}, {4, 5, 6, 7}};
        const TokenShard shard(write_shard(folder_ / "a.ftok", vocab_size, documents));
        EXPECT_EQ(shard.header().documents, 3);
        EXPECT_EQ(shard.header().tokens, 8);
        EXPECT_EQ(shard.header().source_end, 9);
        for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(document_of(shard, i), documents[static_cast<size_t>(i)]);
        Ids middle(2);
        shard.read(middle, 2, 1);
        EXPECT_EQ(middle, (Ids{5, 6}));
        EXPECT_THROW(shard.read(middle, 2, 3), LogicError);
        EXPECT_THROW((void)shard.length(3), LogicError);
    }
}

TEST_F(TokenShardsTest, AFlippedBitInAnyByteAndEveryTruncationIsNoticed) {
    const std::string good = read_text(write_shard(folder_ / "a.ftok", 100, {{1, 2, 3}, {4}}));
    const fs::path path = folder_ / "b.ftok";
    for (size_t i = 0; i < good.size(); ++i) {
        std::string bytes = good;
        bytes[i] = static_cast<char>(bytes[i] ^ (1 << (i % 8)));
        write_bytes(path, bytes);
        EXPECT_THROW(TokenShard{path}, Error) << "byte " << i;
    }
    for (size_t size = 0; size < good.size(); ++size) {
        write_bytes(path, good.substr(0, size));
        EXPECT_THROW(TokenShard{path}, Error) << "size " << size;
    }
    write_bytes(path, good + '\0');
    EXPECT_THROW(TokenShard{path}, Error);
}

TEST_F(TokenShardsTest, AWrongFileIsRefusedInWordsThatSayWhy) {
    const std::string good = read_text(write_shard(folder_ / "a.ftok", 100, {{1, 2, 3}, {4}}));
    const fs::path path = folder_ / "b.ftok";
    const auto refusal = [&](const std::string& bytes) {
        write_bytes(path, bytes);
        return message_of([&] { TokenShard{path}; });
    };
    EXPECT_NE(refusal("<html>").find("b.ftok: not a token shard"), std::string::npos);
    std::string bytes = good;
    set(bytes, 4, uint32_t{2});
    EXPECT_NE(refusal(resealed(bytes)).find("version 2, this program reads version 1"), std::string::npos);
    EXPECT_NE(refusal(good.substr(0, 90)).find("truncated or corrupt"), std::string::npos);
    bytes = good;
    bytes[100] ^= 1;
    EXPECT_NE(refusal(bytes).find("checksum does not match"), std::string::npos);
    bytes = good;
    set(bytes, 16, uint64_t{4});  // vocabulary
    EXPECT_NE(refusal(resealed(bytes)).find("token id 4 in a vocabulary of 4"), std::string::npos);
    bytes = good;
    set(bytes, 72 + 8, uint64_t{4});  // the second document would be empty
    EXPECT_NE(refusal(resealed(bytes)).find("offsets do not ascend"), std::string::npos);
    bytes = good;
    set(bytes, 24, uint64_t{1} << 61);  // documents: 8 * documents overflows
    EXPECT_NE(refusal(resealed(bytes)).find("truncated or corrupt"), std::string::npos);
}

TEST_F(TokenShardsTest, TheWriterRefusesIdsOutsideTheVocabulary) {
    ShardHeader header;
    header.vocab_size = 10;
    TokenShardWriter writer(header);
    EXPECT_THROW(writer.add(Ids{10}, 1), LogicError);
    EXPECT_THROW(writer.add(Ids{-1}, 1), LogicError);
    EXPECT_THROW(writer.add({}, 1), LogicError);
    EXPECT_THROW(writer.write(folder_ / "a.ftok", 1), LogicError);
}

TEST_F(TokenShardsTest, AFolderWithoutAManifestIsUnfinished) {
    write_shard(shard_path(folder_, 0), 100, {{1}});
    EXPECT_NE(message_of([&] { TokenDataset{folder_}; }).find("no finished data set"), std::string::npos);
    write_bytes(manifest_path(folder_), "{\"version\": 1}");
    EXPECT_NE(message_of([&] { TokenDataset{folder_}; }).find("not a manifest"), std::string::npos);
    write_bytes(manifest_path(folder_), "nonsense");
    EXPECT_NE(message_of([&] { TokenDataset{folder_}; }).find("not a manifest"), std::string::npos);
}

TEST_F(TokenShardsTest, ADataSetNumbersDocumentsThroughItsShards) {
    write_shard(shard_path(folder_, 0), 100, {{1, 2}, {3}});
    write_shard(shard_path(folder_, 1), 100, {{4, 5, 6}});
    const auto manifest = [&](uint64_t second) {
        const uint64_t first = TokenShard(shard_path(folder_, 0)).checksum();
        return "{\"version\": 1, \"vocab_size\": 100, \"bos_id\": null, \"eos_id\": 3, \"shards\": [{\"checksum\": \"" +
               hash_text(first) + "\"}, {\"checksum\": \"" + hash_text(second) + "\"}]}";
    };
    const uint64_t second = TokenShard(shard_path(folder_, 1)).checksum();
    write_bytes(manifest_path(folder_), manifest(second));
    const TokenDataset dataset(folder_);
    EXPECT_EQ(dataset.documents(), 3);
    EXPECT_EQ(dataset.tokens(), 6);
    EXPECT_EQ(dataset.text_bytes(), 300);
    EXPECT_FALSE(dataset.bos_id());
    EXPECT_EQ(dataset.length(1), 1);
    EXPECT_EQ(dataset.length(2), 3);
    Ids tail(2);
    dataset.read(tail, 2, 1);
    EXPECT_EQ(tail, (Ids{5, 6}));

    write_bytes(manifest_path(folder_), manifest(second + 1));
    EXPECT_NE(message_of([&] { TokenDataset{folder_}; }).find("shard-00001.ftok: not the shard that manifest.json lists"),
              std::string::npos);
}

}  // namespace
}  // namespace fathom
