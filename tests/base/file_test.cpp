#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

class Files : public testing::Test {
protected:
    fs::path folder_ = fs::path(testing::TempDir()) / ("file_test-" + std::to_string(::getpid()));
    void SetUp() override { fs::create_directories(folder_); }
    void TearDown() override { fs::remove_all(folder_); }
};

std::string text_of(std::span<const std::byte> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

// The message of the Error that `action` throws.
template <class Action>
std::string message_of(Action&& action) {
    try {
        action();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kIo);
        return error.what();
    }
    return "";
}

TEST_F(Files, AFileCutShortUnderItsMapEndsTheProcessWithASentence) {
    const fs::path path = folder_ / "weights.bin";
    std::ofstream(path) << std::string(1 << 16, 'w');
    const auto read_beyond = [&] {
        const MappedFile file(path);
        fs::resize_file(path, 100);
        volatile std::byte last = file.bytes()[file.bytes().size() - 1];
        (void)last;
    };
    EXPECT_EXIT(read_beyond(), testing::ExitedWithCode(1), "weights.bin: the file was cut short");
}

TEST_F(Files, ManyMapsComeAndGo) {
    const fs::path path = folder_ / "shard.bin";
    std::ofstream(path) << "shard";
    for (int round = 0; round < 3; ++round) {
        std::vector<MappedFile> files;
        for (int i = 0; i < 1100; ++i) files.emplace_back(path);  // more than are watched
        EXPECT_EQ(text_of(files.back().bytes()), "shard");
    }
}

TEST_F(Files, AMapShowsTheBytesOfTheFile) {
    const std::string text("a\0b\n", 4);
    write_text_atomically(folder_ / "a", text);
    MappedFile map(folder_ / "a");
    EXPECT_EQ(text_of(map.bytes()), text);
    MappedFile moved = std::move(map);
    EXPECT_EQ(text_of(moved.bytes()), text);
    EXPECT_TRUE(map.bytes().empty());  // NOLINT(bugprone-use-after-move): that is the point
    EXPECT_EQ(read_text(folder_ / "a"), text);
}

TEST_F(Files, AnEmptyFileMapsToNothing) {
    write_text_atomically(folder_ / "empty", "");
    EXPECT_TRUE(MappedFile(folder_ / "empty").bytes().empty());
}

TEST_F(Files, AMissingFileOrAFolderIsNamed) {
    EXPECT_NE(message_of([&] { MappedFile map(folder_ / "absent"); }).find("absent: cannot open"), std::string::npos);
    EXPECT_NE(message_of([&] { MappedFile map(folder_); }).find("not a regular file"), std::string::npos);
}

TEST_F(Files, AFileAppearsOnlyWithCommit) {
    {
        AtomicFile file(folder_ / "model");
        file.write("half");
        EXPECT_FALSE(fs::exists(folder_ / "model"));
    }
    EXPECT_TRUE(fs::is_empty(folder_)) << "given up: nothing may be left behind";
    AtomicFile file(folder_ / "model");
    file.write("whole");
    file.commit();
    EXPECT_EQ(read_text(folder_ / "model"), "whole");
    EXPECT_FALSE(fs::exists(folder_ / "model.partial"));
}

TEST_F(Files, AJobGoesOnBehindWhatItKept) {
    {
        AtomicFile file(folder_ / "model", "job 1");
        file.write("first");
        file.keep();
        file.write("lost");
    }
    EXPECT_FALSE(fs::exists(folder_ / "model"));
    AtomicFile file(folder_ / "model", "job 1");
    EXPECT_EQ(file.size(), 5U);
    file.write(" second");
    file.commit();
    EXPECT_EQ(read_text(folder_ / "model"), "first second");
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1) << "neither a part nor a journal is left";
}

TEST_F(Files, AnotherJobAndAFileWithoutOneBeginAnew) {
    const auto keep_first = [this] {
        AtomicFile file(folder_ / "model", "job 1");
        file.write("first");
        file.keep();
    };
    keep_first();
    {
        AtomicFile file(folder_ / "model", "job 2");
        EXPECT_EQ(file.size(), 0U);
        file.write("something else");
    }
    EXPECT_TRUE(fs::is_empty(folder_)) << "what job 1 had kept is overwritten, so nothing may say that it is there";
    keep_first();
    {
        AtomicFile file(folder_ / "model");
        file.write("x");
    }
    EXPECT_TRUE(fs::is_empty(folder_));
    keep_first();
    fs::resize_file(folder_ / "model.partial", 3);  // shorter than the journal says
    EXPECT_EQ(AtomicFile(folder_ / "model", "job 1").size(), 0U);
    keep_first();
    write_text_atomically(folder_ / "model.partial.job", "no number");
    EXPECT_EQ(AtomicFile(folder_ / "model", "job 1").size(), 0U);
}

TEST_F(Files, TheOldFileStaysUntilTheNewOneIsComplete) {
    write_text_atomically(folder_ / "model", "old");
    AtomicFile file(folder_ / "model");
    file.write("new");
    EXPECT_EQ(read_text(folder_ / "model"), "old");
    file.commit();
    EXPECT_EQ(read_text(folder_ / "model"), "new");
}

TEST_F(Files, SmallAndLargeWritesKeepTheirOrder) {
    std::string expected;
    AtomicFile file(folder_ / "mixed");
    for (int i = 0; i < 40; ++i) {
        const std::string piece(static_cast<size_t>(i % 4 == 0 ? 1'500'000 : 30'001), static_cast<char>('a' + i % 26));
        file.write(piece);
        expected += piece;
    }
    EXPECT_EQ(file.size(), expected.size());
    file.commit();
    EXPECT_EQ(read_text(folder_ / "mixed"), expected);
}

// A child process with a limit on file sizes stands for the full disk: write fails half way, with another errno.
TEST_F(Files, AFailedWriteLeavesTheOldFileAndNoPartialOne) {
    write_text_atomically(folder_ / "model", "old");
    const pid_t child = ::fork();
    if (child == 0) {
        std::signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{3'000'000, 3'000'000};
        ::setrlimit(RLIMIT_FSIZE, &limit);
        try {
            AtomicFile file(folder_ / "model");
            for (int i = 0; i < 10; ++i) file.write(std::string(1'000'000, 'x'));
            file.commit();
        } catch (const Error&) {
            ::_exit(7);
        }
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(WEXITSTATUS(status), 7) << "the failed write must throw";
    EXPECT_EQ(read_text(folder_ / "model"), "old");
    EXPECT_FALSE(fs::exists(folder_ / "model.partial"));
}

TEST_F(Files, AFullDiskIsCalledByItsName) {
    fs::create_symlink("/dev/full", folder_ / "model.partial");
    const std::string message = message_of([&] {
        AtomicFile file(folder_ / "model");
        file.write("anything");
        file.commit();
    });
    EXPECT_NE(message.find("the disk is full"), std::string::npos) << message;
    EXPECT_FALSE(fs::exists(folder_ / "model"));
}

TEST_F(Files, AKilledWriterLeavesTheOldOrTheNewFileNeverAMixture) {
    const std::string a(700'000, 'a'), b(900'000, 'b');
    write_text_atomically(folder_ / "state", a);
    for (int round = 0; round < 20; ++round) {
        const pid_t child = ::fork();
        if (child == 0) {
            for (;;) {
                write_text_atomically(folder_ / "state", a);
                write_text_atomically(folder_ / "state", b);
            }
        }
        std::this_thread::sleep_for(std::chrono::microseconds(500 + 700 * round));
        ::kill(child, SIGKILL);
        ::waitpid(child, nullptr, 0);
        const std::string text = read_text(folder_ / "state");
        ASSERT_TRUE(text == a || text == b) << "round " << round << ": " << text.size() << " bytes";
    }
}

TEST_F(Files, AFolderThatDoesNotExistIsNamed) {
    EXPECT_NE(message_of([&] { AtomicFile file(folder_ / "no" / "model"); }).find("cannot create"), std::string::npos);
}

}  // namespace
}  // namespace fathom
