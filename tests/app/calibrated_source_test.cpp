// AWQ and GPTQ on tiny models.
#include "app/calibrated_source.h"

#include <gtest/gtest.h>
#include <filesystem>
#include <map>

#include "app/importance.h"
#include "app/sensitivity.h"
#include "base/error.h"
#include "base/file.h"
#include "infer/divergence.h"
#include "model/fixture.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

StoredAs integers(int64_t bits) { return {Scheme::kGroups, {bits, 32, true, DType::kBF16}}; }

class Calibrated : public ::testing::TestWithParam<std::string> {
protected:
    void SetUp() override { fs::remove_all(folder_); }
    void TearDown() override { fs::remove_all(folder_); }

    // Writes the model to folder_ and returns how far it has moved from the original.
    double divergence_of(int64_t bits, const CalibratedMethod* method, int64_t tokens = 512) {
        fs::remove_all(folder_);
        FolderPlan plan = plan_folder(*model_.model, integers(bits), "compressed-tensors");
        if (method == nullptr) {
            RoundingSource source(*model_.model, plan, nullptr, pool_);
            save_quantized_folder(folder_, *model_.model, plan, source, {});
        } else {
            CalibratedSource::prepare_plan(*model_.model, *method, plan);
            CalibratedSource source(*model_.model, plan, options(*method, tokens), pool_);
            save_quantized_folder(folder_, *model_.model, plan, source, {});
            rounded_ = source.rounded();
        }
        const LoadedModel changed = load_model(folder_, ops_, {});
        return divergence(*model_.model, *changed.model, ops_, std::span(text_).last(256), 64).mean_kl();
    }
    [[nodiscard]] CalibrationOptions options(CalibratedMethod method, int64_t tokens) const {
        return {method, std::span(text_).first(static_cast<size_t>(tokens)), 64, "", "", ProgressMode::kQuiet};
    }
    static std::vector<int32_t> text(int64_t vocab) {
        std::vector<int32_t> tokens;
        for (int64_t i = 0; i < 1024; ++i) tokens.push_back(static_cast<int32_t>((i * i * 31 + 17 * i + 5) % 997 % vocab));
        return tokens;
    }

    ThreadPool pool_{2};
    CpuOps ops_{pool_};
    LoadedModel model_ = load_model(fixture_folder(GetParam()), ops_, {.with_mtp = true, .pack = false});
    std::vector<int32_t> text_ = text(model_.config.vocab_size);
    std::vector<std::string> rounded_;
    fs::path folder_ = fs::path(::testing::TempDir()) / ("fathom_calibrated_" + GetParam());
};

TEST_P(Calibrated, TheyMoveTheModelLessThanRoundingDoes) {
    const CalibratedMethod awq = CalibratedMethod::kAwq, gptq = CalibratedMethod::kGptq;
    const double nearest = divergence_of(4, nullptr);
    EXPECT_LT(divergence_of(4, &awq), 0.95 * nearest);
    EXPECT_LT(divergence_of(4, &gptq), 0.95 * nearest);
}

TEST_P(Calibrated, AwqsScalesCancel) {
    // With 8 bits next to nothing is lost, unless a scale that columns got is not taken off again.
    const CalibratedMethod awq = CalibratedMethod::kAwq;
    EXPECT_LT(divergence_of(8, &awq), 2 * divergence_of(8, nullptr) + 1e-5);
}

TEST_P(Calibrated, ExpertsWithoutEnoughTokensAreNamed) {
    const CalibratedMethod gptq = CalibratedMethod::kGptq;
    (void)divergence_of(4, &gptq, 64);
    ASSERT_FALSE(rounded_.empty());
    for (const std::string& name : rounded_) EXPECT_NE(name.find(".mlp.experts."), std::string::npos) << name;
}

TEST_P(Calibrated, AnInterruptedJobEndsInTheSameBytes) {
    class Interrupted final : public FolderSource {
    public:
        Interrupted(FolderSource& source, int limit) : source_(source), limit_(limit) {}
        void produce(const std::string& name, const TensorSink& sink) override { source_.produce(name, sink); }
        void shard_finished(const std::string& name) override {
            source_.shard_finished(name);
            if (--limit_ == 0) throw Error(ErrorKind::kInterrupted, "enough");
        }

    private:
        FolderSource& source_;
        int limit_;
    };
    for (const CalibratedMethod method : {CalibratedMethod::kAwq, CalibratedMethod::kGptq}) {
        FolderPlan plan = plan_folder(*model_.model, integers(4), "gptq");
        CalibratedSource::prepare_plan(*model_.model, method, plan);
        std::map<std::string, std::string> bytes;
        for (const int limit : {0, 1, 3, 4}) {
            fs::path first;
            fs::remove_all(folder_);
            fs::create_directories(folder_);
            CalibrationOptions calibration = options(method, 256);
            calibration.state = folder_ / "state";
            calibration.job = "job";
            const FolderSaveOptions save{.max_shard_bytes = 60000, .job = "job"};
            if (limit > 0) {
                CalibratedSource source(*model_.model, plan, calibration, pool_);
                Interrupted some(source, limit);
                ASSERT_THROW(save_quantized_folder(folder_, *model_.model, plan, some, save), Error);
            }
            if (limit == 4) {  // without the first shard the state is of no use
                for (const auto& entry : fs::directory_iterator(folder_))
                    if (entry.path().filename().string().starts_with(".model-00001-")) first = entry.path();
                ASSERT_TRUE(fs::remove(first));
            }
            CalibratedSource source(*model_.model, plan, calibration, pool_);
            save_quantized_folder(folder_, *model_.model, plan, source, save);
            for (const auto& entry : fs::directory_iterator(folder_)) {
                const std::string name = entry.path().filename().string();
                if (name == "state") continue;
                if (limit == 0)
                    bytes[name] = read_text(entry.path());
                else
                    EXPECT_TRUE(read_text(entry.path()) == bytes.at(name)) << name << " after shard " << limit;
            }
        }
        EXPECT_GT(bytes.size(), 4u);
    }
}

TEST_P(Calibrated, EveryMatrixHasAnImportance) {
    const Importance importance =
        measure_importance(*model_.model, pool_, std::span(text_).first(512), 64, ProgressMode::kQuiet);
    const std::string mtp = "model.layers." + std::to_string(model_.config.num_hidden_layers);
    model_.model->visit([&](const std::string& name, Param& param) {
        if (!param.is_matrix() || name.starts_with(mtp) || name.find("embed_tokens") != std::string::npos) return;
        const auto found = importance.find(name);
        if (found == importance.end()) {
            EXPECT_NE(name.find(".experts."), std::string::npos) << name;  // one that no token chose
            return;
        }
        EXPECT_EQ(std::ssize(found->second), param.cols) << name;
    });
}

TEST_P(Calibrated, ABudgetIsKeptAndSpent) {
    FolderPlan plan = plan_folder(*model_.model, integers(4), "compressed-tensors");
    const auto bytes_of = [&] {
        int64_t sum = 0;
        model_.model->visit([&](const std::string& name, Param& param) {
            for (const TensorSpec& spec : specs_of_parameter(plan, name, param)) sum += spec.bytes();
        });
        return sum;
    };
    const int64_t least = bytes_of();
    const Sensitivity sensitivity{std::span(text_).first(64), 64, least + least / 10, ProgressMode::kQuiet};
    std::map<std::string, const void*> weights;
    model_.model->visit([&](const std::string& name, Param& param) { weights[name] = param.weight.codes.data; });
    fit_plan_to_budget(*model_.model, ops_, pool_, plan, sensitivity);
    EXPECT_LE(bytes_of(), sensitivity.budget);
    EXPECT_GT(bytes_of(), least + least / 20);
    EXPECT_GT(plan.config.groups.size() + plan.config.ignore.size(), 2u);
    model_.model->visit(
        [&](const std::string& name, Param& param) { EXPECT_EQ(param.weight.codes.data, weights.at(name)) << name; });
    Sensitivity tight = sensitivity;
    tight.budget = least - 1;
    FolderPlan again = plan_folder(*model_.model, integers(4), "compressed-tensors");
    EXPECT_THROW(fit_plan_to_budget(*model_.model, ops_, pool_, again, tight), Error);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Calibrated, ::testing::Values("v2-lite-greedy", "v3"), [](const auto& param) {
    std::string name = param.param;
    std::erase(name, '-');
    return name;
});

TEST(Budget, IsReadInBytesOrBits) {
    EXPECT_EQ(parse_budget("8M", 1), 8 << 20);
    EXPECT_EQ(parse_budget("1.5K", 1), 1536);
    EXPECT_EQ(parse_budget("4000", 1), 4000);
    EXPECT_EQ(parse_budget("4bpw", 1000), 500);
    for (const char* wrong : {"", "M", "8X", "-3M", "0", "nan", "1e30", "8 M"})
        EXPECT_THROW((void)parse_budget(wrong, 1), Error) << wrong;
}

}  // namespace
}  // namespace fathom
