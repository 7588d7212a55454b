#include "nn/mlp.h"

#include "nn/stacked.h"

namespace fathom {

void Mlp::visit(const Names& names) {
    gate_.visit(names.in("gate_proj"));
    up_.visit(names.in("up_proj"));
    down_.visit(names.in("down_proj"));
}

void Mlp::forward(Context& cx, const Tensor& y, const Tensor& h, const Tensor& x, const Batch& /*batch*/, Saved* saved) const {
    const bool keep = saved != nullptr;
    const int64_t n = x.dim(0), width = gate_.weight.rows;
    const Tensor both = cx.empty({n, 2 * width}, keep);  // [gate | up]
    const Tensor gate = both.slice(1, 0, width), up = both.slice(1, width, 2 * width);
    const Tensor hidden = cx.empty({n, width});
    const Stacked one = stacked({gate_.weight}, {up_.weight});
    if (one && !keep) {
        cx.ops.matmul_swiglu(hidden, both, x, one.weights[0]);
    } else {
        if (one) {
            cx.ops.matmul(both, x, one.weights[0]);
        } else {
            cx.ops.matmul(gate, x, gate_.weight.weight);
            cx.ops.matmul(up, x, up_.weight.weight);
        }
        cx.ops.swiglu(hidden, gate, up);
    }
    if (keep) *saved = {x, gate, up};
    cx.ops.add(y, h, linear(cx, hidden, down_));
}

Tensor Mlp::backward(Context& cx, const Tensor& dy, const Batch& /*batch*/, const Saved& saved) const {
    const int64_t n = saved.gate.dim(0), width = saved.gate.dim(1);
    const Tensor hidden = cx.empty({n, width});  // recomputed: cheaper than kept
    cx.ops.swiglu(hidden, saved.gate, saved.up);
    const Tensor dhidden = linear_backward(cx, dy, hidden, down_);
    const Tensor dboth = cx.empty({n, 2 * width});
    const Tensor dgate = dboth.slice(1, 0, width), dup = dboth.slice(1, width, 2 * width);
    cx.ops.swiglu_backward(dgate, dup, dhidden, saved.gate, saved.up);
    if (const Stacked one = stacked({gate_.weight}, {up_.weight})) {
        if (take_zeros(cx.ops, {&gate_.weight, &up_.weight}))
            cx.ops.first_matmul_wgrad(one.grads[0], dboth, saved.x);
        else
            cx.ops.matmul_wgrad(one.grads[0], dboth, saved.x);
        const Tensor dx = cx.empty({n, saved.x.dim(1)});
        cx.ops.matmul_dgrad(dx, dboth, one.weights[0]);
        return dx;
    }
    const Tensor dx = linear_backward(cx, dgate, saved.x, gate_);
    cx.ops.add(dx, dx, linear_backward(cx, dup, saved.x, up_));
    return dx;
}

}  // namespace fathom
