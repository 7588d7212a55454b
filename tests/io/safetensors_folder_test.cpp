#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "io/safetensors.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// A folder with three shards of one tensor each and their index.
class SafetensorsFolderTest : public testing::Test {
protected:
    void SetUp() override {
        fs::remove_all(folder_);
        fs::create_directories(folder_);
        for (int i = 1; i <= 3; ++i) {
            write_shard(i, "t" + std::to_string(i));
            index_["weight_map"]["t" + std::to_string(i)] = shard(i);
        }
        write_index();
    }
    void TearDown() override { fs::remove_all(folder_); }

    static std::string shard(int i) { return "model-0000" + std::to_string(i) + "-of-00003.safetensors"; }
    void write_shard(int i, const std::string& tensor) {
        const NamedTensor one{tensor, {values_.data() + i, DType::kF32, {1}}};
        write_safetensors(folder_ / shard(i), std::span(&one, 1));
    }
    void write_index() const { write_text_atomically(folder_ / "model.safetensors.index.json", index_.dump()); }
    [[nodiscard]] std::string complaint() const {
        try {
            (void)SafetensorsFolder(folder_);
            return "";
        } catch (const Error& e) {
            EXPECT_EQ(e.kind(), ErrorKind::kInput);
            return e.what();
        }
    }

    const fs::path folder_ =
        fs::path(testing::TempDir()) / ("folder_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::array<float, 4> values_{0, 1, 2, 3};
    Json index_ = {{"metadata", {{"total_size", 12}}}};
};

TEST_F(SafetensorsFolderTest, FindsTensorsInAllShards) {
    const SafetensorsFolder files(folder_);
    EXPECT_EQ(files.names(), (std::vector<std::string>{"t1", "t2", "t3"}));
    EXPECT_EQ(files.total_bytes(), 12);
    for (int i = 1; i <= 3; ++i) EXPECT_EQ(files.find("t" + std::to_string(i))->as<float>()[0], i);
    EXPECT_FALSE(files.find("t4"));
}

TEST_F(SafetensorsFolderTest, ASingleFileGoesBeforeAnIndex) {
    const NamedTensor one{"single", {values_.data(), DType::kF32, {1}}};
    write_safetensors(folder_ / "model.safetensors", std::span(&one, 1));
    EXPECT_EQ(SafetensorsFolder(folder_).names(), std::vector<std::string>{"single"});
}

TEST_F(SafetensorsFolderTest, AllMissingShardsAreNamed) {
    fs::remove(folder_ / shard(1));
    fs::remove(folder_ / shard(3));
    EXPECT_EQ(complaint(), folder_.string() + ": 2 of 3 shards are missing: " + shard(1) + ", " + shard(3) +
                               "; download or copy them into this folder");
}

TEST_F(SafetensorsFolderTest, IndexAndShardsThatDisagreeAreListed) {
    write_shard(2, "other");
    const std::string message = complaint();
    EXPECT_NE(message.find("t2 is not in " + shard(2)), std::string::npos) << message;
    EXPECT_NE(message.find("other of " + shard(2) + " is not in the index"), std::string::npos) << message;
}

TEST_F(SafetensorsFolderTest, ATensorInTwoShardsIsADisagreement) {
    write_shard(2, "t1");
    EXPECT_NE(complaint().find("t1 of " + shard(2) + " is not in the index"), std::string::npos) << complaint();
}

TEST_F(SafetensorsFolderTest, ACorruptShardIsNamed) {
    write_text_atomically(folder_ / shard(2), "garbage garbage garbage");
    EXPECT_NE(complaint().find((folder_ / shard(2)).string()), std::string::npos) << complaint();
}

TEST_F(SafetensorsFolderTest, AnIndexCannotLeadOutOfItsFolder) {
    for (const char* file : {"../secret.safetensors", "/etc/passwd", "..", ""}) {
        index_["weight_map"]["t1"] = file;
        write_index();
        EXPECT_NE(complaint().find("which is no file name of this folder"), std::string::npos) << file;
    }
}

TEST_F(SafetensorsFolderTest, AnIndexThatIsNoneIsRefused) {
    for (const char* text : {"", "{", "[]", "{}", R"({"weight_map":3})"}) {
        write_text_atomically(folder_ / "model.safetensors.index.json", text);
        EXPECT_NE(complaint().find("not an index with a weight_map"), std::string::npos) << text;
    }
}

TEST_F(SafetensorsFolderTest, AFolderWithoutAModelSaysWhatIsExpected) {
    EXPECT_THROW((void)SafetensorsFolder(folder_ / "nowhere"), Error);
    fs::remove(folder_ / "model.safetensors.index.json");
    EXPECT_NE(complaint().find("neither model.safetensors nor model.safetensors.index.json"), std::string::npos);
}

}  // namespace
}  // namespace fathom
