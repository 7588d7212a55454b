#include <gtest/gtest.h>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "io/safetensors.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

// An empty folder of the running test, removed with it.
class SafetensorsWriter : public testing::Test {
protected:
    void SetUp() override {
        fs::remove_all(folder_);
        fs::create_directories(folder_);
    }
    void TearDown() override { fs::remove_all(folder_); }

    [[nodiscard]] std::vector<std::string> listing() const {
        std::vector<std::string> names;
        for (const auto& entry : fs::directory_iterator(folder_)) names.push_back(entry.path().filename().string());
        std::ranges::sort(names);
        return names;
    }

    const fs::path folder_ = fs::path(testing::TempDir()) /
                             ("safetensors_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
};

std::string bytes_of(const Tensor& t) { return {t.as<const char>(), static_cast<size_t>(t.bytes())}; }

std::vector<TensorSpec> specs_of(const SafetensorsFolder& files) {
    std::vector<TensorSpec> specs;
    for (const std::string& name : files.names()) {
        const Tensor t = *files.find(name);
        specs.push_back({name, t.dtype, {t.shape.begin(), t.shape.begin() + t.rank}});
    }
    return specs;
}

void resave(const SafetensorsFolder& files, const fs::path& folder, int64_t max_shard_bytes = kMaxShardBytes) {
    ShardedWriter writer(folder, specs_of(files), files.files()[0].metadata(), max_shard_bytes);
    for (const TensorSpec& spec : writer.order()) writer.write(*files.find(spec.name));
    writer.commit();
}

void expect_same_tensors(const SafetensorsFolder& a, const SafetensorsFolder& b) {
    std::vector<std::string> names_a = a.names(), names_b = b.names();
    std::ranges::sort(names_a);
    std::ranges::sort(names_b);
    ASSERT_EQ(names_a, names_b);
    for (const std::string& name : names_a) {
        EXPECT_EQ(a.find(name)->describe(), b.find(name)->describe()) << name;
        EXPECT_TRUE(bytes_of(*a.find(name)) == bytes_of(*b.find(name))) << name;
    }
}

// Four float tensors of 400 bytes, all elements `value`.
class Four {
public:
    explicit Four(float value) {
        for (size_t i = 0; i < 4; ++i) {
            values_[i].fill(value);
            specs.push_back({"t" + std::to_string(i), DType::kF32, {10, 10}});
        }
    }
    [[nodiscard]] Tensor tensor(size_t i) { return {values_[i].data(), DType::kF32, {10, 10}}; }
    void write(const fs::path& folder, int64_t max_shard_bytes) {
        ShardedWriter writer(folder, specs, {}, max_shard_bytes);
        for (size_t i = 0; i < 4; ++i) writer.write(tensor(i));
        writer.commit();
    }

    std::vector<TensorSpec> specs;

private:
    std::array<std::array<float, 100>, 4> values_{};
};

float first_of(const fs::path& folder, std::string_view name) { return SafetensorsFolder(folder).find(name)->as<float>()[0]; }

TEST_F(SafetensorsWriter, ReproducesTheOfficialWritersFileByteForByte) {
    const fs::path official = fs::path(FATHOM_TEST_DATA) / "safetensors" / "every_dtype.safetensors";
    const SafetensorsFile file(official);
    write_safetensors(folder_ / "copy.safetensors", file.tensors(), file.metadata());
    EXPECT_TRUE(read_text(folder_ / "copy.safetensors") == read_text(official));
}

TEST_F(SafetensorsWriter, PutsLargerElementsFirstSoThatAllAreAligned) {
    std::array<uint8_t, 3> small{1, 2, 3};
    std::array<double, 2> large{4, 5};
    const NamedTensor tensors[] = {{"small", {small.data(), DType::kU8, {3}}}, {"large", {large.data(), DType::kF64, {2}}}};
    write_safetensors(folder_ / "mixed.safetensors", tensors);
    const SafetensorsFile file(folder_ / "mixed.safetensors");
    EXPECT_EQ(file.tensors()[0].name, "large");
    EXPECT_EQ(file.find("large")->as<double>()[1], 5);
    EXPECT_EQ(file.find("small")->as<uint8_t>()[2], 3);
}

TEST_F(SafetensorsWriter, ReSavedFixturesHaveTheSameTensors) {
    int checkpoints = 0;
    for (const auto& entry : fs::recursive_directory_iterator(FATHOM_TEST_DATA)) {
        if (entry.path().filename() != "model.safetensors") continue;
        const SafetensorsFolder original(entry.path().parent_path());
        for (const int64_t shard_bytes : {kMaxShardBytes, original.total_bytes() / 3}) {
            resave(original, folder_, shard_bytes);
            const SafetensorsFolder copy(folder_);
            EXPECT_EQ(copy.files().size() > 1, shard_bytes != kMaxShardBytes);
            EXPECT_EQ(copy.total_bytes(), original.total_bytes());
            expect_same_tensors(original, copy);
        }
        ++checkpoints;
    }
    EXPECT_GE(checkpoints, 15);
}

TEST_F(SafetensorsWriter, OneShardIsASingleFileWithoutIndex) {
    Four(1).write(folder_, 1600);
    EXPECT_EQ(listing(), std::vector<std::string>{"model.safetensors"});
}

TEST_F(SafetensorsWriter, ShardsHoldNoMoreThanAllowedUnlessOneTensorIsLarger) {
    Four(1).write(folder_, 1000);
    EXPECT_EQ(listing(), (std::vector<std::string>{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                                                   "model.safetensors.index.json"}));
    const auto index = nlohmann::json::parse(read_text(folder_ / "model.safetensors.index.json"));
    EXPECT_EQ(index["metadata"]["total_size"], 1600);
    EXPECT_EQ(index["weight_map"]["t1"], "model-00001-of-00002.safetensors");
    EXPECT_EQ(index["weight_map"]["t2"], "model-00002-of-00002.safetensors");
    Four(1).write(folder_, 10);
    EXPECT_EQ(SafetensorsFolder(folder_).files().size(), 4u);
}

TEST_F(SafetensorsWriter, EveryLayoutReplacesEveryOther) {
    float value = 0;
    for (const int64_t before : {10, 1000, 10000}) {
        for (const int64_t after : {10, 1000, 10000}) {
            Four(++value).write(folder_, before);
            EXPECT_EQ(first_of(folder_, "t3"), value);
            Four(++value).write(folder_, after);
            EXPECT_EQ(first_of(folder_, "t0"), value);
            EXPECT_EQ(first_of(folder_, "t3"), value);
            EXPECT_EQ(listing().size(), after == 10 ? 5u : after == 1000 ? 3u : 1u) << before << " -> " << after;
        }
    }
}

TEST_F(SafetensorsWriter, WithoutCommitTheEarlierCheckpointStaysAndNothingIsLeftBehind) {
    Four(1).write(folder_, 1000);
    const auto before = listing();
    {
        Four two(2);
        ShardedWriter writer(folder_, two.specs, {}, 10);
        for (size_t i = 0; i < 3; ++i) writer.write(two.tensor(i));
        EXPECT_EQ(first_of(folder_, "t0"), 1);
    }
    EXPECT_EQ(listing(), before);
    EXPECT_EQ(first_of(folder_, "t0"), 1);
}

TEST_F(SafetensorsWriter, AJobGoesOnBehindItsLastWholeShard) {
    Four two(2);
    Four(2).write(folder_, 1000);
    const std::string first = read_text(folder_ / "model-00001-of-00002.safetensors"),
                      second = read_text(folder_ / "model-00002-of-00002.safetensors");
    for (size_t stop = 0; stop <= 4; ++stop) {
        for (const bool same : {true, false}) {
            fs::remove_all(folder_);
            {
                ShardedWriter writer(folder_, two.specs, {}, 1000, "a job");
                for (size_t i = 0; i < stop; ++i) writer.write(two.tensor(i));
            }
            EXPECT_EQ(unfinished_job(folder_), "a job");
            ShardedWriter writer(folder_, two.specs, {}, 1000, same ? "a job" : "another job");
            EXPECT_EQ(writer.first(), same ? stop / 2 * 2 : 0) << stop;
            EXPECT_EQ(writer.shard_end(1), 2u);
            for (size_t i = writer.first(); i < 4; ++i) writer.write(two.tensor(i));
            writer.commit();
            EXPECT_TRUE(read_text(folder_ / "model-00001-of-00002.safetensors") == first);
            EXPECT_TRUE(read_text(folder_ / "model-00002-of-00002.safetensors") == second);
            EXPECT_FALSE(unfinished_job(folder_));
            EXPECT_EQ(listing().size(), 3u);
        }
    }
}

TEST_F(SafetensorsWriter, AJobGoesOnInsideItsCommit) {
    Four two(2);
    {
        ShardedWriter writer(folder_, two.specs, {}, 1000, "a job");
        for (size_t i = 0; i < 4; ++i) writer.write(two.tensor(i));
    }
    fs::rename(folder_ / ".model-00001-of-00002.safetensors.incoming", folder_ / "model-00001-of-00002.safetensors");
    ShardedWriter writer(folder_, two.specs, {}, 1000, "a job");
    EXPECT_EQ(writer.first(), 4u);
    writer.commit();
    EXPECT_FALSE(unfinished_job(folder_));
    EXPECT_EQ(SafetensorsFolder(folder_).names().size(), 4u);
    EXPECT_EQ(listing().size(), 3u);
}

TEST_F(SafetensorsWriter, AShardThatIsNotTheJobsOwnIsWrittenAgain) {
    Four two(2);
    for (const bool shorter : {true, false}) {
        fs::remove_all(folder_);
        {
            ShardedWriter writer(folder_, two.specs, {}, 1000, "a job");
            for (size_t i = 0; i < 4; ++i) writer.write(two.tensor(i));
        }
        const fs::path shard = folder_ / ".model-00001-of-00002.safetensors.incoming";
        std::string text = read_text(shard);
        if (shorter)
            text.pop_back();
        else
            text[20] ^= 1;
        write_text_atomically(shard, text);
        EXPECT_EQ(ShardedWriter(folder_, two.specs, {}, 1000, "a job").first(), 0u);
    }
}

TEST_F(SafetensorsWriter, AModelWithoutTensorsIsAFileToo) {
    ShardedWriter writer(folder_, {}, {{"format", "pt"}});
    writer.commit();
    EXPECT_TRUE(SafetensorsFolder(folder_).names().empty());
}

TEST_F(SafetensorsWriter, WritingSomethingElseThanAnnouncedIsAProgrammerError) {
    Four four(1);
    ShardedWriter writer(folder_, four.specs, {});
    EXPECT_THROW(writer.write(four.tensor(0).view({100})), LogicError);
    EXPECT_THROW(writer.commit(), LogicError);
    four.specs[1].name = "t0";
    EXPECT_THROW(ShardedWriter(folder_, four.specs, {}), LogicError);
}

TEST_F(SafetensorsWriter, AnUnwritableFolderIsAnIoError) {
    std::ofstream(folder_ / "file") << "in the way";
    Four four(1);
    try {
        ShardedWriter writer(folder_ / "file" / "model", four.specs, {});
        FAIL();
    } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::kIo);
    }
}

}  // namespace
}  // namespace fathom
