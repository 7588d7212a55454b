// Whether software asks for weights before they are met: by measurement, as the hardware's own prefetch differs between CPUs.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "cpu/quant_kernels.h"
#include "tensor/tensor.h"

namespace fathom {
namespace {

constexpr int64_t kBytes = int64_t{2} << 20, kLine = 64;
constexpr int64_t kSteps = 32, kPanels = kBytes / (kSteps * panel_traits(BlockType::kQ40).block_bytes());
constexpr int kRounds = 5;
constexpr double kWorth = 1.05;

void forget(const void* data) {
    for (int64_t at = 0; at < kBytes; at += kLine) _mm_clflush(static_cast<const std::byte*>(data) + at);
    _mm_mfence();
}

bool measure() {
    const Buffer panels = Buffer::host(kBytes);
    std::memset(panels.data(), 1, static_cast<size_t>(kBytes));
    int8_t q[kSteps * kPanelStep] = {};
    StepFactors factors[kSteps] = {};
    float y[kPanels * kPanelLanes];
    const PanelTile tile{.type = BlockType::kQ40,
                         .panels = static_cast<const uint8_t*>(panels.data()),
                         .panel_bytes = kSteps * panel_traits(BlockType::kQ40).block_bytes(),
                         .steps = kSteps,
                         .panel_count = kPanels,
                         .q = q,
                         .factors = factors,
                         .rows = 1,
                         .y = y,
                         .y_row = kPanels * kPanelLanes};
    double best[2] = {1e30, 1e30};
    for (int round = 0; round < kRounds; ++round)  // in turn, so that a disturbance meets both
        for (const bool ahead : {false, true}) {
            forget(panels.data());
            const auto start = std::chrono::steady_clock::now();
            quant_kernels_vnni_avx512(ahead).multiply(tile, nullptr);
            best[ahead] =
                std::min(best[ahead], std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        }
    return best[false] > kWorth * best[true];
}

}  // namespace

bool fetching_ahead_pays() {
    static const bool kPays = measure();
    return kPays;
}

}  // namespace fathom
