#include "app/bench_runs.h"

#include <gtest/gtest.h>
#include <filesystem>

#include "app/bench_roofs.h"
#include "base/error.h"
#include "model/flop_count.h"
#include "model/memory_plan.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

const fs::path kFixture = fs::path(FATHOM_TEST_DATA) / "fixtures" / "v3";

BenchOptions small(const std::string& run) {
    BenchOptions options;
    options.run = run;
    options.model = kFixture.string();
    options.repetitions = 2;
    options.max_new_tokens = 2;
    options.prompt_tokens = 4;
    options.sequence_length = 16;
    return options;
}

Measurement measure(Measurement (*bench)(const BenchOptions&, Device&, const Between&), const BenchOptions& options) {
    Device device(Globals{.threads = 2});
    int64_t rounds = 0;
    const Measurement result = bench(options, device, [&] { ++rounds; });
    EXPECT_EQ(rounds, options.repetitions);
    EXPECT_EQ(std::ssize(result.seconds), options.repetitions);
    return result;
}

// One row reaches K experts, as the dry run assumes; besides, it reads the router biases and the cache.
TEST(Bench, DecodingReadsTheWeightsOfADryRunAndTheCache) {
    const ModelConfig config = ModelConfig::load(kFixture);
    int64_t biases = 0;
    for (int64_t i = 0; i < config.num_hidden_layers; ++i) biases += config.moe_layer(i) ? 4 * config.n_routed_experts : 0;
    BenchOptions options = small("decode");
    options.dtype = "bf16";
    const Measurement result = measure(bench_decode, options);
    // Prompt 4, its first answer; each repetition an untimed step and then two that see 1 and 2 tokens more.
    const double keys = 5 + (1.5 + (3 + 1.5)) / 2;
    const double cache = keys * static_cast<double>(cache_bytes_per_token(config, DType::kF32));
    const double weights = dry_run_forward(config, 1, 1, DType::kBF16).cost.weight_bytes + static_cast<double>(biases);
    EXPECT_DOUBLE_EQ(result.bytes_per_token, weights + cache);
    EXPECT_EQ(result.tokens, 2);
    EXPECT_EQ(result.dtype, "BF16");
    EXPECT_DOUBLE_EQ(result.flops_per_token, count_flops(config, keys, AttentionForm::kAbsorbed).forward());
}

TEST(Bench, ABatchSharesItsWeights) {
    BenchOptions options = small("decode");
    const double alone = measure(bench_decode, options).bytes_per_token;
    options.batch = 6;
    const Measurement together = measure(bench_decode, options);
    EXPECT_EQ(together.tokens, 12);
    EXPECT_LT(together.bytes_per_token, 0.7 * alone);
}

TEST(Bench, PromptsReadBesideAnswersAreNotCountedButReachMoreExperts) {
    BenchOptions options = small("decode");
    const Measurement alone = measure(bench_decode, options);
    options.reading = 8;
    const Measurement beside = measure(bench_decode, options);
    EXPECT_EQ(beside.tokens, alone.tokens);
    EXPECT_GT(beside.bytes_per_token, alone.bytes_per_token);
}

TEST(Bench, PrefillTakesUpBehindWhatIsCached) {
    BenchOptions options = small("prefill");
    options.batch = 2;
    options.depth = 10;
    const Measurement result = measure(bench_prefill, options);
    EXPECT_EQ(result.tokens, 8);
    const FlopCount flops = count_flops(ModelConfig::load(kFixture), 12.5);  // tokens 11 to 14
    EXPECT_DOUBLE_EQ(result.flops_per_token, flops.layers + flops.attention + flops.head / 4);
}

TEST(Bench, ARandomModelNeedsNoCheckpoint) {
    BenchOptions options = small("decode");
    options.random_config = (kFixture / "config.json").string();
    options.model.clear();
    const Measurement random = measure(bench_decode, options);
    EXPECT_EQ(random.parameters, measure(bench_decode, small("decode")).parameters);
    EXPECT_EQ(random.dtype, "BF16");
}

TEST(Bench, RandomCodesAreReadAsTheyAreStored) {
    BenchOptions options = small("decode");
    options.random_config = (kFixture / "config.json").string();
    options.model.clear();
    const Measurement bf16 = measure(bench_decode, options);
    for (const auto& [type, name] : {std::pair{"int4", "int4"}, {"int8", "int8"}, {"fp8", "F8_E4M3"}}) {
        options.dtype = type;
        const Measurement codes = measure(bench_decode, options);
        EXPECT_EQ(codes.dtype, name);
        EXPECT_EQ(codes.parameters, bf16.parameters);
        EXPECT_LT(codes.bytes_per_token, bf16.bytes_per_token);
    }
    options.random_config.clear();
    options.model = kFixture.string();
    Device device(Globals{.threads = 1});
    EXPECT_THROW((void)bench_decode(options, device, [] {}), Error) << "a checkpoint has its own codes";
    EXPECT_THROW((void)bench_train(options, device, [] {}), Error);
}

TEST(Bench, TrainingTakesWholeStepsAndLeavesNothingBehind) {
    const Measurement result = measure(bench_train, small("train"));
    ModelConfig config = ModelConfig::load(kFixture);
    EXPECT_EQ(result.tokens % 16, 0);
    EXPECT_DOUBLE_EQ(result.flops_per_token, count_flops(config, 8.5).training());
    for (const auto& entry : fs::directory_iterator(fs::temp_directory_path())) {
        EXPECT_NE(entry.path().filename(), "fathom-bench-" + std::to_string(::getpid()));
    }
}

TEST(Bench, ExpertsThatArePagedAreCountedInTheRepetitions) {
    BenchOptions options = small("decode");
    const Measurement whole = measure(bench_decode, options);
    EXPECT_FALSE(whole.paging);
    options.ram = int64_t{200} << 20;
    const Measurement paged = measure(bench_decode, options);
    ASSERT_TRUE(paged.paging);
    EXPECT_EQ(paged.paging->experts, 48);
    EXPECT_GT(paged.paging->counted.required, 0);
    EXPECT_LE(paged.paging->counted.hits, paged.paging->counted.required);
    EXPECT_DOUBLE_EQ(paged.bytes_per_token, whole.bytes_per_token);
    Device device(Globals{.threads = 1});
    options.ram = 1 << 20;  // what every token needs has no room
    EXPECT_THROW((void)bench_decode(options, device, [] {}), Error);
    options.ram = int64_t{200} << 20;
    options.dtype = "f32";
    EXPECT_THROW((void)bench_decode(options, device, [] {}), Error);
}

TEST(Bench, ARunThatDoesNotFitTheModelsPositionsIsRefused) {
    BenchOptions options = small("decode");
    options.depth = 1 << 20;
    Device device(Globals{.threads = 1});
    EXPECT_THROW((void)bench_decode(options, device, [] {}), Error);
}

TEST(Roofs, TheMedianOfAnEvenNumberLiesBetween) {
    EXPECT_EQ(median({3, 1, 2}), 2);
    EXPECT_EQ(median({4, 1, 2, 3}), 2.5);
    EXPECT_EQ(median({7}), 7);
}

TEST(OneDnn, MultipliesByTheTranspose) {
    const OneDnn library(1);
    if (!library.available()) GTEST_SKIP() << "no libdnnl on this machine";
    const float a[] = {1, 2, 3, 4, 5, 6}, b[] = {1, 0, 1, 2, 1, 0};  // [2, 3] each
    float c[4] = {};
    library.product(c, a, b, 2, 2, 3);
    EXPECT_EQ(c[0], 4);
    EXPECT_EQ(c[1], 4);
    EXPECT_EQ(c[2], 10);
    EXPECT_EQ(c[3], 13);
}

}  // namespace
}  // namespace fathom
