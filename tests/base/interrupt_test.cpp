#include "base/interrupt.h"

#include <gtest/gtest.h>
#include <csignal>
#include <cstdlib>

#include "base/error.h"

namespace fathom {
namespace {

// The flag stays up for the life of a process, so every test has one of its own.
TEST(InterruptDeathTest, TheFirstSignalOnlyRaisesTheFlag) {
    for (const int signal : {SIGINT, SIGTERM}) {
        EXPECT_EXIT(
            {
                install_interrupt_handler();
                if (interrupted()) std::exit(1);
                throw_if_interrupted();
                std::raise(signal);
                if (!interrupted()) std::exit(2);
                try {
                    throw_if_interrupted();
                } catch (const Error& error) {
                    std::exit(error.kind() == ErrorKind::kInterrupted ? 42 : 3);
                }
            },
            testing::ExitedWithCode(42), "");
    }
}

TEST(InterruptDeathTest, TheSecondSignalLeavesAtOnce) {
    EXPECT_EXIT(
        {
            install_interrupt_handler();
            std::raise(SIGINT);
            std::raise(SIGINT);
        },
        testing::ExitedWithCode(130), "");
}

}  // namespace
}  // namespace fathom
