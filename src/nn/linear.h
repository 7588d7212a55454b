// The smallest layers: a matrix with or without a bias, and RMSNorm. Free functions, so that a forward pass reads like its
// formula.
#pragma once

#include <optional>

#include "nn/context.h"
#include "nn/gradient.h"
#include "nn/param.h"

namespace fathom {

struct Linear {
    Param weight;               // [out, in]
    std::optional<Param> bias;  // [out]

    Linear() = default;
    Linear(int64_t out, int64_t in, bool with_bias = false) : weight(Param::matrix(out, in)) {
        if (with_bias) bias = Param::bias(out);
    }
    void visit(const Names& names) {
        names("weight", weight);
        if (bias) names("bias", *bias);
    }
};

// y [n, out] = x [n, in] w^T + bias.
inline void linear_to(Context& cx, const Tensor& y, const Tensor& x, const Linear& layer) {
    cx.ops.matmul(y, x, layer.weight.weight);
    if (layer.bias) cx.ops.add_bias(y, layer.bias->vector());
}

// x [n, in] -> [n, out], kept for the backward when `keep`.
[[nodiscard]] inline Tensor linear(Context& cx, const Tensor& x, const Linear& layer, bool keep = false) {
    Tensor y = cx.empty({x.dim(0), layer.weight.rows}, keep);
    linear_to(cx, y, x, layer);
    return y;
}

// The same in the precise type: logits of a router or of the vocabulary.
[[nodiscard]] inline Tensor precise_linear(Context& cx, const Tensor& x, const Linear& layer) {
    Tensor y = cx.empty_precise({x.dim(0), layer.weight.rows});
    linear_to(cx, y, x, layer);
    return y;
}

// dy [n, out], x [n, in] -> dx [n, in]; accumulates the gradients of weight and bias.
[[nodiscard]] inline Tensor linear_backward(Context& cx, const Tensor& dy, const Tensor& x, const Linear& layer) {
    if (layer.bias) cx.ops.add_bias_backward(summed_gradient(cx.ops, *layer.bias), dy);
    add_gradient(cx, layer.weight, dy, x);
    Tensor dx = cx.empty({x.dim(0), layer.weight.cols});
    cx.ops.matmul_dgrad(dx, dy, layer.weight.weight);
    return dx;
}

struct RmsNorm {
    Param weight;  // [d]
    double eps = 1e-6;

    RmsNorm() = default;
    RmsNorm(int64_t d, double epsilon) : weight(Param::norm(d)), eps(epsilon) {}
    void visit(const Names& names) { names("weight", weight); }
};

[[nodiscard]] inline Tensor rms_norm(Context& cx, const Tensor& x, const RmsNorm& layer, bool keep = false) {
    Tensor y = cx.empty({x.dim(0), x.dim(1)}, keep);
    cx.ops.rms_norm(y, x, layer.weight.vector(), layer.eps);
    return y;
}

// The norm of sum = a + b.
[[nodiscard]] inline Tensor add_rms_norm(Context& cx, const Tensor& sum, const Tensor& a, const Tensor& b, const RmsNorm& layer,
                                         bool keep) {
    Tensor y = cx.empty({sum.dim(0), sum.dim(1)}, keep);
    cx.ops.add_rms_norm(y, sum, a, b, layer.weight.vector(), layer.eps);
    return y;
}

[[nodiscard]] inline Tensor rms_norm_backward(Context& cx, const Tensor& dy, const Tensor& x, const RmsNorm& layer) {
    Tensor dx = cx.empty({x.dim(0), x.dim(1)});
    cx.ops.rms_norm_backward(dx, summed_gradient(cx.ops, layer.weight), dy, x, layer.weight.vector(), layer.eps);
    return dx;
}

}  // namespace fathom
