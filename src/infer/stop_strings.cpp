#include "infer/stop_strings.h"

#include <algorithm>
#include <utility>

namespace fathom {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) { std::erase(stops_, ""); }

std::string StopStrings::push(std::string_view text) {
    if (found_) return {};
    held_ += text;
    size_t end = std::string::npos;
    for (const std::string& stop : stops_) {
        const size_t at = held_.find(stop);
        if (at >= end) continue;
        end = at;
        matched_ = stop;
    }
    found_ = end != std::string::npos;
    if (!found_) {
        end = held_.size();
        for (const std::string& stop : stops_) {
            for (size_t part = std::min(stop.size() - 1, held_.size()); part > 0; --part) {
                if (!std::string_view(held_).ends_with(std::string_view(stop).substr(0, part))) continue;
                end = std::min(end, held_.size() - part);
                break;
            }
        }
    }
    std::string passed = held_.substr(0, end);
    held_.erase(0, end);
    return passed;
}

std::string StopStrings::finish() { return found_ ? std::string() : std::exchange(held_, {}); }

}  // namespace fathom
