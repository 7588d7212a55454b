#include "base/interrupt.h"

#include <unistd.h>
#include <csignal>

#include "base/error.h"

namespace fathom {
namespace {

// A signal handler can reach nothing but a global: the one exception to "no globals".
volatile std::sig_atomic_t g_signals = 0, g_terminated = 0;

extern "C" void on_signal(int signal) {
    g_signals = g_signals + 1;
    if (signal == SIGTERM) g_terminated = 1;
    if (g_signals > 1) ::_exit(130);
}

}  // namespace

void install_interrupt_handler() {
    std::signal(SIGINT, on_signal);
    std::signal(SIGTERM, on_signal);
}

bool interrupted() { return g_signals > 0; }

bool take_interrupt() {
    if (g_signals == 0 || g_terminated != 0) return false;
    g_signals = 0;
    return true;
}

void throw_if_interrupted() {
    if (interrupted()) throw Error(ErrorKind::kInterrupted, "interrupted");
}

}  // namespace fathom
