#include "quant/gptq.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/error.h"

namespace fathom {
namespace {

constexpr int kMostDampings = 8;

// m upper triangular with m m^T = gram + ridge I in the order of columns: Cholesky from the last row back. False where that is
// not positive definite.
bool reverse_cholesky(std::vector<double>& m, const float* gram, const std::vector<int64_t>& order, double ridge,
                      ThreadPool& pool) {
    const auto n = static_cast<int64_t>(order.size());
    const auto gram_at = [&](int64_t i, int64_t j) {
        return static_cast<double>(gram[order[static_cast<size_t>(i)] * n + order[static_cast<size_t>(j)]]);
    };
    const auto row = [&m, n](int64_t i) { return m.data() + i * n; };
    for (int64_t j = n - 1; j >= 0; --j) {
        double pivot = gram_at(j, j) + ridge;
        for (int64_t k = j + 1; k < n; ++k) pivot -= row(j)[k] * row(j)[k];
        if (!(pivot > 0)) return false;
        row(j)[j] = std::sqrt(pivot);
        pool.parallel_for(j, std::max<int64_t>(1, 65536 / (n - j)), [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) {
                double sum = gram_at(i, j);
                for (int64_t k = j + 1; k < n; ++k) sum -= row(i)[k] * row(j)[k];
                row(i)[j] = sum / row(j)[j];
            }
        });
    }
    return true;
}

}  // namespace

GptqPlan gptq_plan(const float* gram, int64_t n, double damp, ThreadPool& pool) {
    GptqPlan plan{std::vector<int64_t>(static_cast<size_t>(n)), std::vector<float>(static_cast<size_t>(n * n))};
    std::iota(plan.order.begin(), plan.order.end(), int64_t{0});
    std::ranges::stable_sort(plan.order, std::greater{}, [gram, n](int64_t k) { return gram[k * n + k]; });
    double mean = 0;
    for (int64_t i = 0; i < n; ++i) mean += static_cast<double>(gram[i * n + i]) / static_cast<double>(n);
    if (!(mean > 0)) mean = 1;  // inputs that were never active: any factor will do
    std::vector<double> m(static_cast<size_t>(n * n));
    int tries = 0;
    for (double ridge = damp * mean; !reverse_cholesky(m, gram, plan.order, ridge, pool); ridge *= 10)
        check(++tries < kMostDampings, "gptq_plan: second moments that no damping makes positive definite");
    // u = m^-1, row by row from the right: u m = I. Rows are independent.
    std::vector<float>& u = plan.factor;
    pool.parallel_for(n, 1, [&](int64_t begin, int64_t end, int) {
        std::vector<double> rest(static_cast<size_t>(n));
        for (int64_t i = begin; i < end; ++i) {
            std::ranges::fill(rest, 0.0);
            rest[static_cast<size_t>(i)] = 1;
            for (int64_t k = i; k < n; ++k) {
                const double value = rest[static_cast<size_t>(k)] / m[static_cast<size_t>(k * n + k)];
                u[static_cast<size_t>(i * n + k)] = static_cast<float>(value);
                const double* row = m.data() + k * n;
                for (int64_t j = k + 1; j < n; ++j) rest[static_cast<size_t>(j)] -= value * row[j];
            }
        }
    });
    return plan;
}

void gptq_encode(const Weight& to, int64_t row, std::span<float> x, const GptqPlan& plan, const GroupCost& cost) {
    const auto columns = static_cast<int64_t>(x.size()), groups = to.scales.dim(1), size = columns / groups;
    std::vector<GroupScale> scales;
    for (int64_t g = 0; g < groups; ++g) {
        scales.push_back(fit_group(to, x.data() + g * size, size, cost.of_group(g * size)));
        put_scale(to, row, g, scales.back());
    }
    std::vector<float> left(x.size());  // in the order of the plan, so that what follows a column lies behind it
    for (size_t i = 0; i < left.size(); ++i) left[i] = x[static_cast<size_t>(plan.order[i])];
    for (int64_t i = 0; i < columns; ++i) {
        const int64_t k = plan.order[static_cast<size_t>(i)];
        const GroupScale& scale = scales[static_cast<size_t>(k / size)];
        const float* u = plan.factor.data() + i * columns;
        const int code = scale.code_of(left[static_cast<size_t>(i)]);
        put_code(to, row, k, code);
        const float error = (left[static_cast<size_t>(i)] - scale.number(code)) / u[i];
        for (int64_t j = i + 1; j < columns; ++j) left[static_cast<size_t>(j)] -= error * u[j];
        x[static_cast<size_t>(k)] = left[static_cast<size_t>(i)];
    }
}

}  // namespace fathom
