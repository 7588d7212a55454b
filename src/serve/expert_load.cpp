#include "serve/expert_load.h"

namespace fathom {

void ExpertLoad::operator()(std::span<const Routing> routing) {
    constexpr double kKept = 0.99;  // half of what is drawn comes from the last 70 batches looked at
    std::vector<std::vector<int32_t>> chosen;
    for (const Routing& layer : routing) {
        if (!layer.indices) continue;  // a dense layer
        auto& indices = chosen.emplace_back(static_cast<size_t>(layer.indices.size()));
        ops_.read_back(indices.data(), layer.indices);
    }
    const std::lock_guard lock(mutex_);
    layers_.resize(chosen.size(), std::vector<double>(static_cast<size_t>(experts_)));
    for (size_t i = 0; i < chosen.size(); ++i) {
        for (double& load : layers_[i]) load *= kKept;
        for (const int32_t expert : chosen[i]) layers_[i][static_cast<size_t>(expert)] += 1;
    }
}

std::vector<std::vector<double>> ExpertLoad::layers() const {
    const std::lock_guard lock(mutex_);
    return layers_;
}

}  // namespace fathom
