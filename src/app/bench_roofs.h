// The roofs that fathom bench judges by, measured between its repetitions: whatever disturbs the machine disturbs both.
#pragma once

#include <optional>
#include <vector>

#include "app/bench_onednn.h"
#include "base/threads.h"
#include "tensor/tensor.h"

namespace fathom {

class Roofs {
public:
    explicit Roofs(ThreadPool& threads);

    // One round, about two seconds.
    void measure();

    // Medians of all rounds, in units per second.
    [[nodiscard]] double read_bytes() const;
    [[nodiscard]] double fma_flops() const;                    // from registers
    [[nodiscard]] std::optional<double> onednn_flops() const;  // sgemm 2048^3

private:
    ThreadPool& threads_;
    OneDnn onednn_;
    Buffer matrices_;
    std::vector<double> read_, fma_, product_;
};

// Of an odd or even number of values, at least one.
[[nodiscard]] double median(std::vector<double> values);

}  // namespace fathom
