// Errors of two kinds: a broken invariant (check) and a broken world (Error).
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fathom {

enum class ErrorKind {
    kUsage,        // bad flag or argument: exit code 2
    kInput,        // a file or request whose content is wrong: exit code 1
    kIo,           // open, read, write, disk full: exit code 1
    kMemory,       // a plan that does not fit: exit code 1
    kDevice,       // missing or unusable device: exit code 2
    kInterrupted,  // Ctrl-C or SIGTERM: exit code 130
};

// A world error: what happened, where, and what the user can do. Caught only in main, the request handler and the worker loop.
class Error : public std::exception {
public:
    Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}

    [[nodiscard]] ErrorKind kind() const { return kind_; }
    [[nodiscard]] const char* what() const noexcept override { return message_.c_str(); }

    // Puts "where: " in front while unwinding; call as `throw e.within(path)`.
    [[nodiscard]] Error within(std::string_view where) const { return {kind_, std::string(where) + ": " + message_}; }

private:
    ErrorKind kind_;
    std::string message_;
};

// Thrown by check(): a bug in the calling code, never the user's fault.
class LogicError : public std::logic_error {
    using std::logic_error::logic_error;
};

[[noreturn]] void fail_check(std::string_view message, const std::source_location& where);

// Programmer error when `condition` is false.
inline void check(bool condition, std::string_view message,
                  const std::source_location& where = std::source_location::current()) {
    if (!condition) [[unlikely]]
        fail_check(message, where);
}

}  // namespace fathom
