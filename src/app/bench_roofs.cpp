#include "app/bench_roofs.h"

#include <algorithm>
#include <chrono>

#include "cpu/roofline.h"

namespace fathom {
namespace {

constexpr int64_t kSize = 2048;  // of the square product
constexpr int kProducts = 3;     // per round, the best counts, as for the other roofs

}  // namespace

Roofs::Roofs(ThreadPool& threads) : threads_(threads), onednn_(threads.size()) {
    if (!onednn_.available()) return;
    matrices_ = Buffer::host(3 * kSize * kSize * static_cast<int64_t>(sizeof(float)));
    std::fill_n(static_cast<float*>(matrices_.data()), 3 * kSize * kSize, 0.5f);
}

void Roofs::measure() {
    const Roofline roofline = measure_roofline(threads_);
    read_.push_back(roofline.read_bytes_per_second);
    fma_.push_back(roofline.f32_flops_per_second);
    if (!onednn_.available()) return;
    auto* const a = static_cast<float*>(matrices_.data());
    double best = 0;
    for (int i = 0; i < kProducts; ++i) {
        const auto start = std::chrono::steady_clock::now();
        onednn_.product(a + 2 * kSize * kSize, a, a + kSize * kSize, kSize, kSize, kSize);
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = std::max(best, 2.0 * kSize * kSize * kSize / seconds);
    }
    product_.push_back(best);
}

double Roofs::read_bytes() const { return median(read_); }
double Roofs::fma_flops() const { return median(fma_); }
std::optional<double> Roofs::onednn_flops() const { return product_.empty() ? std::nullopt : std::optional(median(product_)); }

double median(std::vector<double> values) {
    check(!values.empty(), "median: no values");
    std::ranges::sort(values);
    const size_t middle = values.size() / 2;
    return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace fathom
