#include "train/config.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "train/tiny_run.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

const fs::path kFile = fs::path(FATHOM_TEST_DATA) / "resume.toml";

TrainConfig with(const std::vector<std::string>& settings) { return TrainConfig::load(kFile, settings); }

// What parsing `toml` complains about; empty when it does not.
std::string complaint(const std::string& toml, ErrorKind kind = ErrorKind::kInput) {
    try {
        (void)TrainConfig::parse(toml, {}, "/base");
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), kind) << error.what();
        return error.what();
    }
    return "";
}

std::string override_complaint(const std::string& setting, ErrorKind kind = ErrorKind::kInput) {
    try {
        (void)with({setting});
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), kind) << error.what();
        return error.what();
    }
    return "";
}

void expect_contains(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << "\"" << text << "\" lacks \"" << part << "\"";
}

TEST(TrainConfig, ReadsTheFileAndPutsPathsBesideIt) {
    const TrainConfig config = with({});
    EXPECT_EQ(config.job.dir, "runs/resume");  // relative to the working directory
    EXPECT_EQ(config.model.tokenizer, kFile.parent_path() / "resume/tokenizer");
    ASSERT_EQ(config.data.train.size(), 1U);
    EXPECT_EQ(config.data.train[0], kFile.parent_path() / "resume/train.txt");
    EXPECT_EQ(config.model.config.n_routed_experts, 8);
    EXPECT_EQ(config.model.config.model_type, "deepseek_v3");
    EXPECT_EQ(config.training.dtype, DType::kBF16);
    ASSERT_EQ(config.balance.losses.size(), 1U);
    EXPECT_TRUE(config.balance.losses[0].per_sequence);
    EXPECT_EQ(config.lr_scheduler.kind, ScheduleKind::kConstant);
    EXPECT_EQ(config.optimizer.beta2, 0.95);  // a default
}

TEST(TrainConfig, OverridesAreTomlValuesOrBareTexts) {
    const TrainConfig config = with({"training.steps=7", "lr_scheduler.type=wsd", "optimizer.lr=1e-5", "job.dir=a=b",
                                     "training.recompute=true", "lr_scheduler.decay_at=[0.5, 0.75]", "model.hidden_size=64",
                                     "data.valid=[]", "balance.loss=[{kind = \"device\", alpha = 0.05, devices = 4}]"});
    EXPECT_EQ(config.training.steps, 7);
    EXPECT_EQ(config.lr_scheduler.kind, ScheduleKind::kWsd);
    EXPECT_EQ(config.optimizer.lr, 1e-5);
    EXPECT_EQ(config.job.dir, "a=b");
    EXPECT_TRUE(config.training.recompute);
    EXPECT_EQ(config.lr_scheduler.decay_at, (std::vector<double>{0.5, 0.75}));
    EXPECT_EQ(config.model.config.hidden_size, 64);
    EXPECT_TRUE(config.data.valid.empty());
    ASSERT_EQ(config.balance.losses.size(), 1U);
    EXPECT_EQ(config.balance.losses[0].kind, BalanceLossKind::kDevice);
    EXPECT_EQ(config.balance.losses[0].devices, 4);
}

TEST(TrainConfig, TheEffectiveTextHoldsEveryDefaultAndMeansTheSameAnywhere) {
    const TrainConfig config = with({"training.steps=9"});
    expect_contains(config.text, "beta2 = 0.95");
    expect_contains(config.text, "mtp_lambda_switch = 0.676");
    expect_contains(config.text, "lr = 0.003\n");
    expect_contains(config.text, "clip = 1.0\n");
    expect_contains(config.text, "loss = [{");
    expect_contains(config.text, "type = \"constant\"");
    const TrainConfig again = TrainConfig::parse(config.text, {}, "/somewhere/else");
    EXPECT_EQ(again.text, config.text);
    EXPECT_EQ(again.model.tokenizer, config.model.tokenizer);
    EXPECT_EQ(again.data.train, config.data.train);
    EXPECT_EQ(again.job.dir, fs::current_path() / "runs/resume");
    EXPECT_EQ(again.training.steps, 9);
}

TEST(TrainConfig, KeysOfModelLieOverItsConfigFile) {
    const fs::path folder = fresh_folder("overlay");
    write_text_atomically(folder / "config.json", with({}).model.config.to_json());
    write_text_atomically(folder / "run.toml",
                          "[job]\ndir = \"r\"\n[model]\nconfig = \"config.json\"\nhidden_size = 80\n"
                          "[data]\ntrain = \"t.txt\"\n[training]\nsteps = 1\n");
    const std::vector<std::string> settings{"model.q_lora_rank=8"};
    const TrainConfig config = TrainConfig::load(folder / "run.toml", settings);
    EXPECT_EQ(config.model.config.hidden_size, 80);
    EXPECT_EQ(config.model.config.q_lora_rank, 8);
    EXPECT_EQ(config.model.config.kv_lora_rank, 16);
    // A default of 1024 would reach beyond the model's positions.
    EXPECT_EQ(config.data.sequence_length, 128);
    write_text_atomically(folder / "config.json", "[1, 2]");
    EXPECT_THROW((void)TrainConfig::load(folder / "run.toml", {}), Error);
    write_text_atomically(folder / "config.json", "{\"vocab_size\": ");
    EXPECT_THROW((void)TrainConfig::load(folder / "run.toml", {}), Error);
    fs::remove_all(folder);
}

TEST(TrainConfig, TheCheckpointsTypeIsTheTrainingsType) {
    EXPECT_EQ(with({}).model.config.torch_dtype, "bfloat16");
    EXPECT_EQ(with({"training.dtype=f32"}).model.config.torch_dtype, "float32");
}

TEST(TrainConfig, RoundedMomentsWantASecondMomentThatForgets) {
    EXPECT_EQ(with({}).optimizer.moments, DType::kF32);
    EXPECT_EQ(with({"optimizer.moments=bf16"}).optimizer.moments, DType::kBF16);
    const std::vector<std::string> settings{"optimizer.moments=bf16", "optimizer.beta2=0.999"};
    EXPECT_THROW((void)with(settings), Error);
}

TEST(TrainConfig, UnknownSectionsAndKeysAreNamedWithTheKnownOnes) {
    expect_contains(override_complaint("trainning.steps=3"), "trainning: is not a known section");
    const std::string key = override_complaint("training.step=3");
    expect_contains(key, kFile.string());
    expect_contains(key, "training.step: is not a known key");
    expect_contains(key, "gradient_accumulation");
    expect_contains(complaint("steps = 3"), "steps: is not a known section");
    expect_contains(override_complaint("balance.loss=[{kind = \"expert\", beta = 1}]"),
                    "balance.loss.beta: is not a known key");
    for (const char* section : {"job", "model", "data", "optimizer", "lr_scheduler", "balance", "checkpoint", "metrics"})
        expect_contains(override_complaint(std::string(section) + ".nonsense=1"), std::string(section) + ".nonsense");
}

TEST(TrainConfig, WrongTypesAreNamed) {
    expect_contains(override_complaint("training.steps=1.5"), "training.steps: must be an integer");
    expect_contains(override_complaint("training.steps=many"), "training.steps: must be an integer");
    expect_contains(override_complaint("training.recompute=1"), "training.recompute: must be true or false");
    expect_contains(override_complaint("optimizer.lr=fast"), "optimizer.lr: must be a number");
    expect_contains(override_complaint("job.dir=5"), "job.dir: must be a text");
    expect_contains(override_complaint("data.train=[1]"), "data.train: must be a text");
    expect_contains(override_complaint("data.train="), "data.train: must be a text");
    expect_contains(override_complaint("lr_scheduler.decay_at=0.5"), "must be a list of numbers");
    expect_contains(override_complaint("lr_scheduler.decay_at=[true]"), "must be a list of numbers");
    expect_contains(override_complaint("lr_scheduler.type=linear"), "\"linear\" is not one of constant, cosine, wsd, step, v3");
    expect_contains(override_complaint("training.dtype=fp8"), "\"fp8\" is not one of bf16, f32");
    expect_contains(override_complaint("optimizer.moments=int8"), "\"int8\" is not one of bf16, f32");
    expect_contains(override_complaint("balance.loss=3"), "[[balance.loss]]");
    expect_contains(override_complaint("balance.loss=[3]"), "[[balance.loss]]");
    expect_contains(override_complaint("balance.loss=[{kind=\"best\"}]"), "is not one of expert, device");
    expect_contains(complaint("training = 3"), "needs");
    expect_contains(complaint("model = 3"), "model: must be a table");
    expect_contains(override_complaint("model.rope_theta=1979-05-27"), "model.rope_theta: has a type");
}

TEST(TrainConfig, ValuesOutOfRangeAreNamedWithTheRange) {
    expect_contains(override_complaint("training.steps=0"), "training.steps: 0 is not between 1 and 99999999");
    expect_contains(override_complaint("training.rows_per_batch=0"), "training.rows_per_batch");
    expect_contains(override_complaint("training.clip=-1"), "training.clip");
    expect_contains(override_complaint("optimizer.lr=nan"), "optimizer.lr");
    expect_contains(override_complaint("optimizer.lr=11"), "optimizer.lr: 11 is not between 0 and 10");
    expect_contains(override_complaint("optimizer.beta1=1"), "optimizer.beta1");
    expect_contains(override_complaint("checkpoint.keep=0"), "checkpoint.keep");
    expect_contains(override_complaint("lr_scheduler.min_ratio=2"), "lr_scheduler.min_ratio");
    expect_contains(override_complaint("lr_scheduler.decay_at=[1.5]"), "lr_scheduler.decay_at");
    expect_contains(override_complaint("data.sequence_length=129"), "data.sequence_length: 129 is not between 2 and 128");
    expect_contains(override_complaint("training.rows_per_batch=1048577"), "training.rows_per_batch");
    expect_contains(override_complaint("balance.loss=[{devices=3}]"), "must divide n_routed_experts");
    expect_contains(override_complaint("balance.loss=[{devices=9}]"), "balance.loss.devices");
    expect_contains(override_complaint("balance.loss=[{devices=2, device_limit=3}]"), "balance.loss.device_limit");
    try {
        (void)with({"model.max_position_embeddings=1000000", "data.sequence_length=4096", "training.rows_per_batch=1048576"});
        FAIL() << "2^32 tokens in a batch";
    } catch (const Error& error) {
        expect_contains(error.what(), "gradient_accumulation");
    }
}

TEST(TrainConfig, WhatIsRequiredIsNamed) {
    const std::string model = "[model]\nconfig = \"" + (fresh_folder("required") / "config.json").string() + "\"\n";
    write_text_atomically(fs::path(testing::TempDir()) / "fathom_train_required/config.json", with({}).model.config.to_json());
    expect_contains(complaint(model), "training.steps: is required");
    expect_contains(complaint(model + "[training]\nsteps = 1\n"), "job.dir: is required");
    expect_contains(complaint(model + "[training]\nsteps = 1\n[job]\ndir = \"x\"\n"), "data.train: is required");
    EXPECT_EQ(complaint(model + "[training]\nsteps = 1\n[job]\ndir = \"x\"\n[data]\ntrain = \"y\"\n"), "");
    expect_contains(complaint(""), "model: needs");
    expect_contains(complaint("[model]\nhidden_size = 3\n"), "[model]");
    expect_contains(complaint("[model]\nconfig = \"missing.json\"\n", ErrorKind::kIo), "/base/missing.json");
}

TEST(TrainConfig, SyntaxErrorsHaveALine) {
    expect_contains(complaint("[job]\ndir = \"a\"\nseed = = 3\n"), "line 3");
    expect_contains(complaint("[job\n"), "line 1");
    expect_contains(complaint("[job]\n[[;x]]\n"), "line 2");  // an assertion of toml++, found by fuzzing
    expect_contains(complaint("[job]\n\xc3\xa9 = 3\n"), "line 2");
}

TEST(TrainConfig, MalformedOverridesAreUsageErrors) {
    for (const char* setting : {"training.steps", "steps=3", "=3", ".=3", "training.=3", ".steps=3", "training..steps=3", ""})
        expect_contains(override_complaint(setting, ErrorKind::kUsage), "section.key=value");
    expect_contains(override_complaint("training.steps.more=3", ErrorKind::kUsage), "steps is not a table");
    expect_contains(override_complaint("model.model_type=\xff"), "UTF-8");
}

}  // namespace
}  // namespace fathom
