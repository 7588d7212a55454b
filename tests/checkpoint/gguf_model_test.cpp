// Models through GGUF files and back.
#include "checkpoint/gguf_model.h"

#include <gtest/gtest.h>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/gguf_names.h"
#include "checkpoint/gguf_save.h"
#include "model/fixture.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

class GgufModels : public ::testing::TestWithParam<std::string> {
protected:
    void SetUp() override {
        if (fixture_folder(GetParam()).empty()) GTEST_SKIP() << "no such fixture";
        fs::create_directories(folder_);
    }
    void TearDown() override { fs::remove_all(folder_); }

    LoadedModel original() { return load_model(fixture_folder(GetParam()), ops_, {.pack = false}); }
    void save(LoadedModel& model, const GgufSaveOptions& options) { save_gguf(path_, *model.model, options, pool_); }

    // Logits [n, vocab] of 24 tokens of one sequence in each form of attention.
    // The experts used are noted in `routes`, or, when some are noted, those are used.
    std::vector<float> logits(const DeepSeek& model, AttentionForm form, std::vector<std::vector<int32_t>>* routes = nullptr) {
        std::vector<int32_t> tokens;
        for (int32_t i = 0; i < 24; ++i) tokens.push_back((37 * i + 11) % static_cast<int32_t>(model.config().vocab_size));
        Arena scratch("scratch", Buffer::host, 1 << 20), saved("saved", Buffer::host, 1 << 20);
        Context cx{ops_, scratch, saved};
        const SequenceChunk chunk{tokens, 0, form, {}};
        Batch batch = make_batch(cx, std::span(&chunk, 1), 0, false);
        std::vector<Routing> record(static_cast<size_t>(model.config().num_hidden_layers));
        if (routes != nullptr && routes->empty()) batch.record = &record;
        if (routes != nullptr)
            for (const auto& layer : *routes)
                batch.replay.push_back(layer.empty() ? Tensor() : cx.ints(layer).view({24, std::ssize(layer) / 24}));
        const Tensor y = model.logits(cx, model.forward(cx, batch, nullptr, nullptr));
        if (batch.record == nullptr) return {y.as<float>(), y.as<float>() + y.size()};
        for (const Routing& layer : record) {  // empty for dense layers
            const auto* chosen = layer.indices.as<int32_t>();
            routes->emplace_back(chosen, chosen + layer.indices.size());
        }
        return {y.as<float>(), y.as<float>() + y.size()};
    }
    static double error(const std::vector<float>& x, const std::vector<float>& y) {
        double difference = 0, norm = 0;
        for (size_t i = 0; i < x.size(); ++i) {
            difference += std::pow(static_cast<double>(x[i] - y[i]), 2);
            norm += std::pow(static_cast<double>(y[i]), 2);
        }
        return std::sqrt(difference / norm);
    }

    ThreadPool pool_{2};
    CpuOps ops_{pool_};
    fs::path folder_ = fs::path(::testing::TempDir()) / ("fathom_gguf_model_" + GetParam()), path_ = folder_ / "model.gguf";
};

TEST_P(GgufModels, ComeBackWithTheSameNumbersAndLogits) {
    LoadedModel before = original();
    for (const bool merged : {false, true}) {
        save(before, {.merged_kv_b = merged});
        const LoadedModel after = load_model(path_, ops_, {.pack = false}), packed = load_model(path_, ops_, {});
        std::map<std::string, Weight> weights;
        before.model->visit([&](const std::string& name, Param& param) { weights.emplace(name, param.weight); });
        after.model->visit([&](const std::string& name, Param& param) {
            const Weight& expected = weights.at(name);
            std::vector<float> x(static_cast<size_t>(param.weight.codes.dim(-1))), y(x.size());
            for (int64_t i = 0; i < (param.is_matrix() ? param.rows : 1); ++i) {
                decode_row(x.data(), param.weight, i);
                decode_row(y.data(), expected, i);
                for (float& value : y)
                    value = expected.codes.dtype == DType::kF8E4M3 ? static_cast<float>(BFloat16(value)) : value;
                ASSERT_EQ(std::memcmp(x.data(), y.data(), 4 * x.size()), 0) << name << " row " << i;
            }
        });
        if (before.config.quantization_config) continue;  // FP8 becomes BF16: other numbers
        for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
            EXPECT_EQ(logits(*after.model, form), logits(*before.model, form));
            EXPECT_EQ(logits(*packed.model, form), logits(*before.model, form));
        }
    }
}

TEST_P(GgufModels, QuantizedTheyStayNearTheirOwnNumbers) {
    LoadedModel before = original();
    for (const BlockType type : {BlockType::kQ80, BlockType::kQ4K}) {
        save(before, {.type = GgufType{DType::kU8, type}});
        const LoadedModel quantized = load_model(path_, ops_, {}), numbers = load_model(path_, ops_, {.dtype = DType::kF32});
        for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
            // Activations are rounded to 8 bits per 32 columns: steps of 2.4 sigma / 127, an error of 0.55 % of a product's
            // norm, and some 30 products in a row add up in squares to 3 %. Routes are forced equal: random routers put experts
            // so close that one would flip.
            std::vector<std::vector<int32_t>> routes;
            const std::vector<float> expected = logits(*numbers.model, form, &routes);
            EXPECT_LT(error(logits(*quantized.model, form, &routes), expected), 0.05) << traits_of(type).name;
        }
    }
}

TEST_P(GgufModels, NanInABlockIsNamed) {
    LoadedModel model = original();
    save(model, {.type = GgufType{DType::kU8, BlockType::kQ80}});
    const std::string name = "blk.0.attn_output.weight";
    {
        const MappedFile whole(path_);
        const GgufView view(whole.bytes());
        const auto at = static_cast<std::streamoff>(view.find(name)->data - whole.bytes().data());
        const uint16_t nan = 0x7e00;  // the scale of the first block, f16
        std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(at).write(reinterpret_cast<const char*>(&nan), sizeof nan);
    }
    try {
        (void)load_model(path_, ops_, {});
        FAIL() << "NaN was not noticed";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(name + " holds NaN"), std::string::npos) << error.what();
    }
    EXPECT_NO_THROW((void)load_model(path_, ops_, {.check_nan = false}));
}

TEST_P(GgufModels, PackedWeightsAreKeptForTheNextStart) {
    LoadedModel model = original();
    save(model, {.type = GgufType{DType::kU8, BlockType::kQ80}});
    const LoadOptions options{.repack_cache = folder_ / "kept"};
    const std::vector<float> expected = logits(*load_model(path_, ops_, {}).model, AttentionForm::kAbsorbed);
    const auto starts_with_kept_weights = [&] {
        const LoadedModel loaded = load_model(path_, ops_, options);
        EXPECT_EQ(logits(*loaded.model, AttentionForm::kAbsorbed), expected);
        return loaded.repacked->complete();
    };
    EXPECT_FALSE(starts_with_kept_weights());
    EXPECT_TRUE(starts_with_kept_weights());
    const fs::path kept = load_model(path_, ops_, options).repacked->path();
    EXPECT_EQ(load_model(path_, ops_, options).weights->used() < load_model(path_, ops_, {}).weights->used(), true);

    const auto change = [&](std::streamoff at) {
        std::fstream file(kept, std::ios::in | std::ios::out | std::ios::binary);
        const int byte = file.seekg(at).get();
        file.seekp(at).put(static_cast<char>(byte ^ 1));
    };
    const auto size = static_cast<std::streamoff>(fs::file_size(kept));
    for (const std::streamoff at : {std::streamoff{0}, std::streamoff{9}, std::streamoff{40}, size / 2, size - 1}) {
        change(at);
        EXPECT_FALSE(starts_with_kept_weights()) << "byte " << at;
        EXPECT_TRUE(starts_with_kept_weights()) << "byte " << at;
    }
    fs::resize_file(kept, fs::file_size(kept) / 3);
    EXPECT_FALSE(starts_with_kept_weights());
    EXPECT_TRUE(starts_with_kept_weights());

    fs::last_write_time(path_, fs::last_write_time(path_) + std::chrono::seconds(1));  // another file, for all one knows
    EXPECT_FALSE(starts_with_kept_weights());
}

INSTANTIATE_TEST_SUITE_P(Fixtures, GgufModels,
                         ::testing::Values("v2-lite-greedy", "v2-group-limited", "v3", "v3-nope-lora-none", "v3-fp8-blocks",
                                           "tied-embeddings"),
                         [](const auto& param) {
                             std::string name = param.param;
                             std::erase(name, '-');
                             return name;
                         });

TEST(GgufNames, EveryParameterHasItsOwnPlace) {
    const ModelConfig config = ModelConfig::load(fixture_folder("v3"));
    DeepSeek model(config);
    std::set<std::pair<std::string, int64_t>> places;
    const std::string mtp = "model.layers." + std::to_string(config.num_hidden_layers);
    model.visit([&](const std::string& name, Param&) {
        if (name.starts_with(mtp)) return;
        const auto place = gguf_place(name);
        ASSERT_TRUE(place) << name;
        EXPECT_TRUE(places.emplace(place->name, place->expert).second) << name;
    });
    EXPECT_EQ(gguf_place("model.layers.3.mlp.experts.7.up_proj.weight"), (GgufPlace{"blk.3.ffn_up_exps.weight", 7}));
    EXPECT_EQ(gguf_place("lm_head.weight"), GgufPlace{"output.weight"});
    EXPECT_FALSE(gguf_place("model.layers.x.mlp.gate.weight"));
    EXPECT_FALSE(gguf_place("model.layers.3.mlp.experts.7.scale"));
    EXPECT_FALSE(gguf_place("something.else"));
}

TEST(GgufNames, RowsThatAreNoWholeBlocksGetTheNextType) {
    const auto type = [](const char* name, int64_t columns, BlockType wanted) {
        return gguf_type_for(name, columns, {DType::kU8, wanted}).name();
    };
    EXPECT_EQ(type("blk.0.ffn_up.weight", 512, BlockType::kQ4K), "Q4_K");
    EXPECT_EQ(type("blk.0.ffn_up.weight", 96, BlockType::kQ4K), "Q5_0");
    EXPECT_EQ(type("blk.0.ffn_up.weight", 96, BlockType::kQ6K), "Q8_0");
    EXPECT_EQ(type("blk.0.ffn_up.weight", 48, BlockType::kQ80), "F16");
    EXPECT_EQ(type("output.weight", 512, BlockType::kQ4K), "Q6_K");
    EXPECT_EQ(type("blk.0.ffn_gate_inp.weight", 512, BlockType::kQ4K), "F32");
}

}  // namespace
}  // namespace fathom
