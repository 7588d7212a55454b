// Supervised fine-tuning and distillation through the binary.
#include <gtest/gtest.h>

#include "train/tiny_run.h"
#include "train/train_checkpoint.h"
#include "train/training_process.h"

namespace fathom {
namespace {

constexpr const char* kSft = FATHOM_TEST_DATA "/rl/sft.toml";
constexpr const char* kDistill = FATHOM_TEST_DATA "/rl/distill.toml";

Outcome run_verb(const std::string& verb, const char* config, const fs::path& folder, const Settings& settings) {
    Training run(folder, settings, verb, config);
    const int code = run.wait();
    return {code, run.said()};
}

// Kills the run as soon as it has saved something, and lets another process end it.
void kill_and_resume(const std::string& verb, const char* config, const fs::path& folder, const Settings& settings) {
    const auto saved = [&] { return !training_checkpoints(folder / "checkpoints").empty(); };
    ASSERT_NO_FATAL_FAILURE(kill_when(saved, folder, settings, verb, config));
    const Outcome rest = run_verb(verb, config, folder, settings + Settings{"--resume", "auto"});
    EXPECT_EQ(rest.code, 0) << rest.said;
}

TEST(Sft, LearnsOnlyWhatTheAssistantSaysAndResumesToTheByte) {
    const fs::path base = fresh_folder("sft");
    const Outcome whole = run_verb("sft", kSft, base / "whole", {"checkpoint.keep=9"});
    ASSERT_EQ(whole.code, 0) << whole.said;
    const auto lines = read_metrics(base / "whole/metrics.jsonl");
    ASSERT_EQ(lines.size(), 12U);
    EXPECT_LT(*lines[11].val_loss, *lines[5].val_loss);
    EXPECT_TRUE(lines[0].mtp_loss) << "MTP modules are tuned, too";
    kill_and_resume("sft", kSft, base / "resumed", {"checkpoint.keep=9"});
    expect_same_files(base / "resumed/checkpoints", base / "whole/checkpoints");
    expect_same_metrics(base / "resumed", base / "whole");
    fs::remove_all(base);
}

TEST(Sft, BadSettingsAndDataAreNamed) {
    const fs::path base = fresh_folder("sft_bad");
    write_text_atomically(base / "bad.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"alone\"}]}\n");
    const auto expect = [&](const Settings& settings, const std::string& part) {
        const Outcome outcome = run_verb("sft", kSft, base / "run", settings);
        EXPECT_EQ(outcome.code, 1);
        EXPECT_NE(outcome.said.find(part), std::string::npos) << outcome.said;
    };
    expect({"data.train=" + (base / "bad.jsonl").string()}, "bad.jsonl:1: no message is the assistant's");
    expect({"sft.chat_format=v9"}, "chat_format: \"v9\" is not one of");
    expect({"sft.tricks=1"}, "sft.tricks: is not a known key");
    expect({"data.sequence_length=4"}, "a larger data.sequence_length cuts fewer");
    fs::remove_all(base);
}

TEST(Distill, BringsASmallDenseStudentNearItsTeacherAndResumesToTheByte) {
    const fs::path base = fresh_folder("distill");
    const Outcome made = run_verb("sft", kSft, base / "teacher", {"model.num_nextn_predict_layers=0"});
    ASSERT_EQ(made.code, 0) << made.said;
    const std::string teacher = "distill.teacher=" + training_checkpoints(base / "teacher/checkpoints").back().string();
    for (const char* kl : {"reverse", "forward"}) {
        const fs::path run = base / kl;
        const Outcome outcome = run_verb("distill", kDistill, run, {teacher, std::string("distill.kl=") + kl});
        ASSERT_EQ(outcome.code, 0) << outcome.said;
        const auto lines = read_metrics(run / "metrics.jsonl");
        double first = 0, last = 0;
        for (size_t i = 0; i < 5; ++i) first += *lines[i].loss, last += *lines[lines.size() - 1 - i].loss;
        EXPECT_LT(last, 0.7 * first) << kl;
    }
    kill_and_resume("distill", kDistill, base / "resumed", {teacher});
    expect_same_files(base / "resumed/checkpoints", base / "reverse/checkpoints");
    fs::remove_all(base);
}

}  // namespace
}  // namespace fathom
