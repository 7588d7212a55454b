#include "train/metrics.h"

#include <gtest/gtest.h>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>

#include "base/error.h"
#include "base/file.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

class Metrics : public testing::Test {
protected:
    fs::path path_ = fs::path(testing::TempDir()) / "metrics_test.jsonl";
    void SetUp() override { fs::remove(path_); }
    void TearDown() override { fs::remove(path_); }
};

StepMetrics example(int64_t step) {
    StepMetrics m;
    m.step = step;
    m.tokens = 1000 * step;
    m.loss = 5.0 / static_cast<double>(step);
    m.lr = 2.2e-4;
    m.grad_norm = 0.1;
    m.moe_layers = {1, 3};
    m.max_vio = {0.5, 1.25};
    m.dead_experts = {0, 3};
    if (step % 2 == 0) m.expert_load = {{1, 2, 3}, {6, 0, 0}};
    return m;
}

TEST_F(Metrics, ReadsBackExactlyWhatItWrote) {
    std::vector<StepMetrics> written;
    MetricsWriter writer(path_, 0);
    for (int64_t step = 1; step <= 5; ++step) {
        written.push_back(example(step));
        writer.append(written.back());
        EXPECT_EQ(read_metrics(path_), written) << "a line must be in the file as soon as append returns";
    }
}

TEST_F(Metrics, ALineIsOneObjectWithTheDocumentedKeys) {
    StepMetrics m = example(2);
    EXPECT_EQ(to_json(m),
              R"({"step":2,"tokens":2000,"loss":2.5,"lr":0.00022,"grad_norm":0.1,"moe_layers":[1,3],"max_vio":[0.5,1.25],)"
              R"("dead_experts":[0,3],"expert_load":[[1,2,3],[6,0,0]]})");
}

TEST_F(Metrics, ADivergedLossBecomesNullAndComesBackAsNan) {
    StepMetrics m;
    m.loss = std::numeric_limits<double>::infinity();
    m.grad_norm = std::nan("");
    EXPECT_EQ(to_json(m), R"({"step":0,"tokens":0,"loss":null,"grad_norm":null})");
    MetricsWriter(path_, 0).append(m);
    EXPECT_TRUE(std::isnan(*read_metrics(path_).front().loss));
}

TEST_F(Metrics, AResumedRunContinuesAfterItsCheckpoint) {
    {
        MetricsWriter killed(path_, 0);
        for (int64_t step = 1; step <= 7; ++step) killed.append(example(step));
    }
    std::ofstream(path_, std::ios::app) << R"({"step":8,"tok)";  // torn by kill -9
    {
        MetricsWriter resumed(path_, 5);
        EXPECT_EQ(read_metrics(path_).size(), 5u);
        resumed.append(example(6));
    }
    const auto lines = read_metrics(path_);
    ASSERT_EQ(lines.size(), 6u);
    for (int64_t step = 1; step <= 6; ++step) EXPECT_EQ(lines[static_cast<size_t>(step - 1)], example(step));
}

TEST_F(Metrics, ANewRunStartsAnEmptyFile) {
    MetricsWriter(path_, 0).append(example(1));
    MetricsWriter fresh(path_, 0);
    EXPECT_TRUE(read_metrics(path_).empty());
}

TEST_F(Metrics, ABrokenLineIsNamedByFileAndNumber) {
    for (const char* broken :
         {"{\"tokens\":3}", "[1,2]", "oops", "{\"step\":1,\"loss\":\"high\"}", "{\"step\":1,\"expert_load\":[3]}"}) {
        write_text_atomically(path_, "{\"step\":1}\n" + std::string(broken) + "\n");
        try {
            (void)read_metrics(path_);
            ADD_FAILURE() << "accepted " << broken;
        } catch (const Error& error) {
            EXPECT_EQ(error.kind(), ErrorKind::kInput);
            EXPECT_NE(std::string(error.what()).find("metrics_test.jsonl:2:"), std::string::npos) << error.what();
        }
    }
}

TEST_F(Metrics, AFullDiskIsReported) {
    MetricsWriter writer("/dev/full", 0);
    EXPECT_THROW(writer.append(example(1)), Error);
}

TEST_F(Metrics, ScalarsNameEveryCurve) {
    const auto list = scalars(example(2));
    const std::map<std::string, double> curves(list.begin(), list.end());
    EXPECT_EQ(curves.at("tokens"), 2000);
    EXPECT_EQ(curves.at("loss"), 2.5);
    EXPECT_EQ(curves.at("max_vio/layer_3"), 1.25);
    EXPECT_EQ(curves.at("max_vio/mean"), 0.875);
    EXPECT_EQ(curves.at("max_vio/max"), 1.25);
    EXPECT_EQ(curves.at("dead_experts/max"), 3);
    EXPECT_FALSE(curves.contains("val_loss"));
}

}  // namespace
}  // namespace fathom
