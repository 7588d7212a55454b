// Where gradients of parameters are added up. The trainer does not clear them between steps: it marks them as zero, and the
// first product that has a matrix's gradient overwrites what lies there.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "nn/context.h"
#include "nn/param.h"

namespace fathom {

// The gradient as memory that can be added to.
[[nodiscard]] inline const Tensor& summed_gradient(Ops& ops, const Param& param) {
    if (std::exchange(param.grad_is_zero, false)) ops.fill(param.grad, 0);
    return param.grad;
}

// The gradient of w += dy^T x.
inline void add_gradient(Context& cx, const Param& w, const Tensor& dy, const Tensor& x) {
    if (std::exchange(w.grad_is_zero, false))
        cx.ops.first_matmul_wgrad(w.grad, dy, x);
    else
        cx.ops.matmul_wgrad(w.grad, dy, x);
}

// Whether all were marked; if only some, these are cleared. None is marked afterwards.
[[nodiscard]] inline bool take_zeros(Ops& ops, const std::vector<const Param*>& params) {
    const bool all = std::ranges::all_of(params, [](const Param* param) { return param->grad_is_zero; });
    for (const Param* param : params) {
        if (all)
            param->grad_is_zero = false;
        else
            (void)summed_gradient(ops, *param);
    }
    return all;
}

}  // namespace fathom
