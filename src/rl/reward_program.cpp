// A program on a leash: own process group, empty working folder, limits on time, memory, files and output.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/landlock.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <system_error>

#include "base/error.h"
#include "rl/reward.h"

namespace fathom {
namespace {

constexpr size_t kMaxLine = 4096;               // bytes of output per answer
constexpr rlim_t kMaxFile = rlim_t{64} << 20;   // bytes of a file it may write
constexpr rlim_t kMaxMemory = rlim_t{4} << 30;  // of address space
using Clock = std::chrono::steady_clock;

struct Pipe {
    int read = -1, write = -1;
    Pipe() {
        std::array<int, 2> ends{};
        if (::pipe2(ends.data(), O_CLOEXEC) != 0)
            throw Error(ErrorKind::kIo, fmt::format("cannot make a pipe: {}", std::strerror(errno)));
        read = ends[0], write = ends[1];
    }
    ~Pipe() { close_read(), close_write(); }
    Pipe(const Pipe&) = delete;
    Pipe& operator=(const Pipe&) = delete;
    void close_read() { read = read >= 0 ? (::close(read), -1) : -1; }
    void close_write() { write = write >= 0 ? (::close(write), -1) : -1; }
};

// A folder of its own that goes with it.
class TemporaryFolder {
public:
    explicit TemporaryFolder(const std::filesystem::path& parent) {
        std::filesystem::create_directories(parent);
        std::string name = (parent / "reward-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr)
            throw Error(ErrorKind::kIo,
                        fmt::format("{}: cannot make a folder there: {}", parent.string(), std::strerror(errno)));
        path_ = name;
    }
    ~TemporaryFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }

private:
    std::filesystem::path path_;
};

void limit(int what, rlim_t most) {
    const rlimit bounds{most, most};
    (void)::setrlimit(static_cast<__rlimit_resource_t>(what), &bounds);
}

// Gives up the right to change files but below `folder` and in /dev/null. A kernel that does not know Landlock (before 5.13, or
// switched off) leaves it.
void give_up_writing(const char* folder) {
    constexpr uint64_t kTruncate = uint64_t{1} << 14;  // LANDLOCK_ACCESS_FS_TRUNCATE, which older headers lack
    const auto version = ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
    landlock_ruleset_attr rules{};
    rules.handled_access_fs = LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE |
                              LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |
                              LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_BLOCK |
                              LANDLOCK_ACCESS_FS_MAKE_SYM | (version >= 3 ? kTruncate : 0);
    const auto ruleset = static_cast<int>(::syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0));
    if (ruleset < 0) return;
    const auto allow = [&](const char* path, uint64_t access) {
        landlock_path_beneath_attr rule{};
        rule.allowed_access = access;
        rule.parent_fd = ::open(path, O_PATH | O_CLOEXEC);
        (void)::syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
    };
    allow(folder, rules.handled_access_fs);
    allow("/dev/null", LANDLOCK_ACCESS_FS_WRITE_FILE);
    (void)::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    (void)::syscall(SYS_landlock_restrict_self, ruleset, 0);
}

// In the child: only calls that are safe after fork.
[[noreturn]] void become(char* const* arguments, const char* folder, const Pipe& in, const Pipe& out, rlim_t seconds,
                         ProgramWrites writes) {
    (void)::setpgid(0, 0);
    (void)::unshare(CLONE_NEWUSER | CLONE_NEWNET);  // no network; refused in some containers, then the other limits must do
    (void)::dup2(in.read, STDIN_FILENO);
    (void)::dup2(out.write, STDOUT_FILENO);
    const int nothing = ::open("/dev/null", O_WRONLY);
    (void)::dup2(nothing, STDERR_FILENO);
    limit(RLIMIT_CPU, seconds);
    limit(RLIMIT_FSIZE, kMaxFile);
    limit(RLIMIT_AS, kMaxMemory);
    limit(RLIMIT_CORE, 0);
    if (::chdir(folder) != 0) ::_exit(127);
    if (writes == ProgramWrites::kOwnFolder) give_up_writing(folder);
    std::signal(SIGPIPE, SIG_DFL);
    ::execvp(arguments[0], arguments);
    ::_exit(127);
}

// Feeds `input` and collects output until the program closes it, the limit is reached or time is up. True: it finished by
// itself.
bool exchange(Pipe& in, Pipe& out, std::string_view input, std::string& output, size_t most, Clock::time_point until) {
    (void)::fcntl(in.write, F_SETFL, O_NONBLOCK);
    std::array<char, 65536> block{};
    while (true) {
        if (input.empty()) in.close_write();
        std::array<pollfd, 2> wait{{{out.read, POLLIN, 0}, {in.write, POLLOUT, 0}}};
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
        if (left <= 0) return false;
        const int ready = ::poll(wait.data(), in.write >= 0 ? 2 : 1, static_cast<int>(left));
        if (ready == 0 || (ready < 0 && errno != EINTR)) return false;
        if (in.write >= 0 && wait[1].revents != 0) {
            const ssize_t sent = ::write(in.write, input.data(), input.size());
            if (sent > 0) input.remove_prefix(static_cast<size_t>(sent));
            if (sent < 0 && errno != EAGAIN && errno != EINTR) input = {};  // it no longer reads
        }
        if (wait[0].revents == 0) continue;
        const ssize_t got = ::read(out.read, block.data(), block.size());
        if (got == 0) return true;
        if (got > 0) output.append(block.data(), static_cast<size_t>(got));
        if (output.size() > most) return false;
    }
}

// Waits for the child until time is up, then ends it. False: it had to be ended.
bool await(pid_t child, int& status, Clock::time_point until) {
    while (true) {
        const pid_t ended = ::waitpid(child, &status, WNOHANG);
        if (ended == child) return true;
        if (Clock::now() >= until) break;
        (void)::poll(nullptr, 0, 1);
    }
    (void)::kill(-child, SIGKILL);
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return false;
}

std::string how_it_ended(int status) {
    if (WIFSIGNALED(status)) return fmt::format("was killed by signal {}", WTERMSIG(status));
    if (WEXITSTATUS(status) == 127) return "could not be started";
    return WEXITSTATUS(status) != 0 ? fmt::format("ended with exit code {}", WEXITSTATUS(status)) : "";
}

}  // namespace

ProgramResult run_line_program(std::span<const std::string> command, std::span<const std::string> input,
                               const std::filesystem::path& folder, std::chrono::milliseconds timeout, ProgramWrites writes) {
    check(!command.empty(), "run_line_program: needs a command");
    std::vector<std::string> words(command.begin(), command.end());
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    std::string text, output;
    for (const std::string& line : input) text += line + "\n";
    const TemporaryFolder work(folder);
    Pipe in, out;
    const auto old_handler = std::signal(SIGPIPE, SIG_IGN);  // a program that stops reading is no reason to die
    const pid_t child = ::fork();
    if (child < 0) throw Error(ErrorKind::kIo, fmt::format("cannot start a process: {}", std::strerror(errno)));
    if (child == 0) {
        become(arguments.data(), work.path().c_str(), in, out, static_cast<rlim_t>(timeout.count() / 1000 + 1), writes);
    }
    in.close_read();
    out.close_write();
    const Clock::time_point until = Clock::now() + timeout;
    const bool said_all = exchange(in, out, text, output, input.size() * kMaxLine, until);
    int status = 0;
    const bool finished = await(child, status, said_all ? until : Clock::now()) && said_all;
    (void)::kill(-child, SIGKILL);  // what it left behind
    std::signal(SIGPIPE, old_handler);
    ProgramResult result;
    for (size_t begin = 0, end; (end = output.find('\n', begin)) != output.npos; begin = end + 1)
        result.lines.push_back(output.substr(begin, end - begin));
    const std::string ended = how_it_ended(status);
    if (output.size() > input.size() * kMaxLine) result.lines.clear();
    if (!finished) {
        result.problem = output.size() > input.size() * kMaxLine
                             ? "wrote too much and was stopped"
                             : fmt::format("gave no answer within {} ms and was stopped", timeout.count());
    } else if (!ended.empty()) {
        result.problem = ended;
    } else if (result.lines.size() != input.size()) {
        result.problem = fmt::format("wrote {} lines for {} answers", result.lines.size(), input.size());
        if (result.lines.size() > input.size()) result.lines.clear();  // which line belongs to which answer?
    }
    return result;
}

}  // namespace fathom
