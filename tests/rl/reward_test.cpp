#include "rl/reward.h"

#include <gtest/gtest.h>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

double score(const std::string& name, const Json& record, const std::string& completion, RewardOptions options = {},
             int64_t tokens = 10) {
    std::vector<std::string> problems;
    const RewardInput input{&record, completion, tokens, false};
    const auto values = make_reward(name, options)->score(std::span(&input, 1), problems);
    EXPECT_EQ(values.size(), 1U);
    EXPECT_EQ(std::isnan(values[0]), !problems.empty());
    return values[0];
}

TEST(RewardRules, CountdownPaysForRightAndALittleForLegal) {
    const Json record{{"nums", {3, 4, 5}}, {"target", 17}};
    EXPECT_EQ(score("countdown", record, "3 * 4 + 5"), 1);
    EXPECT_EQ(score("countdown", record, "3 + 4"), 0.1);
    EXPECT_EQ(score("countdown", record, "no idea"), 0);
    EXPECT_TRUE(std::isnan(score("countdown", {{"nums", "3 4"}}, "3")));
}

TEST(RewardRules, MathPaysForEquivalentAnswers) {
    EXPECT_EQ(score("math", {{"answer", "So 40+2 = 42\n#### 42"}}, "it is \\boxed{42.0}"), 1);
    EXPECT_EQ(score("math", {{"answer", 42}}, "#### 41"), 0);
    EXPECT_EQ(score("math", {{"answer", "42"}}, "42 is a number"), 0) << "no answer was given";
    EXPECT_TRUE(std::isnan(score("math", Json::object(), "\\boxed{1}")));
}

TEST(RewardRules, FormatWantsThinkingAndThenAnAnswer) {
    EXPECT_EQ(score("format", {}, "<think>hm</think> 5"), 1);
    EXPECT_EQ(score("format", {}, "hm, opened by the prompt</think>5"), 1);
    for (const char* text :
         {"5", "<think>hm", "<think>hm</think>", "<think>a</think>b</think>c", "<think><think>a</think>b", ""})
        EXPECT_EQ(score("format", {}, text), 0) << text;
}

TEST(RewardRules, LengthAndOverlongFollowTheirFormulas) {
    const RewardOptions options{.max_completion_length = 100, .soft_overlong_cache = 20};
    EXPECT_DOUBLE_EQ(score("length", {}, "x", options, 25), 0.75);
    EXPECT_EQ(score("overlong", {}, "x", options, 80), 0);
    EXPECT_DOUBLE_EQ(score("overlong", {}, "x", options, 85), -0.25);
    EXPECT_EQ(score("overlong", {}, "x", options, 100), -1);
}

TEST(RewardRules, LanguageIsAShareOfLetters) {
    EXPECT_EQ(score("language", {}, "plain words, 1 + 2 = 3 – “quoted”"), 1);
    EXPECT_EQ(score("language", {}, "ab中文"), 0.5);
    EXPECT_EQ(score("language", {}, "中文。", {.language = "zh"}), 1);
    EXPECT_EQ(score("language", {}, "", {}), 1);
}

TEST(RewardRules, AnEmptyCompletionIsJudgedLikeAnyOther) {
    const Json record{{"answer", "4"}, {"nums", {3, 4}}, {"target", 12}};
    for (const char* name : {"math", "countdown", "format"}) EXPECT_EQ(score(name, record, "", {}, 1), 0) << name;
    EXPECT_EQ(score("overlong", record, "", {.max_completion_length = 8, .soft_overlong_cache = 4}, 1), 0);
    EXPECT_DOUBLE_EQ(score("length", record, "", {.max_completion_length = 8}, 1), 0.875);
}

TEST(RewardRules, UnknownOnesAreNamed) {
    EXPECT_THROW((void)make_reward("luck", {}), Error);
    EXPECT_THROW((void)make_reward("program", {}), Error);
    EXPECT_THROW((void)make_reward("model", {}), Error);
    EXPECT_THROW((void)make_reward("language", {.language = "fr"}), Error);
}

class RewardProgram : public testing::Test {
protected:
    std::vector<std::string> problems;

    std::vector<double> ask(const std::string& script, int64_t answers = 2, int64_t retries = 0) {
        RewardOptions options;
        options.program = {"/bin/sh", "-c", script};
        options.program_dir = std::filesystem::path(testing::TempDir()) / "reward_work";
        options.timeout = std::chrono::milliseconds(700);
        options.retries = retries;
        static const Json record{{"answer", 1}};
        std::vector<RewardInput> inputs;
        for (int64_t i = 0; i < answers; ++i) inputs.push_back({&record, "text " + std::to_string(i), 3, false});
        problems.clear();
        return make_reward("program", options)->score(inputs, problems);
    }
    void expect_unjudged(const std::string& script, const std::string& why) {
        for (const double value : ask(script)) EXPECT_TRUE(std::isnan(value)) << script;
        ASSERT_FALSE(problems.empty()) << script;
        EXPECT_NE(problems.front().find(why), std::string::npos) << problems.front();
    }
};

TEST_F(RewardProgram, JudgesLineByLine) {
    EXPECT_EQ(ask("while read -r line; do case $line in *'text 0'*) echo 0.5;; *) echo '{\"reward\": 2}';; esac; done"),
              (std::vector<double>{0.5, 2}));
    EXPECT_TRUE(problems.empty());
}

TEST_F(RewardProgram, ThatMisbehavesLeavesAnswersUnjudgedAndSaysWhy) {
    expect_unjudged("sleep 100", "no answer within");
    expect_unjudged("exec 1>&-; sleep 100", "no answer within");
    expect_unjudged("sleep 100 & sleep 100", "no answer within");
    expect_unjudged("kill -9 $$", "signal 9");
    expect_unjudged("exit 3", "exit code 3");
    expect_unjudged("cat", "is no reward");
    expect_unjudged("echo garbage; echo NaN", "is no reward");
    expect_unjudged("echo 1e999; echo null", "is no reward");
    expect_unjudged("yes 1", "wrote too much");
    expect_unjudged("echo 1; echo 2; echo 3", "wrote 3 lines for 2 answers");
    expect_unjudged("exec /no/such/program", "could not be started");
}

TEST_F(RewardProgram, KeepsWhatWasJudgedBeforeACrash) {
    const auto values = ask("read -r line; echo 0.25; exit 1");
    EXPECT_EQ(values[0], 0.25);
    EXPECT_TRUE(std::isnan(values[1]));
}

TEST_F(RewardProgram, IsAskedAgainForWhatIsOpen) {
    EXPECT_EQ(ask("read -r line; echo 0.25", 2, 1), (std::vector<double>{0.25, 0.25}));
    EXPECT_FALSE(problems.empty());
}

TEST_F(RewardProgram, WorksInAnEmptyFolderThatGoesAway) {
    EXPECT_EQ(ask("touch here; ls | wc -l; pwd > /dev/null; echo 7; cat > /dev/null"), (std::vector<double>{1, 7}));
    EXPECT_TRUE(std::filesystem::is_empty(std::filesystem::path(testing::TempDir()) / "reward_work"));
}

TEST_F(RewardProgram, MayIgnoreAMegabyteOfInput) {
    RewardOptions options;
    options.program = {"/bin/sh", "-c", "echo 1; exec 0<&-; echo 1"};
    options.program_dir = testing::TempDir();
    static const Json record;
    const std::string large(1 << 20, 'x');
    const std::vector<RewardInput> inputs(2, {&record, large, 3, false});
    EXPECT_EQ(make_reward("program", options)->score(inputs, problems), (std::vector<double>{1, 1}));
}

}  // namespace
}  // namespace fathom
