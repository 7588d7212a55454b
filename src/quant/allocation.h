// Which type for which matrix, when all together may only be so large.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace fathom {

// A way to store one part of a model.
struct StorageChoice {
    int64_t bytes = 0;
    double cost = 0;  // of what it says wrongly; costs of parts are taken to add up
};

// For every part the index of its choice, so that the sum of bytes is at most `budget` and the sum of costs small: from the
// smallest choices upwards, always the step that saves most cost per byte, along each part's lower convex hull; then, once no
// such step fits, any that does. Nothing when even the smallest choices are more than the budget.
[[nodiscard]] std::vector<size_t> allocate_bytes(std::span<const std::vector<StorageChoice>> parts, int64_t budget);

}  // namespace fathom
