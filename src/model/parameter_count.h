// How many parameters a config stands for, from the shapes alone.
#pragma once

#include <cstdint>

#include "model/config.h"

namespace fathom {

// Numbers of the main model by component, summed over layers, and of its MTP modules. Correction biases count, FP8 scales do
// not.
struct ParameterCount {
    int64_t embedding = 0;
    int64_t head = 0;       // 0 when tied to the embedding
    int64_t attention = 0;  // projections, their biases and the two latent norms
    int64_t dense_mlp = 0;
    int64_t router = 0;  // gate and correction bias
    int64_t routed_experts = 0;
    int64_t shared_experts = 0;
    int64_t norms = 0;  // two per layer and the last one
    int64_t mtp = 0;    // all modules without the embedding and head that they share with the main model

    int64_t inactive_experts = 0;  // the part of routed_experts that one token does not use

    // Without MTP, as the papers count.
    [[nodiscard]] int64_t total() const {
        return embedding + head + attention + dense_mlp + router + routed_experts + shared_experts + norms;
    }
    // Used by one token, embedding and head included.
    [[nodiscard]] int64_t active() const { return total() - inactive_experts; }
};

// `config` must be valid (ModelConfig::validate).
[[nodiscard]] ParameterCount count_parameters(const ModelConfig& config);

}  // namespace fathom
