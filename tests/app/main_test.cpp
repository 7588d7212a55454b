// The binary from outside: exit codes, what goes to which stream.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/file.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

struct Outcome {
    int code = -1;
    std::string out, err;
};

Outcome run(const std::string& arguments) {
    const fs::path err = fs::path(testing::TempDir()) / "main_test.stderr";
    Outcome outcome;
    std::FILE* pipe = ::popen((std::string(FATHOM_BINARY) + " " + arguments + " 2>" + err.string()).c_str(), "r");
    for (int c; (c = std::fgetc(pipe)) != EOF;) outcome.out += static_cast<char>(c);
    outcome.code = WEXITSTATUS(::pclose(pipe));
    outcome.err = read_text(err);
    fs::remove(err);
    return outcome;
}

TEST(Binary, HelpGoesToStdoutAndSucceeds) {
    const Outcome help = run("--help");
    EXPECT_EQ(help.code, 0);
    EXPECT_NE(help.out.find("Examples:"), std::string::npos);
    EXPECT_NE(help.out.find("doctor"), std::string::npos);
    EXPECT_EQ(help.err, "");
    EXPECT_EQ(run("doctor --help").code, 0);
    EXPECT_EQ(run("--version").out.substr(0, 7), "fathom ");
}

TEST(Binary, BadUsageIsCodeTwoAndOneLine) {
    const Outcome typo = run("doctor --bnech");
    EXPECT_EQ(typo.code, 2);
    EXPECT_EQ(typo.out, "");
    EXPECT_EQ(typo.err,
              "fathom: error: fathom doctor has no option \"--bnech\"; did you mean --bench? (see fathom doctor --help)\n");
    EXPECT_EQ(run("").code, 2);
    EXPECT_EQ(run("docter").code, 2);
    EXPECT_EQ(run("doctor --threads many").code, 2);
    EXPECT_EQ(run("doctor --threads -1").code, 2);
    EXPECT_EQ(run("--device cuda doctor").code, 2);
    EXPECT_EQ(run("doctor --device tpu").code, 2);
    EXPECT_EQ(run("doctor --device cuda:x").code, 2);
    EXPECT_EQ(run("doctor --device cuda:-1").code, 2);
    EXPECT_EQ(run("doctor --compute f16").code, 2);
}

TEST(Binary, BadInputIsCodeOneAndNamesTheFile) {
    const Outcome missing = run("plot /does/not/exist");
    EXPECT_EQ(missing.code, 1);
    EXPECT_EQ(missing.err.find("fathom: error: /does/not/exist"), 0u) << missing.err;
}

// The model does not exist either: a server that forgot its keys would complain of that.
TEST(Binary, AServerThatIsToAskForKeysAndHasNoneDoesNotStart) {
    const fs::path keys = fs::path(testing::TempDir()) / "main_test.keys";
    write_text_atomically(keys, "\n\r\n");
    const Outcome empty = run("serve /does/not/exist --api-key-file " + keys.string());
    EXPECT_EQ(empty.code, 1);
    EXPECT_NE(empty.err.find("holds no key"), std::string::npos) << empty.err;
    EXPECT_NE(run("serve /does/not/exist --api-key-file /").err.find("not a regular file"), std::string::npos);
    EXPECT_EQ(run("serve /does/not/exist --api-key ''").code, 2);
    fs::remove(keys);
}

TEST(Binary, AFullStdoutIsAnError) { EXPECT_EQ(run("doctor >/dev/full").code, 1); }

TEST(Binary, GlobalOptionsStandBeforeOrAfterTheVerb) {
    for (const char* arguments : {"--json doctor", "doctor --json"}) {
        const Outcome outcome = run(arguments);
        EXPECT_EQ(outcome.code, 0) << outcome.err;
        const auto facts = nlohmann::json::parse(outcome.out);
        EXPECT_GE(facts["cores"]["available"], 1);
        EXPECT_GT(facts["memory_bytes"]["total"], 0);
    }
}

TEST(Binary, OfAnOptionGivenTwiceTheLastOneHolds) {
    EXPECT_EQ(run("doctor --threads 2 --threads 1").code, 0);
    EXPECT_EQ(run("doctor --threads -1 --threads 1").code, 2);
}

TEST(Binary, JsonErrorsAreJsonToo) {
    const Outcome outcome = run("plot /does/not/exist --json");
    EXPECT_EQ(outcome.out, "");
    const auto error = nlohmann::json::parse(outcome.err);
    EXPECT_EQ(error["error"]["exit_code"], 1);
    EXPECT_NE(error["error"]["message"].get<std::string>().find("/does/not/exist"), std::string::npos);
}

TEST(Binary, PlotsARun) {
    const fs::path folder = fs::path(testing::TempDir()) / "main_test_run";
    fs::create_directories(folder);
    write_text_atomically(folder / "metrics.jsonl",
                          "{\"step\":1,\"tokens\":10,\"loss\":3}\n{\"step\":2,\"tokens\":20,\"loss\":2}\n");
    const Outcome outcome = run("plot " + folder.string() + " --json");
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    const auto figures = nlohmann::json::parse(outcome.out);
    ASSERT_EQ(figures.size(), 1u);
    EXPECT_EQ(figures[0]["path"], (folder / "plots" / "loss.svg").string());
    EXPECT_TRUE(fs::exists(folder / "plots" / "loss.svg"));
    fs::remove_all(folder);
}

TEST(Binary, CompletionScriptsAreValidShell) {
    EXPECT_EQ(run("completion bash | bash -n").code, 0);
    EXPECT_NE(run("completion fish").out.find("complete -c fathom"), std::string::npos);
    EXPECT_NE(run("completion zsh").out.find("bashcompinit"), std::string::npos);
    const std::string complete =
        "completion bash > /tmp/fathom-completion.sh; bash -c 'source /tmp/fathom-completion.sh; COMP_WORDS=(fathom doctor "
        "--be); "
        "COMP_CWORD=2; _fathom; echo ${COMPREPLY[@]}'; rm /tmp/fathom-completion.sh; true";
    EXPECT_EQ(run(complete).out, "--bench\n");
}

}  // namespace
}  // namespace fathom
