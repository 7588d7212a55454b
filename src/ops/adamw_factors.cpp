#include "ops/adamw_factors.h"

#include <cmath>

#include "ops/ops.h"

namespace fathom {

AdamWFactors adamw_factors(const AdamWStep& step) {
    check(step.step >= 1, "adamw: step counts from 1");
    const auto t = static_cast<double>(step.step);
    return {.beta1 = static_cast<float>(step.beta1),
            .one_minus_beta1 = static_cast<float>(1 - step.beta1),
            .beta2 = static_cast<float>(step.beta2),
            .one_minus_beta2 = static_cast<float>(1 - step.beta2),
            .grad_scale = static_cast<float>(step.grad_scale),
            .decay = static_cast<float>(1 - step.learning_rate * step.weight_decay),
            .step_size = static_cast<float>(step.learning_rate / (1 - std::pow(step.beta1, t))),
            .second_unbias = static_cast<float>(1 / (1 - std::pow(step.beta2, t))),
            .epsilon = static_cast<float>(step.epsilon)};
}

}  // namespace fathom
