// The tasks of fathom eval: how items are read, and whole runs of the bundled model on items whose outcome is known.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "app/eval_choice.h"
#include "app/eval_context.h"
#include "app/eval_items.h"
#include "base/error.h"
#include "base/file.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

TEST(EvalChoice, ItemsAreReadInAllTheirForms) {
    const ChoiceItem plain = read_choice({{"query", "The sky is"}, {"choices", {"blue", "loud"}}, {"gold", 1}}, " ");
    EXPECT_EQ(plain.contexts, std::vector<std::string>{"The sky is"});
    EXPECT_EQ(plain.continuations, (std::vector<std::string>{" blue", " loud"}));
    EXPECT_EQ(plain.gold, 1);
    EXPECT_EQ(plain.solved(), "The sky is loud");

    const ChoiceItem mmlu = read_choice(
        {{"question", "1 + 1?"}, {"options", {"1", "2", "3"}}, {"answer", "B"}, {"topic", "abstract_algebra"}}, " ");
    EXPECT_EQ(mmlu.contexts[0], "1 + 1?\nA. 1\nB. 2\nC. 3\nAnswer:");
    EXPECT_EQ(mmlu.continuations, (std::vector<std::string>{" A", " B", " C"}));
    EXPECT_EQ(mmlu.gold, 1);
    EXPECT_EQ(choice_header(mmlu.subject),
              "The following are multiple choice questions (with answers) about abstract algebra.\n\n");
    EXPECT_EQ(read_choice({{"question", "?"}, {"A", "x"}, {"B", "y"}, {"C", 7}, {"answer", "C"}}, " ").contexts[0],
              "?\nA. x\nB. y\nC. 7\nAnswer:");

    const ChoiceItem schema =
        read_choice({{"context_options", {"The cup", "The tea"}}, {"continuation", "was hot."}, {"gold", 1}}, " ");
    EXPECT_EQ(schema.options(), 2);
    EXPECT_EQ(schema.context(1) + schema.continuation(1), "The tea was hot.");
    EXPECT_EQ(read_choice({{"context", "Once upon a"}, {"continuation", "time"}}, " ").gold, -1);
}

TEST(EvalChoice, BrokenItemsAreRefused) {
    for (const Json& record :
         {Json{{"query", "x"}, {"choices", {"a", "b"}}, {"gold", 2}}, Json{{"query", "x"}, {"choices", {"a"}}, {"gold", 0}},
          Json{{"query", "x"}, {"choices", {1, 2}}, {"gold", 0}}, Json{{"question", "x"}, {"answer", "A"}},
          Json{{"question", "x"}, {"options", {"a", "b"}}, {"answer", "F"}}, Json{{"query", "x"}}, Json::object()}) {
        EXPECT_THROW((void)read_choice(record, " "), Error) << record;
    }
}

class ItemLines : public ::testing::Test {
protected:
    fs::path path_ = fs::temp_directory_path() / ("fathom-items-" + std::to_string(::getpid()) + ".jsonl");

    void TearDown() override { fs::remove(path_); }
    int64_t read(const std::string& text, bool skip_bad, std::vector<ChoiceItem>& items, int64_t limit = 0) const {
        write_text_atomically(path_, text);
        return read_items({path_, limit, skip_bad}, [&](const Json& record) {
            items.push_back(read_choice(record, " "));
            return true;
        });
    }
    [[nodiscard]] std::string refusal(const std::string& text) const {
        std::vector<ChoiceItem> items;
        try {
            (void)read(text, false, items);
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    }
};

constexpr const char* kGoodItem = R"({"question": "?", "options": ["x", "y"], "answer": "A"})";

// Line 86 of MMLU's STEM part holds a bare NaN.
TEST_F(ItemLines, WhatCannotBeUsedIsNamedByFileLineAndField) {
    const std::string nan = refusal(std::string(kGoodItem) + "\n\n" + R"({"question": "k!", "options": [NaN, "One"]})" + "\n");
    EXPECT_NE(nan.find(path_.string() + ":3: "), std::string::npos) << nan;
    EXPECT_NE(nan.find("in the field \"options\""), std::string::npos) << nan;
    EXPECT_NE(nan.find("NaN and Infinity"), std::string::npos) << nan;
    EXPECT_NE(nan.find("--skip-bad-items"), std::string::npos) << nan;
    const std::string cut = refusal(R"({"question": "k!", "answer": {"a)");
    EXPECT_NE(cut.find(":1: no JSON at byte "), std::string::npos) << cut;
    EXPECT_NE(cut.find("in the field \"answer\""), std::string::npos) << cut;
    EXPECT_EQ(cut.find("NaN"), std::string::npos) << cut;
    EXPECT_NE(refusal("[1]").find(":1: not a JSON object"), std::string::npos);
    EXPECT_NE(refusal(R"({"question": "?", "options": ["x", "y"], "answer": "Q"})").find(":1: an item of"), std::string::npos);
    EXPECT_NE(refusal("\n").find("holds no items"), std::string::npos);
}

TEST_F(ItemLines, BadOnesCanBeLeftOutAndAreCounted) {
    std::vector<ChoiceItem> items;
    const std::string text = std::string("{\"a\": NaN}\n") + kGoodItem + "\n{\n" + kGoodItem + "\n" + kGoodItem + "\n";
    EXPECT_EQ(read(text, true, items), 2);
    EXPECT_EQ(items.size(), 3u);
    items.clear();
    EXPECT_EQ(read(text, true, items, 1), 1);  // the second bad line is behind the limit
    EXPECT_EQ(items.size(), 1u);
    EXPECT_THROW((void)read("{\n", true, items), Error);  // nothing is left
}

TEST(EvalNeedle, ANeedleIsAParagraphAtTheBoundaryNearestToItsDepth) {
    const std::string hay = "first\nsecond\nthird\nfourth";
    EXPECT_EQ(with_needle(hay, "NEEDLE", 0), "NEEDLE\nfirst\nsecond\nthird\nfourth");
    EXPECT_EQ(with_needle(hay, "NEEDLE", 0.5), "first\nsecond\nNEEDLE\nthird\nfourth");
    EXPECT_EQ(with_needle(hay, "NEEDLE", 1), "first\nsecond\nthird\nfourth\nNEEDLE");
    EXPECT_EQ(with_needle("", "NEEDLE", 0.3), "NEEDLE");
}

// Runs `fathom eval TASK models/stories FILES... --output`; returns the summary, and the lines of results.
struct Outcome {
    int code = -1;
    Json summary;
    std::vector<Json> lines;
};

class EvalTasks : public ::testing::Test {
protected:
    fs::path folder = fs::path(testing::TempDir()) / "fathom_eval_test";

    void SetUp() override {
        fs::remove_all(folder);
        fs::create_directories(folder);
    }
    void TearDown() override { fs::remove_all(folder); }
    [[nodiscard]] std::string file(const std::string& name, const std::string& text) const {
        write_text_atomically(folder / name, text);
        return (folder / name).string();
    }
    [[nodiscard]] Outcome run(const std::string& task, const std::string& arguments) const {
        const fs::path items = folder / "items.jsonl";
        fs::remove(items);
        const std::string command = std::string(FATHOM_BINARY) + " --json --quiet eval " + task +
                                    " " FATHOM_SOURCE "/models/stories " + arguments + " --output " + items.string() + " 2>" +
                                    (folder / "stderr").string();
        std::FILE* pipe = ::popen(command.c_str(), "r");
        std::string out;
        for (int c; (c = std::fgetc(pipe)) != EOF;) out += static_cast<char>(c);
        Outcome result;
        result.code = WEXITSTATUS(::pclose(pipe));
        if (result.code != 0) return result;
        result.summary = Json::parse(out);
        const std::string text = read_text(items);
        for (size_t begin = 0, end; (end = text.find('\n', begin)) != text.npos; begin = end + 1)
            result.lines.push_back(Json::parse(text.substr(begin, end - begin)));
        return result;
    }
};

TEST_F(EvalTasks, AStoryModelKnowsHowStoriesBegin) {
    const std::string items =
        file("choice.jsonl", R"({"query": "Once upon a", "choices": ["time", "radiator voltage"], "gold": 0}
{"query": "The little girl was very happy. She", "choices": ["smiled", "the of and"], "gold": 0}
{"context_options": ["Once upon a time there", "Zebra forty seven"], "continuation": "was a little", "gold": 0}
{"context": "Once upon a", "continuation": "time"}
)");
    const Outcome result = run("choice", items + " --batch-size 3");
    ASSERT_EQ(result.code, 0) << read_text(folder / "stderr");
    EXPECT_EQ(result.summary["acc"], 1);
    EXPECT_EQ(result.summary["exact"], 1);
    ASSERT_EQ(result.lines.size(), 4u);
    EXPECT_EQ(result.lines[0]["chosen"], 0);
    EXPECT_GT(result.lines[0]["logprobs"][0].get<double>(), result.lines[0]["logprobs"][1].get<double>() + 5);
}

TEST_F(EvalTasks, NumbersAreJudgedAndItemsWritten) {
    const std::string items = file("gsm.jsonl", "{\"question\": \"How many cats?\", \"answer\": \"Two. #### 2\"}\n");
    const Outcome result = run("gsm8k", items + " --fewshot " + items + " --max-new-tokens 5");
    ASSERT_EQ(result.code, 0) << read_text(folder / "stderr");
    EXPECT_EQ(result.summary["num_fewshot"], 1);
    ASSERT_EQ(result.lines.size(), 1u);
    EXPECT_EQ(result.lines[0]["reference"], "2");
}

// The prompts hold whole programs; what a story model adds to them is a comment.
TEST_F(EvalTasks, ProgramsRunOnlyWhenAllowedAndAreJudgedByTheirTests) {
    if (std::system("python3 -c 0 >/dev/null 2>&1") != 0) GTEST_SKIP() << "no python3 here";
    std::string items;
    const auto add = [&](const std::string& program, const std::string& check) {
        const Json task{{"task_id", std::to_string(items.size())},
                        {"prompt", program + "\n#"},
                        {"test", "def check(f):\n    " + check},
                        {"entry_point", "one"}};
        items += task.dump() + "\n";
    };
    const std::string outside = (folder / "outside").string();
    add("def one():\n    return 1", "assert f() == 1");
    add("def one():\n    return 2", "assert f() == 1");
    add("import os\ndef one():\n    os._exit(0)", "f()");
    add("def one():\n    while True: pass", "f()");
    add("def one():\n    open('inside', 'w').write('x')", "f()");
    add("def one():\n    open('" + outside + "', 'w').write('x')", "f()");
    const std::string path = file("code.jsonl", items);
    EXPECT_EQ(run("humaneval", path).code, 2);
    const Outcome result = run("humaneval", path + " --allow-code-execution --max-new-tokens 1 --timeout 5");
    ASSERT_EQ(result.code, 0) << read_text(folder / "stderr");
    ASSERT_EQ(result.lines.size(), 6u);
    for (const size_t i : {0, 4}) EXPECT_EQ(result.lines[i]["passed"], true) << result.lines[i];
    for (const size_t i : {1, 2, 3}) EXPECT_EQ(result.lines[i]["passed"], false) << result.lines[i];
    // Only where the kernel knows Landlock is the sixth kept in.
    EXPECT_EQ(result.lines[5]["passed"], fs::exists(outside)) << result.lines[5];
}

TEST_F(EvalTasks, NeedlesQuestionsAndTranslationsReportTheirFigures) {
    std::string hay;
    for (int i = 0; i < 60; ++i) hay += "The little dog ran to the big tree and sat down in the sun.\n";
    const std::string needle = R"({"needle": "The word is moon.", "question": "What is the word?", "answer": "moon"})";
    const Outcome needles = run("needle", file("hay.txt", hay) + " " + file("needles.jsonl", needle) +
                                              " --lengths 100,200 --depths 0,1 --samples 2 --max-new-tokens 4");
    ASSERT_EQ(needles.code, 0) << read_text(folder / "stderr");
    ASSERT_EQ(needles.lines.size(), 8u);
    EXPECT_EQ(needles.summary["cells"].size(), 4u);
    for (const Json& line : needles.lines) {
        EXPECT_LE(line["prompt_tokens"].get<int64_t>(), line["length"].get<int64_t>());
        EXPECT_GT(line["prompt_tokens"].get<int64_t>(), line["length"].get<int64_t>() - 20);
    }
    const std::string questions =
        file("qa.jsonl", R"({"story": "dog", "question": "Who ran?", "answers": ["a dog", "the dog"]})");
    const Outcome reading =
        run("qa", questions + " --documents " + file("stories.jsonl", Json{{"story", "dog"}, {"text", hay}}.dump()) +
                      " --context 128 --max-new-tokens 8");
    ASSERT_EQ(reading.code, 0) << read_text(folder / "stderr");
    EXPECT_EQ(reading.summary["documents_cut"], 1);
    EXPECT_LE(reading.summary["mean_prompt_tokens"], 120);

    const Outcome translated =
        run("translation", file("a.en", "A dog runs.\nA cat sleeps.\n") + " " +
                               file("a.de", "Ein Hund rennt.\nEine Katze schläft.\n") + " --max-new-tokens 8");
    ASSERT_EQ(translated.code, 0) << read_text(folder / "stderr");
    EXPECT_EQ(translated.lines.size(), 2u);
    EXPECT_TRUE(translated.summary["bleu"].is_number());
    EXPECT_EQ(run("translation", file("b.en", "A dog runs.\n") + " " + (folder / "a.de").string()).code, 1);
}

}  // namespace
}  // namespace fathom
