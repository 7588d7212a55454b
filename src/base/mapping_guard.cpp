#include "base/mapping_guard.h"

#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <mutex>

namespace fathom {
namespace {

// Written under the lock, `begin` last; read by the handler without one.
struct Guarded {
    std::atomic<uintptr_t> begin{0};
    std::atomic<size_t> size{0};
    std::array<char, 256> path{};  // its end, where it is longer
};

// A signal handler can reach nothing but globals.
constinit std::array<Guarded, 1024> g_guarded;
constinit std::mutex g_lock;
constinit struct sigaction g_former {};

void say(const char* text) {
    // Nothing is left to do where standard error is closed.
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text, std::strlen(text));
}

extern "C" void on_bus_error(int signal, siginfo_t* info, void* context) {
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    for (const Guarded& file : g_guarded) {
        const uintptr_t begin = file.begin.load(std::memory_order_acquire);
        if (begin == 0 || address < begin || address - begin >= file.size.load(std::memory_order_relaxed)) continue;
        say("fathom: error: ");
        say(file.path.data());
        say(": the file was cut short or its disk failed while it was in use; restore it and start again\n");
        ::_exit(1);
    }
    // Not ours: as if this handler had never been.
    if ((g_former.sa_flags & SA_SIGINFO) != 0 && g_former.sa_sigaction != nullptr)
        return g_former.sa_sigaction(signal, info, context);
    ::sigaction(SIGBUS, &g_former, nullptr);
}

void install_handler() {
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGBUS, &action, &g_former);
}

}  // namespace

void guard_mapping(const void* data, size_t size, const std::string& path) {
    static std::once_flag installed;
    std::call_once(installed, install_handler);
    const std::lock_guard lock(g_lock);
    const auto free = std::ranges::find_if(g_guarded, [](const Guarded& g) { return g.begin == 0; });
    if (free == g_guarded.end()) return;
    const size_t skipped = path.size() < free->path.size() ? 0 : path.size() - free->path.size() + 1;
    std::strncpy(free->path.data(), path.c_str() + skipped, free->path.size() - 1);
    free->size.store(size, std::memory_order_relaxed);
    free->begin.store(reinterpret_cast<uintptr_t>(data), std::memory_order_release);
}

void release_mapping(const void* data) {
    const std::lock_guard lock(g_lock);
    const auto address = reinterpret_cast<uintptr_t>(data);
    const auto found = std::ranges::find_if(g_guarded, [address](const Guarded& g) { return g.begin == address; });
    if (found != g_guarded.end()) found->begin.store(0, std::memory_order_release);
}

}  // namespace fathom
