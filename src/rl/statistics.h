// Whether a difference between two models on the same questions is more than luck.
#pragma once

#include <cstdint>

namespace fathom {

// McNemar's exact test: of the questions that only one of two models answers, `gained` went to the new one and `lost` to the
// old. Returns the two-sided probability of a split at least as uneven under a fair coin; 1 where they are none.
[[nodiscard]] double mcnemar(int64_t gained, int64_t lost);

// Unbiased estimate of the chance that k answers hold a right one, from n answers with c right ones (Chen et al. 2021):
// 1 - C(n - c, k) / C(n, k).
[[nodiscard]] double pass_at_k(int64_t n, int64_t c, int64_t k);

}  // namespace fathom
