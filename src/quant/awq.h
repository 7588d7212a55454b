// AWQ (Lin et al. 2023): columns that meet large inputs are scaled up before rounding, and their inputs down by as much.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/threads.h"
#include "quant/integer_groups.h"

namespace fathom {

// Matrices that see the same inputs, as rows: `row(i, x)` writes row i [columns].
struct AwqRows {
    int64_t count = 0;
    int64_t columns = 0;
    std::function<void(int64_t i, float* x)> row;
};

// The scale of every column [columns]: mean |input| to the power alpha, divided by the geometric mean of its extremes, alpha
// the best of 0, 0.05 .. 0.95 by sum over rows of e gram e^T, e = Q(w s) / s - w. At most `most_rows` rows, spread evenly, are
// tried. gram [columns, columns]: X^T X of the inputs.
[[nodiscard]] std::vector<float> awq_scales(const AwqRows& rows, const std::vector<float>& mean_input, const float* gram,
                                            const GroupFormat& format, int64_t most_rows, ThreadPool& pool);

}  // namespace fathom
