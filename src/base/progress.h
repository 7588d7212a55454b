// Progress of long work: a bar with rate and ETA on a terminal, one line every few seconds elsewhere, nothing when quiet.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace fathom {

enum class ProgressMode { kAuto, kQuiet };

class Progress {
public:
    // `unit` as in "tokens", "bytes", "steps"; total 0 = unknown. Prints to stderr, at most 10 times a second on a terminal.
    Progress(std::string label, int64_t total, std::string unit, ProgressMode mode = ProgressMode::kAuto);
    ~Progress();  // ends the line
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    void update(int64_t done, const std::string& note = "");  // note: shown at the end of the line, e.g. "loss 3.21"
    void finish(const std::string& note = "");

private:
    using Clock = std::chrono::steady_clock;
    std::string label_, unit_;
    int64_t total_, done_ = 0, shown_done_ = 0;
    bool enabled_, terminal_, finished_ = false;
    double rate_ = 0;  // exponentially weighted, units per second
    Clock::time_point start_, shown_;
    void show(const std::string& note, bool last);
};

// "1.23 k", "4.56 M": three digits and a decimal prefix.
[[nodiscard]] std::string human_count(double value);
// "12.3 MiB".
[[nodiscard]] std::string human_bytes(double bytes);
// "1:02:03" or "04:05".
[[nodiscard]] std::string human_duration(double seconds);

}  // namespace fathom
