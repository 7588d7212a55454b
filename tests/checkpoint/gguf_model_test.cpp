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
    std::vector<float> logits(const DeepSeek& model, AttentionForm form, std::vector<std::vector<int32_t>>* routes = nullptr,
                              CpuOps* ops = nullptr) {
        std::vector<int32_t> tokens;
        for (int32_t i = 0; i < 24; ++i) tokens.push_back((37 * i + 11) % static_cast<int32_t>(model.config().vocab_size));
        Arena scratch("scratch", Buffer::host, 1 << 20), saved("saved", Buffer::host, 1 << 20);
        Context cx{ops != nullptr ? *ops : ops_, scratch, saved};
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

// The CPU's ops, every product with panels held against plain loops over the weight's numbers:
//   |y - w x| <= sum_k |w_k| d_k / 2, d = max |x| / 127 of 32 columns: activations are rounded to whole multiples of d;
//   |y - w x'| <= 1e-5 sum_k |w_k x'_k| with x' rounded here: what is left is f32's own error.
class CheckedOps final : public CpuOps {
public:
    CheckedOps(ThreadPool& pool, DeepSeek& quantized, DeepSeek& numbers) : CpuOps(pool) {
        std::map<std::string, const Param*> by_name;
        numbers.visit([&](const std::string& name, Param& param) { by_name[name] = &param; });
        quantized.visit([&](const std::string& name, Param& param) {
            if (param.weight.scheme == Scheme::kPanels && param.weight.block != BlockType::kNone && by_name.contains(name))
                numbers_[param.weight.codes.data] = by_name.at(name)->weight.codes;
        });
    }
    int64_t products = 0;      // elements that were checked
    double worst_bound = 0;    // the largest share of the first bound
    double worst_rounded = 0;  // and of the second

    void matmul(const Tensor& y, const Tensor& x, const Weight& w) override {
        CpuOps::matmul(y, x, w);
        compare(y, x, w);
    }
    void grouped_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w, const Tensor& offsets) override {
        CpuOps::grouped_matmul(y, x, w, offsets);
        for (size_t e = 0; e < w.size(); ++e) {
            const int64_t begin = offsets.as<int32_t>()[e], end = offsets.as<int32_t>()[e + 1];
            compare(y.slice(0, begin, end), x.slice(0, begin, end), w[e]);
        }
    }

private:
    std::map<const void*, Tensor> numbers_;  // [out, in] f32, by where the panels begin

    void compare(const Tensor& y, const Tensor& x, const Weight& w) {
        const auto found = numbers_.find(w.codes.data);
        if (found == numbers_.end()) return;
        const int64_t columns = x.dim(1);
        std::vector<double> rounded(static_cast<size_t>(columns)), half(rounded.size());
        for (int64_t i = 0; i < x.dim(0); ++i) {
            const float* row = x.as<float>() + i * x.stride[0];
            for (int64_t at = 0; at < columns; at += 32) {
                float largest = 0;
                for (int64_t k = at; k < at + 32; ++k) largest = std::max(largest, std::fabs(row[k]));
                for (int64_t k = at; k < at + 32; ++k) {
                    const float code = largest > 0 ? std::nearbyint(row[k] * (127.0f / largest)) : 0;
                    rounded[static_cast<size_t>(k)] = static_cast<double>(largest / 127.0f * code);
                    half[static_cast<size_t>(k)] = static_cast<double>(largest) / 254;
                }
            }
            for (int64_t o = 0; o < y.dim(1); ++o)
                check_one(y.as<float>()[i * y.stride[0] + o], row, found->second, o, rounded, half);
        }
    }

    void check_one(float y, const float* x, const Tensor& w, int64_t o, const std::vector<double>& rounded,
                   const std::vector<double>& half) {
        double exact = 0, through = 0, bound = 0, magnitude = 0;
        for (size_t k = 0; k < rounded.size(); ++k) {
            const double value = static_cast<double>(w.as<float>()[o * w.dim(1) + static_cast<int64_t>(k)]);
            exact += value * static_cast<double>(x[k]);
            through += value * rounded[k];
            bound += std::fabs(value) * half[k];
            magnitude += std::fabs(value * rounded[k]);
        }
        ++products;
        if (bound > 0) worst_bound = std::max(worst_bound, std::fabs(static_cast<double>(y) - exact) / (1.001 * bound));
        if (magnitude > 0)
            worst_rounded = std::max(worst_rounded, std::fabs(static_cast<double>(y) - through) / (1e-5 * magnitude));
    }
};

TEST_P(GgufModels, QuantizedTheyComputeWithTheirNumbersAndActivationsOfEightBits) {
    LoadedModel before = original();
    for (const BlockType type : {BlockType::kQ80, BlockType::kQ4K}) {
        save(before, {.type = GgufType{DType::kU8, type}});
        const LoadedModel quantized = load_model(path_, ops_, {}), numbers = load_model(path_, ops_, {.dtype = DType::kF32});
        for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
            CheckedOps checked(pool_, *quantized.model, *numbers.model);
            // Routes are forced equal: random routers put experts so close that one would flip.
            std::vector<std::vector<int32_t>> routes;
            const std::vector<float> expected = logits(*numbers.model, form, &routes);
            const std::vector<float> found = logits(*quantized.model, form, &routes, &checked);
            EXPECT_GT(checked.products, 1000);
            EXPECT_LE(checked.worst_bound, 1) << traits_of(type).name;
            EXPECT_LE(checked.worst_rounded, 1) << traits_of(type).name;
            // In the mean a rounded product is off by 0.55 % of its norm; some 30 in a row add up in squares to 3 %.
            EXPECT_LT(error(found, expected), 0.05) << traits_of(type).name;
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

TEST(GgufMtp, ModulesComeBackWhenTheyAreAskedFor) {
    ThreadPool pool(2);
    CpuOps ops(pool);
    const fs::path path = fs::path(::testing::TempDir()) / "fathom_gguf_mtp.gguf";
    const LoadedModel before = load_model(fixture_folder("mtp"), ops, {.with_mtp = true, .pack = false});
    ASSERT_EQ(before.config.num_nextn_predict_layers, 1);
    save_gguf(path, *before.model, {}, pool);
    const LoadedModel after = load_model(path, ops, {.with_mtp = true, .pack = false}), without = load_model(path, ops, {});
    EXPECT_EQ(without.config.num_nextn_predict_layers, 0);
    EXPECT_TRUE(has_mtp_modules(without));
    EXPECT_EQ(without.config.num_hidden_layers, before.config.num_hidden_layers);
    std::map<std::string, std::vector<float>> numbers;
    const auto numbers_of = [](const Param& param) {
        std::vector<float> all(static_cast<size_t>(param.size()));
        for (int64_t i = 0; i < (param.is_matrix() ? param.rows : 1); ++i)
            decode_row(all.data() + i * param.cols, param.weight, i);
        return all;
    };
    before.model->visit([&](const std::string& name, Param& param) { numbers.emplace(name, numbers_of(param)); });
    after.model->visit([&](const std::string& name, Param& param) {
        EXPECT_EQ(numbers_of(param), numbers.at(name)) << name;
        numbers.erase(name);
    });
    EXPECT_TRUE(numbers.empty());
    fs::remove(path);
}

TEST(GgufNames, EveryParameterHasItsOwnPlace) {
    const ModelConfig config = ModelConfig::load(fixture_folder("mtp"));
    DeepSeek model(config);
    std::set<std::pair<std::string, int64_t>> places;
    ASSERT_GT(config.num_nextn_predict_layers, 0);
    model.visit([&](const std::string& name, Param&) {
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
