// fathom plan from outside.
#include <gtest/gtest.h>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace fathom {
namespace {

namespace fs = std::filesystem;

nlohmann::json plan(const fs::path& config, const std::string& options = "") {
    std::FILE* pipe = ::popen((std::string(FATHOM_BINARY) + " plan " + config.string() + " --json " + options).c_str(), "r");
    std::string out;
    for (int c; (c = std::fgetc(pipe)) != EOF;) out += static_cast<char>(c);
    EXPECT_EQ(::pclose(pipe), 0);
    return nlohmann::json::parse(out);
}

TEST(Plan, SaysWhatV3Needs) {
    const auto v3 = plan(fs::path(FATHOM_TEST_DATA) / "configs" / "deepseek-v3.json", "--sequence-length 4096 --context 1000");
    EXPECT_NEAR(v3["parameters"]["total"].get<double>() / 1e9, 671, 0.1);
    EXPECT_NEAR(v3["parameters"]["active"].get<double>() / 1e9, 37.6, 0.1);
    EXPECT_NEAR(v3["flops_per_token"]["training"].get<double>() / 1e9, 260.6, 0.1);
    EXPECT_EQ(v3["cache"]["bytes"]["bf16"], 61 * 576 * 2 * 1000);
    const auto& training = v3["training"];
    EXPECT_LT(training["activations_recomputed"]["bytes"], training["activations"]["bytes"]);
    EXPECT_EQ(training["masters_bytes"], training["gradients_bytes"]);
}

TEST(Plan, ReadsAModelFolder) {
    const auto tiny = plan(fs::path(FATHOM_TEST_DATA) / "v1-tiny", "--dtype f32 --batch 2 --sequence-length 8");
    EXPECT_EQ(tiny["model_type"], "deepseek");
    EXPECT_EQ(tiny["training"]["masters_bytes"], 0);
    EXPECT_EQ(tiny["training"]["batch"], 2);
    EXPECT_EQ(tiny["weights_bytes"]["f32"], 4 * tiny["parameters"]["total"].get<int64_t>());
}

}  // namespace
}  // namespace fathom
