// What a model will need, before anything is allocated: bytes by purpose, and a dry run of its forward and of a training step
// through the back end without data.
#pragma once

#include <cstdint>

#include "model/config.h"
#include "nn/cache_type.h"
#include "ops/plan_ops.h"

namespace fathom {

// Bytes of the parameters in three storage types.
struct WeightBytes {
    int64_t f32 = 0, bf16 = 0;
    int64_t fp8 = 0;  // as DeepSeek releases V3: e4m3 projections with block scales; embedding, head, routers, norms bf16
};

// What a training run holds from its first step to its last, in bytes.
struct TrainingState {
    int64_t weights = 0;
    int64_t masters = 0;  // f32 copies of bf16 parameters; 0 when the parameters are f32
    int64_t gradients = 0, moments = 0;

    [[nodiscard]] int64_t total() const { return weights + masters + gradients + moments; }
};

// One pass over a batch, as PlanOps saw it.
struct DryRun {
    int64_t tokens = 0;
    OpCost cost;
    int64_t saved_bytes = 0;    // largest memory from forward to backward
    int64_t scratch_bytes = 0;  // largest memory of temporaries, the head's logits included

    [[nodiscard]] int64_t activation_bytes() const { return saved_bytes + scratch_bytes; }
};

// The main model's weights; MTP modules are left out.
[[nodiscard]] WeightBytes plan_weights(const ModelConfig& config);
// MTP modules included. `dtype`, `moments`: kF32 or kBF16, of the parameters and of AdamW's two moments.
[[nodiscard]] TrainingState plan_training_state(const ModelConfig& config, DType dtype, DType moments = DType::kF32);
// Bytes that the main model's cache holds of one token.
[[nodiscard]] int64_t cache_bytes_per_token(const ModelConfig& config, const CacheType& type);

// The losses of `batch` whole sequences of `length` tokens, without MTP.
[[nodiscard]] DryRun dry_run_forward(const ModelConfig& config, int64_t batch, int64_t length, DType dtype);
// Forward, backward and AdamW with MTP. `recompute`: whole layers. Balance losses are not counted.
[[nodiscard]] DryRun dry_run_training(const ModelConfig& config, int64_t batch, int64_t length, DType dtype, bool recompute,
                                      DType moments = DType::kF32);

}  // namespace fathom
