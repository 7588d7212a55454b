// SwiGLU feed-forward: y = down(silu(gate x) * up x). Dense layers and, at its own width, the shared experts of an MoE layer.
#pragma once

#include "nn/batch.h"
#include "nn/linear.h"

namespace fathom {

class Mlp {
public:
    struct Saved {
        Tensor x;         // [n, hidden]
        Tensor gate, up;  // [n, width]
    };

    Mlp() = default;
    Mlp(int64_t hidden_size, int64_t width) : gate_(width, hidden_size), up_(width, hidden_size), down_(hidden_size, width) {}
    void visit(const Names& names);

    // y = h + Mlp(x); all, and dy, [n, hidden]. The batch is not looked at: all feed-forwards share one signature.
    void forward(Context& cx, const Tensor& y, const Tensor& h, const Tensor& x, const Batch& batch, Saved* saved) const;
    // Of Mlp(x) alone.
    [[nodiscard]] Tensor backward(Context& cx, const Tensor& dy, const Batch& batch, const Saved& saved) const;

private:
    Linear gate_, up_;  // [width, hidden]
    Linear down_;       // [hidden, width]
};

}  // namespace fathom
