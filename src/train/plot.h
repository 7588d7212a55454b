// The figures of a run folder, drawn from its metrics.jsonl.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "train/metrics.h"

namespace fathom {

struct PlottedRun {
    std::string name;  // in legends
    std::vector<StepMetrics> metrics;
};

struct Figure {
    std::string file;  // "loss.svg"
    std::string svg;
};

// Loss, learning rate, gradient norm, tokens/s, balance, reward, entropy, KL, length of answers, and one expert load map per
// run; those without data are left out.
[[nodiscard]] std::vector<Figure> draw_figures(const std::vector<PlottedRun>& runs);

// Average with weights that fall off exponentially to both sides, about `window` values wide: does not lag behind a falling
// loss. Values that are not finite count for nothing and stay gaps.
[[nodiscard]] std::vector<double> smoothed(const std::vector<double>& values, double window);

}  // namespace fathom
