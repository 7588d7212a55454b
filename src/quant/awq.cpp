#include "quant/awq.h"

#include <algorithm>
#include <cmath>

#include "tensor/weight_row.h"

namespace fathom {
namespace {

constexpr int kPowers = 20;
constexpr float kSmallest = 1e-4f;  // of inputs and scales

std::vector<float> scales_of(const std::vector<float>& mean_input, float alpha) {
    std::vector<float> s;
    for (const float mean : mean_input) s.push_back(std::max(std::pow(std::max(mean, kSmallest), alpha), kSmallest));
    const auto [low, high] = std::ranges::minmax_element(s);
    const float middle = std::sqrt(*low * *high);
    for (float& value : s) value = std::max(value / middle, kSmallest);
    return s;
}

// e gram e^T of one row.
double loss_of(const Weight& to, const std::vector<float>& w, const std::vector<float>& s, const float* gram,
               std::vector<float>& e) {
    const size_t n = w.size();
    for (size_t k = 0; k < n; ++k) e[k] = w[k] * s[k];
    encode_groups(to, 0, e.data());
    decode_row(e.data(), to, 0);
    for (size_t k = 0; k < n; ++k) e[k] = e[k] / s[k] - w[k];
    double loss = 0;
    for (size_t i = 0; i < n; ++i) {
        float dot = 0;
        for (size_t k = 0; k < n; ++k) dot += gram[i * n + k] * e[k];
        loss += static_cast<double>(e[i] * dot);
    }
    return loss;
}

}  // namespace

std::vector<float> awq_scales(const AwqRows& rows, const std::vector<float>& mean_input, const float* gram,
                              const GroupFormat& format, int64_t most_rows, ThreadPool& pool) {
    const int64_t tried = std::min(rows.count, most_rows);
    std::vector<std::vector<float>> candidates;
    for (int i = 0; i < kPowers; ++i)
        candidates.push_back(scales_of(mean_input, static_cast<float>(i) / static_cast<float>(kPowers)));
    std::vector<double> losses(static_cast<size_t>(tried * kPowers));
    pool.parallel_for(tried, 1, [&](int64_t begin, int64_t end, int) {
        Arena arena("one row", Buffer::host, 1 << 16);
        const Weight to = allocate_groups(arena, 1, rows.columns, format);
        std::vector<float> w(static_cast<size_t>(rows.columns)), e(w.size());
        for (int64_t i = begin; i < end; ++i) {
            rows.row(i * rows.count / tried, w.data());
            for (int c = 0; c < kPowers; ++c)
                losses[static_cast<size_t>(i * kPowers + c)] = loss_of(to, w, candidates[static_cast<size_t>(c)], gram, e);
        }
    });
    std::array<double, kPowers> sums{};
    for (int64_t i = 0; i < tried; ++i)
        for (size_t c = 0; c < kPowers; ++c) sums[c] += losses[static_cast<size_t>(i) * kPowers + c];
    return candidates[static_cast<size_t>(std::ranges::min_element(sums) - sums.begin())];
}

}  // namespace fathom
