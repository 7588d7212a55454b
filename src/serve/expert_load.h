// How often each expert was chosen lately, in the batches that were looked at: what the dashboard draws.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "nn/batch.h"

namespace fathom {

class ExpertLoad {
public:
    explicit ExpertLoad(Ops& ops, int64_t experts) : ops_(ops), experts_(experts) {}

    // For EngineOptions::on_routing: on the engine's thread.
    void operator()(std::span<const Routing> routing);
    // Tokens per expert of each MoE layer, older batches counting less. From any thread.
    [[nodiscard]] std::vector<std::vector<double>> layers() const;

private:
    Ops& ops_;
    int64_t experts_;
    mutable std::mutex mutex_;
    std::vector<std::vector<double>> layers_;
};

}  // namespace fathom
