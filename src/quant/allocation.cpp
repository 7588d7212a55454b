#include "quant/allocation.h"

#include <algorithm>

#include "base/error.h"

namespace fathom {
namespace {

// What going from one choice to a larger one saves per byte.
double rate(const StorageChoice& from, const StorageChoice& to) {
    return (from.cost - to.cost) / static_cast<double>(to.bytes - from.bytes);
}

size_t smallest(const std::vector<StorageChoice>& choices) {
    check(!choices.empty(), "allocate_bytes: a part without choices");
    return static_cast<size_t>(std::ranges::min_element(choices,
                                                        [](const StorageChoice& a, const StorageChoice& b) {
                                                            return a.bytes != b.bytes ? a.bytes < b.bytes : a.cost < b.cost;
                                                        }) -
                               choices.begin());
}

struct Step {
    size_t part = 0, choice = 0;
    double rate = 0;
};

}  // namespace

std::vector<size_t> allocate_bytes(std::span<const std::vector<StorageChoice>> parts, int64_t budget) {
    std::vector<size_t> chosen;
    int64_t left = budget;
    for (const auto& choices : parts) {
        chosen.push_back(smallest(choices));
        left -= choices[chosen.back()].bytes;
    }
    if (left < 0) return {};
    while (true) {
        // The best step that fits. From a vertex of the hull the step of the highest rate leads to the hull's next vertex.
        Step best;
        for (size_t part = 0; part < parts.size(); ++part) {
            const StorageChoice& now = parts[part][chosen[part]];
            for (size_t choice = 0; choice < parts[part].size(); ++choice) {
                const StorageChoice& then = parts[part][choice];
                if (then.bytes <= now.bytes || then.bytes - now.bytes > left || then.cost >= now.cost) continue;
                if (rate(now, then) > best.rate) best = {part, choice, rate(now, then)};
            }
        }
        if (best.rate <= 0) return chosen;
        left -= parts[best.part][best.choice].bytes - parts[best.part][chosen[best.part]].bytes;
        chosen[best.part] = best.choice;
    }
}

}  // namespace fathom
