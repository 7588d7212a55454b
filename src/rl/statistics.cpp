#include "rl/statistics.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace fathom {

double mcnemar(int64_t gained, int64_t lost) {
    const int64_t n = gained + lost, few = std::min(gained, lost);
    double tail = 0;
    for (int64_t i = 0; i <= few; ++i) {
        const double choose = std::lgamma(static_cast<double>(n + 1)) - std::lgamma(static_cast<double>(i + 1)) -
                              std::lgamma(static_cast<double>(n - i + 1));
        tail += std::exp(choose - static_cast<double>(n) * std::log(2.0));
    }
    return std::min(1.0, 2 * tail);
}

double pass_at_k(int64_t n, int64_t c, int64_t k) {
    check(k >= 1 && n >= k && c >= 0 && c <= n, "pass_at_k: k of n answers, c right");
    double none = 1;
    for (int64_t i = n - c + 1; i <= n; ++i) none *= 1 - static_cast<double>(k) / static_cast<double>(i);
    return n - c < k ? 1 : 1 - none;
}

}  // namespace fathom
