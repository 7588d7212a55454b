#include "nn/mlp.h"

namespace fathom {

void Mlp::visit(const Names& names) {
    gate_.visit(names.in("gate_proj"));
    up_.visit(names.in("up_proj"));
    down_.visit(names.in("down_proj"));
}

Tensor Mlp::forward(Context& cx, const Tensor& x, const Batch& /*batch*/, Saved* saved) const {
    const bool keep = saved != nullptr;
    const Tensor gate = linear(cx, x, gate_, keep), up = linear(cx, x, up_, keep);
    const Tensor hidden = cx.empty({gate.dim(0), gate.dim(1)});
    cx.ops.swiglu(hidden, gate, up);
    if (keep) *saved = {x, gate, up};
    return linear(cx, hidden, down_);
}

Tensor Mlp::backward(Context& cx, const Tensor& dy, const Batch& /*batch*/, const Saved& saved) const {
    const Tensor hidden = cx.empty({saved.gate.dim(0), saved.gate.dim(1)});  // recomputed: cheaper than kept
    cx.ops.swiglu(hidden, saved.gate, saved.up);
    const Tensor dhidden = linear_backward(cx, dy, hidden, down_);
    const Tensor dgate = cx.empty({hidden.dim(0), hidden.dim(1)}), dup = cx.empty({hidden.dim(0), hidden.dim(1)});
    cx.ops.swiglu_backward(dgate, dup, dhidden, saved.gate, saved.up);
    const Tensor dx = linear_backward(cx, dgate, saved.x, gate_);
    cx.ops.add(dx, dx, linear_backward(cx, dup, saved.x, up_));
    return dx;
}

}  // namespace fathom
