// How a router turns logits into experts and weights: DeepSeekMoE 3, DeepSeek-V2 2.2.2, DeepSeek-V3 2.1.2.
#pragma once

#include <cstdint>

namespace fathom {

// How router logits become affinities.
enum class ScoringFunc : uint8_t { kSoftmax, kSigmoid };

// How the K experts are chosen from the affinities.
enum class TopkMethod : uint8_t {
    kGreedy,              // the K largest (V1, V2-Lite)
    kGroupLimitedGreedy,  // among the topk_group best groups, a group scoring its maximum (V2)
    kNoauxTc,             // the same with the correction bias added, a group scoring the sum of its two best (V3)
};

struct RouteRule {
    ScoringFunc scoring_func = ScoringFunc::kSoftmax;
    TopkMethod topk_method = TopkMethod::kGreedy;
    int64_t n_group = 1;
    int64_t topk_group = 1;
    bool norm_topk_prob = false;
    double routed_scaling_factor = 1.0;
};

}  // namespace fathom
