// Activation, loss and optimizer of ReferenceOps; included by reference_ops.cpp only.
#pragma once

#include <vector>

#include "reference/attention.h"
#include "reference/reference_ops.h"

namespace fathom {

template <class T>
T sigmoid(T z) {
    using std::exp;
    return T(1) / (T(1) + exp(-z));
}

template <class T>
void ReferenceOps<T>::swiglu(const Tensor& y, const Tensor& gate, const Tensor& up) {
    const Values<T> g(gate), u(up);
    Values<T> out = g;
    for (size_t i = 0; i < g.data.size(); ++i) out.data[i] = g.data[i] * sigmoid(g.data[i]) * u.data[i];
    out.store(y);
}

// dgate = dy up (sigma + g sigma (1 - sigma)), dup = dy silu(g).
template <class T>
void ReferenceOps<T>::swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy, const Tensor& gate,
                                      const Tensor& up) {
    const Values<T> g(gate), u(up), grad(dy);
    Values<T> dg = g, du = g;
    for (size_t i = 0; i < g.data.size(); ++i) {
        const T s = sigmoid(g.data[i]);
        dg.data[i] = grad.data[i] * u.data[i] * (s + g.data[i] * s * (T(1) - s));
        du.data[i] = grad.data[i] * g.data[i] * s;
    }
    dg.store(dgate);
    du.store(dup);
}

template <class T>
void ReferenceOps<T>::cross_entropy(const Tensor& loss, const Tensor& logits, const Tensor& targets) {
    const Values<T> z(logits);
    const Values<int64_t> target(targets);
    Values<T> out(z.dim(0));
    for (int64_t i = 0; i < z.dim(0); ++i) {
        if (target(i) < 0) continue;
        std::vector<T> row;
        for (int64_t c = 0; c < z.dim(1); ++c) row.push_back(z(i, c));
        out(i) = softmax(row) - z(i, target(i));
    }
    out.store(loss);
}

template <class T>
void ReferenceOps<T>::cross_entropy_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets, double scale) {
    const Values<T> z(logits);
    const Values<int64_t> target(targets);
    Values<T> dz(z.dim(0), z.dim(1));
    for (int64_t i = 0; i < z.dim(0); ++i) {
        if (target(i) < 0) continue;
        std::vector<T> p;
        for (int64_t c = 0; c < z.dim(1); ++c) p.push_back(z(i, c));
        softmax(p);
        for (int64_t c = 0; c < z.dim(1); ++c) dz(i, c) = T(scale) * (p[static_cast<size_t>(c)] - T(c == target(i) ? 1 : 0));
    }
    dz.store(dlogits);
}

template <class T>
void ReferenceOps<T>::adamw(const Tensor& param, const Tensor& master, const Tensor& m, const Tensor& v, const Tensor& grad,
                            const AdamWStep& step) {
    using std::sqrt;
    const Values<T> g(grad);
    Values<T> p(master), first(m), second(v);
    const T beta1 = step.beta1, beta2 = step.beta2;
    const auto t = static_cast<double>(step.step);
    const T correction1 = 1 - std::pow(step.beta1, t), correction2 = 1 - std::pow(step.beta2, t);
    for (size_t i = 0; i < p.data.size(); ++i) {
        const T scaled = g.data[i] * T(step.grad_scale);
        first.data[i] = beta1 * first.data[i] + (T(1) - beta1) * scaled;
        second.data[i] = beta2 * second.data[i] + (T(1) - beta2) * scaled * scaled;
        p.data[i] *= T(1 - step.learning_rate * step.weight_decay);
        p.data[i] -=
            T(step.learning_rate) * (first.data[i] / correction1) / (sqrt(second.data[i] / correction2) + T(step.epsilon));
    }
    p.store(master);
    first.store(m);
    second.store(v);
    p.store(param);
}

template <class T>
void ReferenceOps<T>::square_norm(const Tensor& sum, const Tensor& x) {
    using Wide = std::conditional_t<std::is_same_v<T, Dual>, Dual, double>;
    Values<Wide> total(sum);
    for (const Wide& element : Values<Wide>(x).data) total(0) += element * element;
    total.store(sum);
}

}  // namespace fathom
