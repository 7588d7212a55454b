// Training through the binary: whatever stops a run, going on ends with the same bytes; and what is refused, with which words.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/rng.h"
#include "train/metrics.h"
#include "train/tiny_run.h"
#include "train/train_checkpoint.h"
#include "train/training_process.h"

namespace fathom {
namespace {

std::vector<fs::path> checkpoints_of(const fs::path& run) { return training_checkpoints(run / "checkpoints"); }

bool any_partial(const fs::path& folder) {
    std::error_code code;  // the folder changes under the iterator
    for (fs::directory_iterator it(folder / "checkpoints", code), end; !code && it != end; it.increment(code)) {
        if (it->path().extension() == ".partial") return true;
    }
    return false;
}

void expect_contains(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << "\"" << text << "\" lacks \"" << part << "\"";
}

class Resume : public ::testing::Test {
protected:
    fs::path base = fresh_folder("resume");
    inline static const Settings kSmooth{"lr_scheduler.type=cosine", "training.mtp_lambda_final=0.1", "checkpoint.keep=9"};

    // The run that nothing disturbs; made once for all tests.
    inline static fs::path whole_run;
    static const fs::path& whole() {
        if (whole_run.empty()) {
            whole_run = fresh_folder("whole");
            const Outcome outcome = train(whole_run, kSmooth + Settings{"--threads", "1"});
            EXPECT_EQ(outcome.code, 0) << outcome.said;
        }
        return whole_run;
    }
    static void TearDownTestSuite() {
        fs::remove_all(whole_run);
        whole_run.clear();
    }
    void TearDown() override { fs::remove_all(base); }

    [[nodiscard]] fs::path run() const { return base / "run"; }
    [[nodiscard]] bool has_line() const {
        std::error_code code;
        const auto size = fs::file_size(run() / "metrics.jsonl", code);
        return !code && size > 0;
    }
};

TEST_F(Resume, TheRunFolderHoldsWhatItShould) {
    const auto files = files_of(whole());
    for (const char* name : {"config.toml", "metrics.jsonl", "checkpoints/step-00000005/model.safetensors",
                             "checkpoints/step-00000020/config.json", "checkpoints/step-00000020/tokenizer.json",
                             "checkpoints/step-00000020/optimizer/model.safetensors", "checkpoints/step-00000020/trainer.json",
                             "data/train/manifest.json", "data/valid/manifest.json"})
        EXPECT_TRUE(files.contains(name)) << name;
    const auto metrics = read_metrics(whole() / "metrics.jsonl");
    ASSERT_EQ(metrics.size(), 20U);
    EXPECT_TRUE(metrics[9].val_loss && metrics[19].val_loss && !metrics[8].val_loss);
    EXPECT_LT(*metrics[19].val_loss, *metrics[9].val_loss);
    for (const auto& [name, bytes] : files_of(whole() / "checkpoints")) {
        EXPECT_EQ(bytes.find(whole().string()), std::string::npos) << name << " names a path";
        EXPECT_EQ(bytes.find(FATHOM_TEST_DATA), std::string::npos) << name << " names a path";
    }
}

TEST_F(Resume, HalfARunKilledAndResumedEndsWithTheSameBytes) {
    ASSERT_NO_FATAL_FAILURE(kill_when([&] { return fs::exists(run() / "checkpoints/step-00000010"); }, run(), kSmooth));
    const Outcome rest = train(run(), kSmooth + Settings{"--resume", "auto"});
    EXPECT_EQ(rest.code, 0) << rest.said;
    expect_same_files(run() / "checkpoints", whole() / "checkpoints");
    expect_same_metrics(run(), whole());
}

TEST_F(Resume, KillingAtAnyMomentEndsWithTheSameBytes) {
    Rng rng(11, 0);
    int kills = 0;
    for (int round = 0; round < 10; ++round) {
        Training part(run(), kSmooth + Settings{"--resume", "auto"});
        // Every other time while a checkpoint is being written.
        if (!(round % 2 == 0 ? part.reaches([&] { return any_partial(run()); }) : goes_on(part, run(), rng))) break;
        if (part.stop(SIGKILL) != -SIGKILL) break;  // it had just ended
        ++kills;
        for (const fs::path& checkpoint : checkpoints_of(run()))
            expect_same_files(checkpoint, whole() / "checkpoints" / checkpoint.filename());
    }
    EXPECT_GE(kills, 3);
    const Outcome rest = train(run(), kSmooth + Settings{"--resume", "auto"});
    EXPECT_EQ(rest.code, 0) << rest.said;
    expect_same_files(run() / "checkpoints", whole() / "checkpoints");
    expect_same_metrics(run(), whole());
}

TEST_F(Resume, CtrlCSavesAndSaysHowToGoOn) {
    Training part(run(), kSmooth);
    ASSERT_TRUE(part.reaches([&] { return has_line(); })) << part.said();
    EXPECT_EQ(part.stop(SIGINT), 130);
    expect_contains(part.said(), "--resume auto");
    const auto lines = read_metrics(run() / "metrics.jsonl");
    ASSERT_LT(lines.size(), 20U) << "the run was over before the signal";
    const auto saved = checkpoints_of(run());
    ASSERT_FALSE(saved.empty());
    EXPECT_EQ(saved.back().filename(), fmt::format("step-{:08}", lines.back().step));
    const Outcome rest = train(run(), kSmooth + Settings{"--resume", "latest"});
    EXPECT_EQ(rest.code, 0) << rest.said;
    expect_same_files(run() / "checkpoints/step-00000020", whole() / "checkpoints/step-00000020");
    expect_same_metrics(run(), whole());
}

TEST_F(Resume, TheNumberOfThreadsDoesNotShowInTheCheckpoints) {
    const Outcome outcome = train(run(), kSmooth + Settings{"--threads", "2"});
    EXPECT_EQ(outcome.code, 0) << outcome.said;
    expect_same_files(run() / "checkpoints", whole() / "checkpoints");
}

TEST_F(Resume, AnotherProcessInTheFolderIsRefused) {
    Training first(run(), kSmooth);
    ASSERT_TRUE(first.reaches([&] { return has_line(); })) << first.said();
    first.pause();
    const Outcome second = train(base / "run/../run", kSmooth + Settings{"--resume", "auto"});
    EXPECT_EQ(second.code, 2);
    expect_contains(second.said, "another process is training in this folder");
    EXPECT_EQ(first.stop(SIGKILL), -SIGKILL);
}

TEST_F(Resume, AFolderWithARunNeedsAWordAboutIt) {
    fs::copy(whole(), run(), fs::copy_options::recursive);
    const Outcome refused = train(run(), kSmooth);
    EXPECT_EQ(refused.code, 2);
    expect_contains(refused.said, "step-00000020");
    expect_contains(refused.said, "--resume auto");
    const Outcome finished = train(run(), kSmooth + Settings{"--resume", "auto"});
    EXPECT_EQ(finished.code, 0) << finished.said;
    const Outcome back = train(run(), kSmooth + Settings{"--resume", (run() / "checkpoints/step-00000005").string()});
    EXPECT_EQ(back.code, 2);
    expect_contains(back.said, "remove the later checkpoints");
    const Outcome beyond = train(run(), kSmooth + Settings{"training.steps=10", "--resume", "auto"});
    EXPECT_EQ(beyond.code, 2);
    expect_contains(beyond.said, "beyond training.steps = 10");
    const Outcome stranger = train(run(), kSmooth + Settings{"--resume", "auto", "model.moe_intermediate_size=32"});
    EXPECT_EQ(stranger.code, 1);
    expect_contains(stranger.said, "belongs to another model");
    expect_same_files(run() / "checkpoints", whole() / "checkpoints");
    expect_same_metrics(run(), whole());
    const Outcome nothing = train(base / "other", kSmooth + Settings{"--resume", "latest"});
    EXPECT_EQ(nothing.code, 2);
    expect_contains(nothing.said, "no checkpoint to resume from");
}

TEST_F(Resume, ACheckpointOfAnotherFolderBeginsANewRunThere) {
    const Outcome outcome = train(run(), kSmooth + Settings{"--resume", (whole() / "checkpoints/step-00000010").string()});
    EXPECT_EQ(outcome.code, 0) << outcome.said;
    expect_same_files(run() / "checkpoints/step-00000020", whole() / "checkpoints/step-00000020");
    EXPECT_EQ(read_metrics(run() / "metrics.jsonl").front().step, 11);
}

TEST_F(Resume, AFolderThatLostItsTrainerJsonIsKeptUnderAnotherName) {
    fs::copy(whole(), run(), fs::copy_options::recursive);
    fs::remove(run() / "checkpoints/step-00000020/trainer.json");
    const Outcome outcome = train(run(), kSmooth + Settings{"--resume", "auto"});
    EXPECT_EQ(outcome.code, 0) << outcome.said;
    expect_same_files(run() / "checkpoints/step-00000020", whole() / "checkpoints/step-00000020");
    EXPECT_TRUE(fs::exists(run() / "checkpoints/step-00000020.incomplete-1/model.safetensors"));
}

TEST_F(Resume, AFullDiskLeavesTheLastCheckpointAndSaysSo) {
    fs::create_directories(base / "disk");
    const std::string disk = (base / "disk").string();
    if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=3m") != 0) GTEST_SKIP() << "mounting a small disk needs root";
    const Settings settings = kSmooth + Settings{"checkpoint.keep=1"};
    const fs::path folder = base / "disk/run";
    {
        Training full(folder, settings);  // the log lies on the disk too
        EXPECT_EQ(full.wait(), 1);
        expect_contains(full.said(), "the disk is full");
    }
    const auto left = checkpoints_of(folder);
    EXPECT_EQ(left.size(), 1U);
    for (const fs::path& checkpoint : left) expect_same_files(checkpoint, whole() / "checkpoints" / checkpoint.filename());
    EXPECT_FALSE(any_partial(folder));
    EXPECT_EQ(::mount("tmpfs", disk.c_str(), "tmpfs", MS_REMOUNT, "size=32m"), 0);
    const Outcome rest = train(folder, settings + Settings{"--resume", "auto"});
    EXPECT_EQ(rest.code, 0) << rest.said;
    expect_same_files(folder / "checkpoints/step-00000020", whole() / "checkpoints/step-00000020");
    EXPECT_EQ(::umount(disk.c_str()), 0);
}

// Rows of the embedding that no text has used yet have zero gradients: 0 / (sqrt(0) + 0).
TEST_F(Resume, WeightsThatAreNotNumbersAreNeverSaved) {
    const Outcome outcome = train(run(), kSmooth + Settings{"optimizer.epsilon=0"});
    EXPECT_EQ(outcome.code, 1);
    expect_contains(outcome.said, "Lower optimizer.lr");
    EXPECT_TRUE(checkpoints_of(run()).empty());
}

TEST_F(Resume, BadDataIsNamed) {
    const fs::path empty = base / "empty.txt";
    write_text_atomically(empty, "");
    const auto complaint = [&](const Settings& settings) {
        const Outcome outcome = train(run(), kSmooth + settings);
        EXPECT_EQ(outcome.code, 1) << outcome.said;
        fs::remove_all(run());
        return outcome.said;
    };
    expect_contains(complaint({"data.train=" + empty.string()}), "no text");
    expect_contains(complaint({"data.valid=" + empty.string()}), "no text");
    expect_contains(complaint({"data.train=/does/not/exist.txt"}), "/does/not/exist.txt");
    expect_contains(complaint({"model.vocab_size=500"}), "its 512 tokens do not fit the model's vocab_size 500");
    expect_contains(complaint({"model.tokenizer=/does/not/exist"}), "/does/not/exist");
    expect_contains(complaint({"data.train=" + base.string()}), base.string());
    expect_contains(complaint({"model.init_from=" + base.string()}), "config.json");
}

TEST_F(Resume, AModelToStartFromGivesItsWeights) {
    const std::string from = "model.init_from=" + (whole() / "checkpoints/step-00000020").string();
    const Outcome outcome = train(run(), kSmooth + Settings{from, "training.steps=1", "lr_scheduler.type=constant"});
    ASSERT_EQ(outcome.code, 0) << outcome.said;
    const double start = *read_metrics(run() / "metrics.jsonl")[0].loss;
    EXPECT_LT(start, *read_metrics(whole() / "metrics.jsonl")[10].loss) << "it did not begin at random";
    fs::remove_all(run());
    const Outcome misfit = train(run(), kSmooth + Settings{from, "model.hidden_size=64"});
    EXPECT_EQ(misfit.code, 1);
    expect_contains(misfit.said, "must describe the model of init_from");
}

}  // namespace
}  // namespace fathom
