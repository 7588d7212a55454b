// Folders with fewer bits: written, read again, and gone on with after an interruption.
#include "checkpoint/quantized_folder.h"

#include <gtest/gtest.h>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "model/fixture.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

struct Kind {
    const char* method;
    StoredAs stored;
    double most;  // relative error of a matrix's numbers, which are normal
};

StoredAs integers(int64_t bits, int64_t group, bool symmetric) {
    return {Scheme::kGroups, {bits, group, symmetric, DType::kBF16}};
}

const Kind kKinds[] = {
    {"compressed-tensors", integers(8, 0, true), 0.012},
    {"compressed-tensors", integers(8, 32, true), 0.008},
    {"compressed-tensors", integers(4, 32, true), 0.14},
    {"compressed-tensors", integers(4, 32, false), 0.12},
    {"gptq", integers(4, 32, true), 0.14},
    {"gptq", integers(4, 32, false), 0.12},
    {"gptq", integers(8, 32, true), 0.008},
    {"awq", integers(4, 32, false), 0.12},
    {"", {Scheme::kFp8Block, {}}, 0.04},
    {"", {Scheme::kBlocks, {}}, 0.2},
};

std::vector<float> numbers_of(const Param& param) {
    std::vector<float> all(static_cast<size_t>(param.size()));
    for (int64_t i = 0; i < (param.is_matrix() ? param.rows : 1); ++i) decode_row(all.data() + i * param.cols, param.weight, i);
    return all;
}

double relative_error(const std::vector<float>& x, const std::vector<float>& y) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        error += std::pow(static_cast<double>(x[i] - y[i]), 2);
        norm += std::pow(static_cast<double>(y[i]), 2);
    }
    return std::sqrt(error / norm);
}

std::map<std::string, std::string> contents(const fs::path& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(folder)) files[entry.path().filename().string()] = read_text(entry.path());
    return files;
}

// Gives up when it has produced so many parameters.
class Interrupted final : public FolderSource {
public:
    Interrupted(FolderSource& source, int limit) : source_(source), limit_(limit) {}
    void produce(const std::string& name, const TensorSink& sink) override {
        if (produced++ == limit_) throw Error(ErrorKind::kInterrupted, "enough");
        source_.produce(name, sink);
    }
    int produced = 0;

private:
    FolderSource& source_;
    int limit_;
};

class QuantizedFolder : public ::testing::Test {
protected:
    void SetUp() override { fs::remove_all(folder_); }
    void TearDown() override { fs::remove_all(folder_); }
    LoadedModel original() { return load_model(fixture_folder("v3"), ops_, {.pack = false}); }
    void save(LoadedModel& model, const FolderPlan& plan, const fs::path& to) {
        RoundingSource source(*model.model, plan, nullptr, pool_);
        save_quantized_folder(to, *model.model, plan, source, {});
    }

    ThreadPool pool_{2};
    CpuOps ops_{pool_};
    fs::path folder_ = fs::path(::testing::TempDir()) /
                       (std::string("fathom_") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
};

TEST_F(QuantizedFolder, ComesBackWithTheNumbersOfItsType) {
    LoadedModel before = original();
    for (const Kind& kind : kKinds) {
        fs::remove_all(folder_);
        const FolderPlan plan = plan_folder(*before.model, kind.stored, kind.method);
        save(before, plan, folder_);
        const LoadedModel after = load_model(folder_, ops_, {.pack = false});
        EXPECT_EQ(after.config.quantization_config, plan.config);
        std::map<std::string, std::vector<float>> numbers;
        before.model->visit([&](const std::string& name, Param& param) { numbers.emplace(name, numbers_of(param)); });
        int quantized = 0;
        after.model->visit([&](const std::string& name, Param& param) {
            if (plan.of(name).scheme == Scheme::kPlain) {
                EXPECT_EQ(numbers_of(param), numbers.at(name)) << name;
                return;
            }
            ++quantized;
            EXPECT_EQ(param.weight.scheme, kind.stored.scheme) << name;
            EXPECT_LT(relative_error(numbers_of(param), numbers.at(name)), kind.most) << name << " " << plan.of(name).name();
        });
        EXPECT_GT(quantized, 20) << kind.method;
        // As it is stored, copied: the same bytes.
        const fs::path again = folder_ / "again";
        save_model(again, *after.model, ops_, {});
        EXPECT_EQ(read_text(again / "model.safetensors") == read_text(folder_ / "model.safetensors"), true) << kind.method;
        EXPECT_EQ(read_text(again / "config.json"), read_text(folder_ / "config.json"));
    }
}

TEST_F(QuantizedFolder, ComputesWithWhatItsNumbersSay) {
    LoadedModel before = original();
    for (const Kind& kind : kKinds) {
        fs::remove_all(folder_);
        save(before, plan_folder(*before.model, kind.stored, kind.method), folder_);
        const LoadedModel stored = load_model(folder_, ops_, {}), unpacked = load_model(folder_, ops_, {.pack = false}),
                          numbers = load_model(folder_, ops_, {.dtype = DType::kF32});
        std::vector<int32_t> tokens;
        for (int32_t i = 0; i < 12; ++i) tokens.push_back((37 * i + 11) % 100);
        for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
            Arena scratch("scratch", Buffer::host, 1 << 20), saved("saved", Buffer::host, 1 << 20);
            Context cx{ops_, scratch, saved};
            const SequenceChunk chunk{tokens, 0, form, {}};
            std::vector<Routing> routes(static_cast<size_t>(stored.config.num_hidden_layers));
            Batch batch = make_batch(cx, std::span(&chunk, 1), 0, false);
            batch.record = &routes;
            const Tensor expected = numbers.model->logits(cx, numbers.model->forward(cx, batch, nullptr, nullptr));
            batch.record = nullptr;
            for (const Routing& layer : routes) batch.replay.push_back(layer.indices);
            const auto error_of = [&](const LoadedModel& loaded) {
                const Tensor found = loaded.model->logits(cx, loaded.model->forward(cx, batch, nullptr, nullptr));
                return relative_error({found.as<float>(), found.as<float>() + found.size()},
                                      {expected.as<float>(), expected.as<float>() + expected.size()});
            };
            // Codes multiplied out to f32 are the numbers. Panels round activations to 8 bits per 32 columns: the bound of
            // GgufModels, and of groups, which round more matrices of this small model, 0.04 measured (each product's bits:
            // QuantMatmul).
            EXPECT_LT(error_of(unpacked), 1e-5) << kind.method << " " << kind.stored.name();
            EXPECT_LT(error_of(stored), kind.stored.scheme == Scheme::kGroups ? 0.05 : 0.03)
                << kind.method << " " << kind.stored.name();
        }
    }
}

// The CPU's ops, as if tensors had to be brought to a device.
class DeviceLike final : public CpuOps {
public:
    using CpuOps::CpuOps;
    [[nodiscard]] bool sees_host_memory() const override { return false; }
};

TEST_F(QuantizedFolder, OnADeviceCodesStayCodes) {
    LoadedModel before = original();
    DeviceLike device(pool_);
    for (const Kind& kind : kKinds) {
        fs::remove_all(folder_);
        save(before, plan_folder(*before.model, kind.stored, kind.method), folder_);
        const LoadedModel here = load_model(folder_, ops_, {.pack = false}), there = load_model(folder_, device, {});
        std::map<std::string, Param*> expected;
        here.model->visit([&](const std::string& name, Param& param) { expected.emplace(name, &param); });
        there.model->visit([&](const std::string& name, Param& param) {
            const Weight& stored = expected.at(name)->weight;
            EXPECT_EQ(numbers_of(param), numbers_of(*expected.at(name))) << name;
            EXPECT_NE(param.weight.codes.data, stored.codes.data) << name;
            // Multiplied by both ways, of which codes know one.
            const bool numbers = name.ends_with(kBothWays) || stored.scheme == Scheme::kBlocks;  // blocks are the CPU's
            EXPECT_EQ(param.weight.scheme, numbers ? Scheme::kPlain : stored.scheme) << name;
        });
    }
}

TEST_F(QuantizedFolder, ItsConfigSaysWhatOthersNeedToRead) {
    LoadedModel before = original();
    const auto config = [&](const Kind& kind) {
        return nlohmann::json::parse([&] {
            ModelConfig c = before.config;
            c.quantization_config = plan_folder(*before.model, kind.stored, kind.method).config;
            return c.to_json();
        }())["quantization_config"];
    };
    const auto compressed = config(kKinds[2]);
    EXPECT_EQ(compressed["quant_method"], "compressed-tensors");
    EXPECT_EQ(compressed["format"], "pack-quantized");
    EXPECT_EQ(compressed["config_groups"]["group_0"]["targets"], nlohmann::json::array({"Linear"}));
    EXPECT_EQ(compressed["config_groups"]["group_0"]["weights"]["group_size"], 32);
    EXPECT_EQ(compressed["config_groups"]["group_0"]["weights"]["num_bits"], 4);
    EXPECT_EQ(compressed["config_groups"]["group_0"]["weights"]["strategy"], "group");
    EXPECT_TRUE(std::ranges::count(compressed["ignore"], "lm_head") == 1);
    EXPECT_EQ(config(kKinds[0])["format"], "int-quantized");
    EXPECT_EQ(config(kKinds[0])["config_groups"]["group_0"]["weights"]["strategy"], "channel");
    const auto gptq = config(kKinds[5]);
    EXPECT_EQ(gptq["checkpoint_format"], "gptq_v2");
    EXPECT_EQ(gptq["sym"], false);
    EXPECT_EQ(gptq["desc_act"], false);
    const auto awq = config(kKinds[7]);
    EXPECT_EQ(awq["version"], "gemm");
    EXPECT_EQ(awq["zero_point"], true);
    EXPECT_EQ(awq["group_size"], 32);
    const auto mxfp4 = config(kKinds[9]);
    EXPECT_EQ(mxfp4["format"], "mxfp4-pack-quantized");
    EXPECT_EQ(mxfp4["config_groups"]["group_0"]["weights"]["type"], "float");
    EXPECT_EQ(mxfp4["config_groups"]["group_0"]["weights"]["group_size"], 32);
    EXPECT_EQ(config(kKinds[8])["weight_block_size"], nlohmann::json::array({128, 128}));
}

TEST_F(QuantizedFolder, MatricesOfTwoTypesAreNamedAndComeBack) {
    LoadedModel before = original();
    FolderPlan plan = plan_folder(*before.model, integers(4, 32, true), "compressed-tensors");
    int changed = 0;
    for (auto& [name, stored] : plan.parameters) {
        if (!name.ends_with("o_proj.weight")) continue;
        stored = changed++ % 2 == 0 ? integers(8, 32, true) : StoredAs{};
    }
    ASSERT_GT(changed, 1);
    describe_plan(*before.model, plan);
    EXPECT_EQ(plan.config.groups.size(), 2u);
    save(before, plan, folder_);
    const LoadedModel after = load_model(folder_, ops_, {.pack = false});
    EXPECT_EQ(after.config.quantization_config, plan.config);
    after.model->visit([&](const std::string& name, Param& param) {
        if (!name.ends_with("o_proj.weight")) return;
        const bool eight = param.weight.scheme == Scheme::kGroups && param.weight.codes.dtype == DType::kI8;
        EXPECT_TRUE(eight || param.weight.scheme == Scheme::kPlain) << name;
    });
}

TEST_F(QuantizedFolder, MatricesWithoutWholeGroupsStayPlain) {
    LoadedModel before = original();
    const FolderPlan plan = plan_folder(*before.model, integers(4, 64, true), "compressed-tensors");
    ASSERT_FALSE(plan.left_alone.empty());
    for (const std::string& name : plan.left_alone) EXPECT_EQ(plan.of(name).scheme, Scheme::kPlain);
    save(before, plan, folder_);
    EXPECT_NO_THROW((void)load_model(folder_, ops_, {}));
    EXPECT_THROW((void)plan_folder(*before.model, integers(4, 128, true), "compressed-tensors"), Error);
}

TEST_F(QuantizedFolder, AnInterruptedJobGoesOnAndEndsInTheSameBytes) {
    LoadedModel model = original();
    const FolderPlan plan = plan_folder(*model.model, integers(4, 32, true), "gptq");
    RoundingSource source(*model.model, plan, nullptr, pool_);
    const fs::path whole = folder_ / "whole", broken = folder_ / "broken";
    FolderSaveOptions options{.max_shard_bytes = 40000, .job = "job"};
    Interrupted all(source, 1 << 30);
    save_quantized_folder(whole, *model.model, plan, all, options);
    const auto expected = contents(whole);
    ASSERT_GT(expected.size(), 6u);
    for (const int limit : {0, 5, 20, all.produced - 1}) {
        fs::remove_all(broken);
        Interrupted some(source, limit), rest(source, 1 << 30);
        EXPECT_THROW(save_quantized_folder(broken, *model.model, plan, some, options), Error);
        EXPECT_EQ(unfinished_job(broken), "job");
        EXPECT_FALSE(fs::exists(broken / "config.json"));
        save_quantized_folder(broken, *model.model, plan, rest, options);
        EXPECT_TRUE(contents(broken) == expected) << limit;
        EXPECT_TRUE(limit < 20 || rest.produced < all.produced) << limit;
    }
    // Another job begins anew, whatever lies there.
    fs::remove_all(broken);
    Interrupted some(source, 20), rest(source, 1 << 30);
    EXPECT_THROW(save_quantized_folder(broken, *model.model, plan, some, options), Error);
    options.job = "another";
    save_quantized_folder(broken, *model.model, plan, rest, options);
    EXPECT_EQ(rest.produced, all.produced);
    EXPECT_TRUE(contents(broken) == expected);
}

TEST_F(QuantizedFolder, ABrokenOneIsRefusedByName) {
    LoadedModel before = original();
    save(before, plan_folder(*before.model, integers(4, 32, true), "compressed-tensors"), folder_);
    const std::string text = read_text(folder_ / "config.json");
    const auto complaint = [&](const std::function<void(nlohmann::json & quantization)>& change) -> std::string {
        auto config = nlohmann::json::parse(text);
        change(config["quantization_config"]);
        write_text_atomically(folder_ / "config.json", config.dump());
        try {
            (void)load_model(folder_, ops_, {});
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    };
    EXPECT_EQ(complaint([](auto&) {}), "");
    EXPECT_NE(complaint([](auto& q) { q["format"] = "marlin-24"; }).find("marlin-24"), std::string::npos);
    EXPECT_NE(complaint([](auto& q) { q["config_groups"]["group_0"]["weights"]["type"] = "float"; }).find("type"),
              std::string::npos);
    EXPECT_NE(complaint([](auto& q) { q["config_groups"] = nullptr; }).find("config_groups"), std::string::npos);
    EXPECT_NE(complaint([](auto& q) {
                  q["sparsity_config"] = {{"format", "sparse-24"}};
              }).find("sparsity_config"),
              std::string::npos);
    EXPECT_NE(complaint([](auto& q) {
                  q["quant_method"] = "gptq";
                  q["bits"] = 4;
                  q["group_size"] = 32;
              }).find("missing"),
              std::string::npos);
    EXPECT_NE(complaint([](auto& q) { q["quant_method"] = "exl3"; }).find("exl3"), std::string::npos);
}

}  // namespace
}  // namespace fathom
