// GRPO through the binary: whatever stops a run, going on ends with the same bytes, used-up part of a generation included.
#include <gtest/gtest.h>
#include <cmath>

#include "base/rng.h"
#include "rl/rollout_buffer.h"
#include "train/tiny_run.h"
#include "train/train_checkpoint.h"
#include "train/training_process.h"

namespace fathom {
namespace {

constexpr const char* kConfig = FATHOM_TEST_DATA "/rl/grpo.toml";

Outcome grpo(const fs::path& folder, const Settings& settings) {
    Training run(folder, settings, "grpo", kConfig);
    const int code = run.wait();
    return {code, run.said()};
}

double value_of(const StepMetrics& metrics, const std::string& name) {
    for (const auto& [key, value] : metrics.more) {
        if (key == name) return value;
    }
    ADD_FAILURE() << "step " << metrics.step << " has no " << name;
    return NAN;
}

class GrpoResume : public testing::Test {
protected:
    fs::path base = fresh_folder("grpo_resume");
    Rng rng{5, 0};
    inline static fs::path whole_run;  // made once for all tests
    static const fs::path& whole() {
        if (whole_run.empty()) {
            whole_run = fresh_folder("grpo_whole");
            const Outcome outcome = grpo(whole_run, {"--threads", "1"});
            EXPECT_EQ(outcome.code, 0) << outcome.said;
        }
        return whole_run;
    }
    static void TearDownTestSuite() {
        fs::remove_all(whole_run);
        whole_run.clear();
    }
    void TearDown() override { fs::remove_all(base); }
};

TEST_F(GrpoResume, MetricsSayWhatHappened) {
    const auto lines = read_metrics(whole() / "metrics.jsonl");
    ASSERT_EQ(lines.size(), 12U);
    for (const StepMetrics& line : lines) {
        const bool fresh = line.step % 4 == 1;  // two parts, used twice
        EXPECT_GE(value_of(line, "entropy"), 0);
        EXPECT_EQ(std::ranges::any_of(line.more, [](const auto& e) { return e.first == "reward"; }), fresh);
        if (!fresh) continue;
        EXPECT_EQ(value_of(line, "logp_diff_max"), 0) << "sampler and trainer are one arithmetic";
        EXPECT_EQ(value_of(line, "routing_differences"), 0);
        EXPECT_GT(value_of(line, "tokens_compared"), 0);
        EXPECT_EQ(value_of(line, "ratio"), 1);
        EXPECT_EQ(value_of(line, "rewards/failed"), 0);
        EXPECT_NEAR(value_of(line, "reward"), value_of(line, "rewards/program/mean") + value_of(line, "rewards/countdown/mean"),
                    1e-9);
    }
    EXPECT_NE(value_of(lines[3], "ratio"), 1) << "the second use of a generation is off policy";
    EXPECT_GE(value_of(lines[11], "eval/pass@1"), 0);
    EXPECT_TRUE(fs::exists(whole() / "completions.jsonl"));
}

TEST_F(GrpoResume, KillingAtAnyMomentEndsWithTheSameBytes) {
    const fs::path run = base / "run";
    int kills = 0;
    for (int round = 0; round < 4; ++round) {
        Training part(run, {"--resume", "auto"}, "grpo", kConfig);
        // Once something new was saved, and a little later.
        const size_t before = training_checkpoints(run / "checkpoints").size();
        if (!part.reaches([&] { return training_checkpoints(run / "checkpoints").size() > before; })) break;
        if (!goes_on(part, run, rng)) break;
        if (part.stop(SIGKILL) != -SIGKILL) break;
        ++kills;
    }
    EXPECT_GE(kills, 2);
    const Outcome rest = grpo(run, {"--resume", "auto"});
    EXPECT_EQ(rest.code, 0) << rest.said;
    expect_same_files(run / "checkpoints", whole() / "checkpoints");
    expect_same_metrics(run, whole());
}

TEST_F(GrpoResume, CtrlCAtAnyMomentEndsWithTheSameBytes) {
    const fs::path run = base / "interrupted";
    int stops = 0;
    for (int round = 0; round < 4; ++round) {
        Training part(run, {"--resume", "auto"}, "grpo", kConfig);
        const int64_t before = steps_told(run);
        if (!part.reaches([&] { return steps_told(run) > before; })) break;
        if (!goes_on(part, run, rng)) break;
        if (part.stop(SIGINT) != 130) break;
        ++stops;
    }
    EXPECT_GE(stops, 2);
    const Outcome rest = grpo(run, {"--resume", "auto"});
    EXPECT_EQ(rest.code, 0) << rest.said;
    expect_same_files(run / "checkpoints/step-00000012", whole() / "checkpoints/step-00000012");
}

TEST_F(GrpoResume, RewardsThatAreAllEqualMoveNothingAndAreCounted) {
    const fs::path run = base / "equal";
    const Outcome outcome =
        grpo(run, {"training.steps=1", "grpo.steps_per_generation=1", "grpo.reward_funcs=[\"program\"]", "data.valid=[]",
                   "grpo.reward_program=[\"awk\", \"{ print 1 }\"]", "grpo.dynamic_sampling=true", "grpo.max_resamples=1"});
    EXPECT_EQ(outcome.code, 0) << outcome.said;
    const StepMetrics line = read_metrics(run / "metrics.jsonl").front();
    EXPECT_EQ(value_of(line, "reward"), 1);
    EXPECT_EQ(value_of(line, "frac_reward_zero_std"), 1);
    EXPECT_EQ(value_of(line, "resampled_groups"), 4) << "asked for anew once, and then taken as they are";
    EXPECT_EQ(*line.loss, 0);
    EXPECT_EQ(*line.grad_norm, 0);
}

TEST_F(GrpoResume, ADamagedRolloutBufferIsRefused) {
    const fs::path run = base / "damaged";
    fs::copy(whole(), run, fs::copy_options::recursive);
    const fs::path file = run / "checkpoints/step-00000012/rollouts.safetensors";
    std::string bytes = read_text(file);
    bytes[bytes.size() - 9] = static_cast<char>(bytes[bytes.size() - 9] ^ 1);
    write_text_atomically(file, bytes);
    const Outcome outcome = grpo(run, {"--resume", "auto", "training.steps=13"});
    EXPECT_EQ(outcome.code, 1);
    EXPECT_NE(outcome.said.find("rollout buffer cannot be used: its checksum"), std::string::npos) << outcome.said;
}

TEST_F(GrpoResume, BadRewardsAreReportedAndCountedAndStopNothing) {
    const fs::path run = base / "bad";
    const Outcome outcome = grpo(
        run, {"training.steps=2", "grpo.steps_per_generation=1", "grpo.num_iterations=1", "grpo.reward_funcs=[\"program\"]",
              "grpo.reward_program=[\"/bin/sh\", \"-c\", \"read x; echo 1; echo NaN; kill -9 $$\"]", "grpo.reward_retries=0",
              "data.valid=[]"});
    EXPECT_EQ(outcome.code, 0) << outcome.said;
    EXPECT_NE(outcome.said.find("step 1: reward: program: was killed by signal 9"), std::string::npos) << outcome.said;
    const auto lines = read_metrics(run / "metrics.jsonl");
    EXPECT_EQ(value_of(lines[0], "rewards/failed"), 15) << "of 16 answers one was judged";
    EXPECT_EQ(value_of(lines[0], "frac_reward_zero_std"), 1);
    EXPECT_EQ(*lines[0].loss, 0) << "one verdict says nothing about its group";
}

TEST_F(GrpoResume, PromptsThatAreTooLongAreLeftOutAndCounted) {
    const fs::path run = base / "long";
    write_text_atomically(
        base / "prompts.jsonl",
        "{\"prompt\": \"1 2 -> 3: \", \"nums\": [1, 2], \"target\": 3}\n{\"prompt\": \"" + std::string(200, '7') + "\"}\n");
    const Outcome outcome = grpo(run, {"training.steps=1", "grpo.prompts_per_step=1", "data.valid=[]",
                                       "data.train=" + (base / "prompts.jsonl").string()});
    EXPECT_EQ(outcome.code, 0) << outcome.said;
    EXPECT_NE(outcome.said.find("1 prompts of more than grpo.max_prompt_length = 24"), std::string::npos) << outcome.said;
    EXPECT_EQ(value_of(read_metrics(run / "metrics.jsonl")[0], "prompts/overlong"), 1);
}

TEST_F(GrpoResume, AReferenceOfAnotherShapeIsRefused) {
    const fs::path fixture = FATHOM_TEST_DATA "/configs_extra/one-expert";
    const Outcome outcome = grpo(base / "reference", {"grpo.beta=0.1", "grpo.reference_model=" + fixture.string()});
    EXPECT_EQ(outcome.code, 1);
    EXPECT_NE(outcome.said.find("grpo.reference_model"), std::string::npos) << outcome.said;
    EXPECT_NE(outcome.said.find("vocabulary"), std::string::npos) << outcome.said;
}

TEST(RolloutBufferFile, ReadsBackExactlyWhatItWrote) {
    const fs::path folder = fresh_folder("rollout_buffer");
    Rollout a{3, {5, 6, 7, 8}, 2, true, {-0.5F, -1.25F}, {1, -2}, {{}, {0, 1, 2, 3, -1, -1}}, {0.1, 1}, 1.1, -0.3};
    const Rollout b{0, {5, 6}, 2, false, {}, {}, {}, {}, 0, 0};  // an empty completion
    const RolloutBuffer written{{a, b}, 17, 1, 99};
    save_rollouts(folder, written);
    const RolloutBuffer read = load_rollouts(folder, 4);
    EXPECT_EQ(read.rollouts, written.rollouts);
    EXPECT_EQ(read.sampled_at, 17);
    EXPECT_EQ(read.uses, 1);
    EXPECT_EQ(read.streams, 99U);
    EXPECT_THROW((void)load_rollouts(folder, 3), Error) << "a prompt the run does not have";
    EXPECT_THROW((void)load_rollouts(folder / "nowhere", 4), Error);
    fs::remove_all(folder);
}

}  // namespace
}  // namespace fathom
