#include "rl/countdown.h"

#include <gtest/gtest.h>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

namespace fathom {
namespace {

std::optional<int64_t> value(std::string_view text) {
    const auto found = evaluate_countdown(text);
    return found ? std::optional(found->value) : std::nullopt;
}

TEST(Countdown, ExpressionsAreEvaluatedExactly) {
    EXPECT_EQ(value("(98 - 73) + 18"), 43);
    EXPECT_EQ(value("2+3*4"), 14);
    EXPECT_EQ(value("20/5/2"), 2);
    EXPECT_EQ(value("10-3-2"), 5);
    EXPECT_EQ(value("3 × 4 ÷ 2"), 6);
    EXPECT_EQ(value("3 \\times (4 − 1)"), 9);
    EXPECT_EQ(value("((7))"), 7);
    EXPECT_EQ(value("6/(1-2)"), -6);
}

TEST(Countdown, WhatIsNoExpressionIsRefused) {
    for (const char* text : {"",      " ",       "+",  "1+",  "(1",  "1)",   "1 2", "7/2",
                             "7/0",   "1/(2-2)", "-3", "a+1", "1.5", "2**3", "1e3", "99999999999999999999",
                             "5 = 5", "1+2;",    "()", "3x"}) {
        EXPECT_EQ(value(text), std::nullopt) << text;
    }
    EXPECT_EQ(value("999999999999999 * 999999999999999 * 999999999999999"), std::nullopt) << "beyond 64 bits";
    EXPECT_EQ(value(std::string(10000, '(') + "1"), std::nullopt) << "no deep recursion";
}

TEST(Countdown, NumbersMayBeUsedOnceEach) {
    const std::vector<int64_t> nums{18, 73, 98};
    EXPECT_EQ(judge_countdown("98 - 73 + 18", nums, 43), CountdownVerdict::kRight);
    EXPECT_EQ(judge_countdown("98 - 73", nums, 25), CountdownVerdict::kRight) << "not all are needed";
    EXPECT_EQ(judge_countdown("98 + 73", nums, 43), CountdownVerdict::kLegal);
    EXPECT_EQ(judge_countdown("18 + 18 + 7", nums, 43), CountdownVerdict::kNone);
    EXPECT_EQ(judge_countdown("43", nums, 43), CountdownVerdict::kNone) << "the target itself is no answer";
    EXPECT_EQ(judge_countdown("40 + 3", nums, 43), CountdownVerdict::kNone);
    EXPECT_EQ(judge_countdown("8 + 8", std::vector<int64_t>{8, 8}, 16), CountdownVerdict::kRight);
}

TEST(Countdown, AnswersAreFoundWhereTheyAreGiven) {
    EXPECT_EQ(countdown_answer(" 3 + 4 "), "3 + 4");
    EXPECT_EQ(countdown_answer("<think>7 * 2</think> so <answer>3 + 4</answer>"), "3 + 4");
    EXPECT_EQ(countdown_answer("first <answer>1</answer> no: <answer> 2*3 = 6 </answer>"), "2*3");
    EXPECT_EQ(countdown_answer("we get \\boxed{5 - 1}."), "5 - 1");
    EXPECT_EQ(countdown_answer("Let me see.\nAnswer: 5 - 1\nThat is it"), "5 - 1");
    EXPECT_EQ(countdown_answer("thinking\n\n2 * 9 = 18\n"), "2 * 9");
    EXPECT_EQ(countdown_answer(""), "");
}

TEST(Countdown, GeneratedTasksAreSolvedByTheirSolution) {
    Rng rng(1);
    std::set<std::string> targets;
    for (int64_t count = 2; count <= 5; ++count) {
        for (int i = 0; i < 200; ++i) {
            const CountdownTask task = make_countdown({.count = count, .largest = 25, .max_target = 60}, rng);
            ASSERT_EQ(judge_countdown(task.solution, task.nums, task.target), CountdownVerdict::kRight) << task.solution;
            ASSERT_EQ(std::ssize(evaluate_countdown(task.solution)->used), count);
            ASSERT_TRUE(task.target >= 1 && task.target <= 60);
            targets.insert(std::to_string(task.target));
        }
    }
    EXPECT_GT(targets.size(), 40U);
}

TEST(Countdown, WordTasksAddUp) {
    Rng rng(2);
    for (int i = 0; i < 200; ++i) {
        const WordTask task = make_word_arithmetic(3, 20, rng);
        ASSERT_EQ(task.steps.size(), 3U);
        ASSERT_GE(task.answer, 1);
        for (const std::string& step : task.steps) {
            const size_t equals = step.find('=');
            EXPECT_EQ(value(step.substr(0, equals)), std::stoll(step.substr(equals + 1))) << step;
        }
        EXPECT_TRUE(task.steps.back().ends_with("= " + std::to_string(task.answer)));
    }
}

TEST(Countdown, TheSharedFilesSolutionsAreRight) {
    std::ifstream file(FATHOM_SHARED "/data/reason/countdown.dev.jsonl");
    if (!file) GTEST_SKIP() << "no shared/data here";
    int64_t lines = 0;
    for (std::string line; std::getline(file, line); ++lines) {
        const auto record = nlohmann::json::parse(line);
        const auto nums = record["nums"].get<std::vector<int64_t>>();
        EXPECT_EQ(judge_countdown(record["solution"].get<std::string>(), nums, record["target"]), CountdownVerdict::kRight);
    }
    EXPECT_EQ(lines, 500);
}

}  // namespace
}  // namespace fathom
