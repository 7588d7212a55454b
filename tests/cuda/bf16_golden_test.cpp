// The whole model in bf16 against the float32 answers of Hugging Face transformers, held against what transformers' own bf16
// run misses them by (tests/data/bf16_errors.json, made by tools/reference/bf16_errors.py). The experts are those of the
// float32 run in both.
#include <array>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>

#include "cuda/plugin.h"
#include "model/fixture.h"

namespace fathom {
namespace {

constexpr double kOfTransformers = 1.25;

nlohmann::json errors_of_transformers(const std::string& fixture) {
    const char* const moved = std::getenv("FATHOM_TEST_DATA");  // NOLINT(concurrency-mt-unsafe): the program runs elsewhere
    std::ifstream file(std::filesystem::path(moved != nullptr ? moved : FATHOM_TEST_DATA) / "bf16_errors.json");
    return nlohmann::json::parse(file).at(fixture);
}

class Bf16Golden : public ::testing::TestWithParam<std::string> {
protected:
    std::unique_ptr<ModelRun> run;

    void SetUp() override {
        std::array<char, 512> message{};
        std::unique_ptr<Ops> ops(fathom_cuda_open(0, "bf16", false, message.data(), message.size()));
        if (ops == nullptr) GTEST_SKIP() << message.data();
        run = std::make_unique<ModelRun>(GetParam(), std::move(ops), LoadOptions{.dtype = DType::kBF16});
    }
    // The experts of the float32 run; absent in dense layers.
    [[nodiscard]] std::vector<Tensor> golden_routes() {
        std::vector<Tensor> routes;
        for (int64_t l = 0; l < run->loaded.config.num_hidden_layers; ++l) {
            const auto indices = run->golden.find("router." + std::to_string(l) + ".indices");
            routes.emplace_back();
            if (!indices) continue;
            const std::span values(indices->as<int32_t>(), static_cast<size_t>(indices->size()));
            routes.back() = run->cx.ints(values, true).view({indices->dim(0), indices->dim(1)});
        }
        return routes;
    }
    // Rows of all layers that choose other experts than in float32.
    [[nodiscard]] int64_t flipped_rows() {
        Batch batch = run->golden_batch(AttentionForm::kExpanded, false);
        std::vector<Routing> routing(static_cast<size_t>(run->loaded.config.num_hidden_layers));
        batch.record = &routing;
        (void)run->model().forward(run->cx, batch, nullptr, nullptr);
        int64_t flipped = 0;
        for (size_t l = 0; l < routing.size(); ++l) {
            const auto wanted = run->golden.find("router." + std::to_string(l) + ".indices");
            if (!wanted) continue;
            const Tensor chosen = run->host(routing[l].indices);
            const auto set_of = [k = wanted->dim(1)](const Tensor& t, int64_t i) {
                return std::set<int32_t>(t.as<int32_t>() + i * k, t.as<int32_t>() + (i + 1) * k);
            };
            for (int64_t i = 0; i < wanted->dim(0); ++i) flipped += set_of(chosen, i) != set_of(*wanted, i) ? 1 : 0;
        }
        return flipped;
    }
};

TEST_P(Bf16Golden, LogitsAreNoFurtherOffThanThoseOfTransformers) {
    const nlohmann::json theirs = errors_of_transformers(GetParam());
    for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
        Batch batch = run->golden_batch(form, false);
        batch.replay = golden_routes();
        const Tensor hidden = run->model().forward(run->cx, batch, nullptr, nullptr);
        const Tensor logits = run->host(run->model().logits(run->cx, hidden));
        const double error = relative_error(logits, *run->golden.find("logits"));
        EXPECT_LE(error, kOfTransformers * theirs.at("logits").get<double>());
        std::cout << "logits " << error << " off, transformers " << theirs.at("logits") << "\n";
    }
    const int64_t flipped = flipped_rows();
    EXPECT_LE(flipped, 2 * theirs.at("flipped_rows").get<int64_t>()) << "few of many rows: they scatter";
    std::cout << "rows that choose other experts " << flipped << ", transformers " << theirs.at("flipped_rows") << " of "
              << theirs.at("rows") << "\n";
}

TEST_P(Bf16Golden, GradientsAreNoFurtherOffThanThoseOfTransformers) {
    const nlohmann::json theirs = errors_of_transformers(GetParam()).at("gradients");
    if (theirs.empty()) GTEST_SKIP() << "the fixture has no gradients";
    run->model().visit([&](const std::string&, Param& param) {
        param.grad = param.allocate(run->state, DType::kF32);
        run->ops->fill(param.grad, 0);
    });
    Batch batch = run->golden_batch(AttentionForm::kExpanded, true);
    batch.replay = golden_routes();
    const Tensor targets = run->tokens_ahead(1, -1), loss = run->cx.empty_precise({targets.dim(0)}, true);
    DeepSeek::Saved saved;
    const Tensor hidden = run->model().forward(run->cx, batch, nullptr, &saved);
    const Tensor dhidden = run->cx.empty({hidden.dim(0), hidden.dim(1)}, true), ids = *run->golden.find("input_ids");
    const auto count = static_cast<double>(ids.dim(0) * (ids.dim(1) - 1));
    run->model().head().loss_and_gradient(run->cx, loss, dhidden, hidden, targets, 1 / count);
    run->model().backward(run->cx, dhidden, saved);
    double ours = 0, bound = 0;
    run->model().visit([&](const std::string& name, Param& param) {
        if (!theirs.contains(name)) return;
        const double error = relative_error(run->host(param.grad), *run->golden.find("grad." + name)),
                     their_error = theirs.at(name).get<double>();
        ours += error * error, bound += their_error * their_error;
    });
    EXPECT_LE(std::sqrt(ours), kOfTransformers * std::sqrt(bound));
    std::cout << "gradients " << std::sqrt(ours / static_cast<double>(theirs.size())) << " off, transformers "
              << std::sqrt(bound / static_cast<double>(theirs.size())) << " (root mean square of the tensors)\n";
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Bf16Golden,
                         ::testing::Values("v2-lite-greedy", "v2-group-limited", "v3", "v3-nope-lora-none"),
                         [](const ::testing::TestParamInfo<std::string>& test) {
                             std::string name = test.param;
                             std::ranges::replace(name, '-', '_');
                             return name;
                         });

}  // namespace
}  // namespace fathom
