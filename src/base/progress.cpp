#include "base/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <utility>

namespace fathom {
namespace {

constexpr double kTerminalPeriod = 0.1, kPipePeriod = 5.0;  // seconds between two lines
constexpr int kBarWidth = 24;

bool terminal_can_draw() {
    const char* term = std::getenv("TERM");
    return ::isatty(STDERR_FILENO) != 0 && (term == nullptr || std::string_view(term) != "dumb");
}

// What fits the terminal's width: a line that wraps cannot be drawn over. Every code point that is shown takes one column.
std::string clipped(const std::string& line) {
    winsize size{};
    if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return line;
    int columns = size.ws_col - 1;
    for (size_t i = 0; i < line.size(); ++i) {
        const bool continues = (static_cast<unsigned char>(line[i]) & 0xC0) == 0x80;
        if (!continues && columns-- == 0) return line.substr(0, i);
    }
    return line;
}

std::string bar(double fraction) {
    const int filled = static_cast<int>(std::lround(fraction * kBarWidth));
    std::string text;
    for (int i = 0; i < kBarWidth; ++i) text += i < filled ? "█" : "·";
    return text;
}

// "4.56 M tokens", but "4.56 MB".
std::string with_unit(double value, const std::string& unit) {
    const bool joined = unit == "B" && std::abs(value) >= 1000;
    return human_count(value) + (joined ? "" : " ") + unit;
}

}  // namespace

std::string human_count(double value) {
    constexpr const char* kPrefix[] = {"", " k", " M", " G", " T"};
    size_t index = 0;
    while (std::abs(value) >= 1000 && index + 1 < std::size(kPrefix)) value /= 1000, ++index;
    return fmt::format("{:.4g}{}", std::abs(value) < 100 ? std::round(value * 100) / 100 : std::round(value * 10) / 10,
                       kPrefix[index]);
}

std::string human_bytes(double bytes) {
    constexpr const char* kUnit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t index = 0;
    while (bytes >= 1024 && index + 1 < std::size(kUnit)) bytes /= 1024, ++index;
    return index == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.2f} {}", bytes, kUnit[index]);
}

std::string human_duration(double seconds) {
    const auto total = static_cast<int64_t>(std::max(0.0, std::round(seconds)));
    if (total < 3600) return fmt::format("{:02}:{:02}", total / 60, total % 60);
    return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
}

Progress::Progress(std::string label, int64_t total, std::string unit, ProgressMode mode)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      enabled_(mode != ProgressMode::kQuiet),
      terminal_(terminal_can_draw()),
      start_(Clock::now()),
      shown_(start_) {}

Progress::~Progress() {
    if (enabled_ && terminal_ && !finished_ && shown_done_ > 0) fmt::print(stderr, "\n");
}

void Progress::update(int64_t done, const std::string& note) {
    done_ = done;
    if (!enabled_) return;
    const double elapsed = std::chrono::duration<double>(Clock::now() - shown_).count();
    if (elapsed >= (terminal_ ? kTerminalPeriod : kPipePeriod)) show(note, false);
}

void Progress::finish(const std::string& note) {
    if (std::exchange(finished_, true) || !enabled_) return;
    show(note, true);
}

void Progress::show(const std::string& note, bool last) {
    const auto now = Clock::now();
    const double period = std::chrono::duration<double>(now - shown_).count(),
                 elapsed = std::chrono::duration<double>(now - start_).count();
    const double current = period > 0 ? static_cast<double>(done_ - shown_done_) / period : 0;
    rate_ = rate_ == 0 ? current : 0.8 * rate_ + 0.2 * current;
    if (last) rate_ = elapsed > 0 ? static_cast<double>(done_) / elapsed : 0;
    shown_ = now;
    shown_done_ = done_;
    std::string line = label_;
    if (total_ > 0) {
        const double fraction = std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0);
        if (terminal_) line += " " + bar(fraction);
        line += fmt::format(" {:5.1f} %", 100 * fraction);
    }
    line += fmt::format("  {}  {}/s", with_unit(static_cast<double>(done_), unit_), with_unit(rate_, unit_));
    if (last) {
        line += fmt::format("  took {}", human_duration(elapsed));
    } else if (total_ > 0 && rate_ > 0) {
        line += fmt::format("  ETA {}", human_duration(static_cast<double>(total_ - done_) / rate_));
    }
    if (!note.empty()) line += "  " + note;
    if (terminal_) {
        fmt::print(stderr, "\r\x1b[K{}{}", clipped(line), last ? "\n" : "");
    } else {
        fmt::print(stderr, "{}\n", line);
    }
    std::fflush(stderr);
}

}  // namespace fathom
