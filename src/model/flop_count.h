// FLOPs of one token from the shapes alone, as MFU counts them: two per multiply-add of matrix products and of attention;
// nothing for element-wise work, the embedding look-up and what is recomputed.
#pragma once

#include "model/config.h"
#include "nn/batch.h"

namespace fathom {

// Of one token in a forward.
struct FlopCount {
    double layers = 0;     // matrices of the main model's layers: all dense ones, K routed experts, the router
    double attention = 0;  // scores and values of the main model
    double head = 0;
    double mtp = 0;  // all modules with their attention and their use of the head

    // Of the main model.
    [[nodiscard]] double forward() const { return layers + attention + head; }
    // Forward and backward, twice as much, MTP modules included.
    [[nodiscard]] double training() const { return 3 * (forward() + mtp); }
};

// `keys`: what the average token attends to, itself included; see mean_keys. The matrices cost the same in both forms.
[[nodiscard]] FlopCount count_flops(const ModelConfig& config, double keys, AttentionForm form = AttentionForm::kExpanded);

// Of `tokens` consecutive tokens behind `past` others. The usual formula rounds (S + 1) / 2 to S / 2.
[[nodiscard]] inline double mean_keys(int64_t tokens, int64_t past = 0) {
    return static_cast<double>(past) + static_cast<double>(tokens + 1) / 2;
}

}  // namespace fathom
