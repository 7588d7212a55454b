// `fathom train|sft|grpo|... CONFIG job.dir=FOLDER SETTINGS...` as a process of its own, and the files it leaves.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/rng.h"
#include "train/metrics.h"

namespace fathom {

namespace fs = std::filesystem;
using Settings = std::vector<std::string>;

class Training {
public:
    Training(const fs::path& folder, const Settings& settings, const std::string& verb = "train",
             const std::string& config = FATHOM_TEST_DATA "/resume.toml")
        : log_(folder.string() + ".log") {
        std::vector<std::string> words{FATHOM_BINARY};
        std::istringstream verbs(verb);  // "reward train" is two words
        for (std::string word; verbs >> word;) words.push_back(word);
        words.insert(words.end(), {config, "job.dir=" + folder.string()});
        words.insert(words.end(), settings.begin(), settings.end());
        pid_ = ::fork();
        if (pid_ != 0) return;
        const int log = ::open(log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
        ::dup2(log, STDOUT_FILENO);
        ::dup2(log, STDERR_FILENO);
        std::vector<char*> arguments;
        for (std::string& word : words) arguments.push_back(word.data());
        arguments.push_back(nullptr);
        ::execv(FATHOM_BINARY, arguments.data());
        ::_exit(127);
    }
    ~Training() {
        if (!ended_) stop(SIGKILL);
        fs::remove(log_);
    }
    Training(const Training&) = delete;
    Training& operator=(const Training&) = delete;

    // Exit code, or minus the signal that ended it.
    int wait() {
        int status = 0;
        ::waitpid(pid_, &status, 0);
        ended_ = true;
        return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    }
    int stop(int signal) {
        ::kill(pid_, signal);
        return wait();
    }
    void pause() const { ::kill(pid_, SIGSTOP); }
    // Whether it came true before the process ended by itself.
    [[nodiscard]] bool reaches(const std::function<bool()>& state) {
        while (!state()) {
            siginfo_t info{};
            ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
            if (info.si_pid != 0) return false;
            std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
        return true;
    }
    [[nodiscard]] std::string said() const { return read_text(log_); }

private:
    fs::path log_;
    pid_t pid_ = 0;
    bool ended_ = false;
};

// Begins a run and kills it once `state` has come true; begins anew where the run was over before the signal came.
inline void kill_when(const std::function<bool()>& state, const fs::path& folder, const Settings& settings,
                      const std::string& verb = "train", const std::string& config = FATHOM_TEST_DATA "/resume.toml") {
    constexpr int kAttempts = 20;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
        {
            Training part(folder, settings, verb, config);
            const bool reached = part.reaches(state);
            const int code = part.stop(SIGKILL);
            if (code == -SIGKILL && reached) return;
            ASSERT_EQ(code, 0) << part.said();
        }
        fs::remove_all(folder);
    }
    FAIL() << folder << ": every one of " << kAttempts << " runs was over before it could be killed";
}

// Steps that a run has told of. Not by read_text, which maps the file: a run that goes on cuts it.
inline int64_t steps_told(const fs::path& run) {
    std::ifstream metrics(run / "metrics.jsonl");
    return std::count(std::istreambuf_iterator<char>(metrics), {}, '\n');
}

// Lets it do 0 to 2 steps and a part of one; false if it ended before. Steps, not time: a fast machine ends a run within 0.2 s.
[[nodiscard]] inline bool goes_on(Training& training, const fs::path& run, Rng& rng) {
    const int64_t until = steps_told(run) + static_cast<int64_t>(rng.below(3));
    if (!training.reaches([&] { return steps_told(run) >= until; })) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(rng.below(5000)));
    return true;
}

struct Outcome {
    int code;
    std::string said;
};

inline Outcome train(const fs::path& folder, const Settings& settings) {
    Training training(folder, settings);
    const int code = training.wait();
    return {code, training.said()};
}

inline Settings operator+(Settings a, const Settings& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

// Every file below `folder` with its bytes.
inline std::map<std::string, std::string> files_of(const fs::path& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
        if (entry.is_regular_file()) files[fs::relative(entry.path(), folder).string()] = read_text(entry.path());
    }
    return files;
}

inline void expect_same_files(const fs::path& found, const fs::path& expected) {
    const auto a = files_of(found), b = files_of(expected);
    ASSERT_FALSE(b.empty());
    for (const auto& [name, bytes] : b) {
        ASSERT_TRUE(a.contains(name)) << found << " lacks " << name;
        EXPECT_TRUE(a.at(name) == bytes) << found / name << " differs";
    }
    EXPECT_EQ(a.size(), b.size()) << found;
}

inline void expect_same_metrics(const fs::path& found, const fs::path& expected) {
    auto a = read_metrics(found / "metrics.jsonl"), b = read_metrics(expected / "metrics.jsonl");
    for (auto* lines : {&a, &b}) {
        for (StepMetrics& line : *lines) {
            line.elapsed = line.tokens_per_second = 0;
            std::erase_if(line.more, [](const auto& entry) {  // what a clock says
                return entry.first.starts_with("time/") || entry.first.ends_with("_per_second");
            });
        }
    }
    EXPECT_EQ(a, b);
}

}  // namespace fathom
