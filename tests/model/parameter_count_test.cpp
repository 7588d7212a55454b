#include "model/parameter_count.h"

#include <gtest/gtest.h>
#include <filesystem>

#include "base/file.h"
#include "io/safetensors.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

struct Published {
    const char* file;
    double total, total_step;  // billions, and one unit of the last published digit
    double active, active_step;
};

constexpr Published kPublished[] = {
    {"deepseek-moe-16b", 16.38, 0.01, 2.83, 0.01}, {"deepseek-v2-lite", 15.71, 0.01, 2.66, 0.01},
    {"deepseek-v2", 235.7, 0.1, 21.4, 0.1},        {"deepseek-v3", 671.0, 0.1, 37.6, 0.1},
    {"moonlight-16b-a3b", 15.96, 0.01, 2.9, 0.1},  {"kimi-k2", 1026, 1, 32.9, 0.1},
};

ModelConfig released(const std::string& name) {
    return ModelConfig::parse(read_text(fs::path(FATHOM_TEST_DATA) / "configs" / (name + ".json")));
}

// Numbers in a checkpoint: what the file holds, FP8 scales apart.
int64_t numbers_in(const fs::path& folder) {
    const SafetensorsFolder files(folder);
    int64_t sum = 0;
    for (const std::string& name : files.names())
        if (!name.ends_with("_scale_inv")) sum += files.find(name)->size();
    return sum;
}

TEST(ParameterCount, ReleasedModelsHaveTheirPublishedSizes) {
    for (const Published& p : kPublished) {
        const ParameterCount count = count_parameters(released(p.file));
        EXPECT_NEAR(static_cast<double>(count.total()) / 1e9, p.total, p.total_step / 2) << p.file;
        EXPECT_NEAR(static_cast<double>(count.active()) / 1e9, p.active, p.active_step / 2) << p.file;
    }
}

TEST(ParameterCount, TheUnsharedPartOfV3sMtpModuleIs11Point6Billion) {
    EXPECT_NEAR(static_cast<double>(count_parameters(released("deepseek-v3")).mtp) / 1e9, 11.6, 0.05);
    EXPECT_EQ(count_parameters(released("moonlight-16b-a3b")).mtp, 0);
}

TEST(ParameterCount, CommittedConfigsSayWhatTheReferenceSays) {
    const fs::path reference = fs::path(FATHOM_SHARED) / "reference" / "configs";
    if (!fs::exists(reference)) GTEST_SKIP() << reference << " is absent";
    for (const Published& p : kPublished)
        EXPECT_EQ(read_text(reference / (std::string(p.file) + ".json")), released(p.file).to_json()) << p.file;
}

TEST(ParameterCount, EveryTinyCheckpointHoldsExactlyTheCountedNumbers) {
    int checkpoints = 0;
    for (const auto& entry : fs::recursive_directory_iterator(FATHOM_TEST_DATA)) {
        if (entry.path().filename() != "model.safetensors" || !fs::exists(entry.path().parent_path() / "config.json")) continue;
        const fs::path folder = entry.path().parent_path();
        const ModelConfig config = ModelConfig::load(folder);
        const ParameterCount count = count_parameters(config);
        EXPECT_EQ(numbers_in(folder),
                  count.total() + count.mtp +
                      (SafetensorsFolder(folder).find("model.layers." + std::to_string(config.num_hidden_layers) +
                                                      ".embed_tokens.weight")
                           ? config.num_nextn_predict_layers * 2 * count.embedding
                           : 0))
            << folder;
        ++checkpoints;
    }
    EXPECT_GE(checkpoints, 15);
}

}  // namespace
}  // namespace fathom
