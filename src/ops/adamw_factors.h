// AdamW's step as kernels compute it.
#pragma once

namespace fathom {

struct AdamWStep;

// What adamw needs of AdamWStep, in f32:
//   m = beta1 m + one_minus_beta1 g;  v = beta2 v + one_minus_beta2 g^2, with g = grad_scale grad;
//   p = decay p - step_size m / (sqrt(v second_unbias) + epsilon)
struct AdamWFactors {
    float beta1, one_minus_beta1, beta2, one_minus_beta2;
    float grad_scale;
    float decay;          // 1 - learning_rate weight_decay
    float step_size;      // learning_rate / (1 - beta1^t)
    float second_unbias;  // 1 / (1 - beta2^t)
    float epsilon;
};
// LogicError where steps are not counted from 1.
[[nodiscard]] AdamWFactors adamw_factors(const AdamWStep& step);

}  // namespace fathom
