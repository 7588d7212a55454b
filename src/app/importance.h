// What calibration measures: how large the inputs of every matrix are.
#pragma once

#include <cstdint>
#include <span>

#include "app/device.h"
#include "checkpoint/gguf_save.h"

namespace fathom {

// Runs the model over `tokens` in windows of `context` and returns, for every matrix that saw some, the mean squares of its
// columns' activations. On the CPU, with the weights in host memory.
[[nodiscard]] Importance measure_importance(DeepSeek& model, ThreadPool& threads, std::span<const int32_t> tokens,
                                            int64_t context, ProgressMode progress);

}  // namespace fathom
