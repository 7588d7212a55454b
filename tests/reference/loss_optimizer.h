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

// The ids of row i that a policy may choose.
template <class T>
std::vector<bool> admitted_ids(const Values<int64_t>& words, bool given, int64_t i, int64_t vocab, int64_t target) {
    std::vector<bool> admitted(static_cast<size_t>(vocab), !given);
    for (int64_t c = 0; given && c < vocab; ++c)
        admitted[static_cast<size_t>(c)] = ((static_cast<uint64_t>(words(i, c / 32)) >> (c % 32)) & 1) != 0 || c == target;
    return admitted;
}

// Calls f(row, target, admitted ids, their probabilities, log sum exp of logits / temperature) for every row with a target.
template <class T, class F>
void for_policy_rows(const Tensor& logits, const Tensor& targets, const Tensor& allowed, double temperature, F&& f) {
    const Values<T> z(logits);
    const Values<int64_t> target(targets), words = allowed ? Values<int64_t>(allowed) : Values<int64_t>(1);
    for (int64_t i = 0; i < z.dim(0); ++i) {
        if (target(i) < 0) continue;
        const auto admitted = admitted_ids<T>(words, allowed.defined(), i, z.dim(1), target(i));
        std::vector<int64_t> ids;
        std::vector<T> p;
        for (int64_t c = 0; c < z.dim(1); ++c) {
            if (!admitted[static_cast<size_t>(c)]) continue;
            ids.push_back(c);
            p.push_back(z(i, c) / T(temperature));
        }
        const T log_sum = softmax(p);
        f(i, target(i), ids, p, log_sum);
    }
}

template <class T>
void ReferenceOps<T>::token_logprob(const Tensor& logprob, const Tensor& entropy, const Tensor& logits, const Tensor& targets,
                                    const Tensor& allowed, double temperature) {
    const Values<T> z(logits);
    Values<T> out(z.dim(0)), spread(z.dim(0));
    for_policy_rows<T>(logits, targets, allowed, temperature,
                       [&](int64_t i, int64_t target, const auto& ids, const auto& p, const T& log_sum) {
                           out(i) = z(i, target) / T(temperature) - log_sum;
                           for (size_t k = 0; k < ids.size(); ++k)
                               spread(i) -= p[k] * (z(i, ids[k]) / T(temperature) - log_sum);
                       });
    out.store(logprob);
    if (entropy) spread.store(entropy);
}

template <class T>
void ReferenceOps<T>::token_logprob_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets,
                                             const Tensor& allowed, const Tensor& dlogprob, double temperature) {
    const Values<T> z(logits), d(dlogprob);
    Values<T> dz(z.dim(0), z.dim(1));
    for_policy_rows<T>(logits, targets, allowed, temperature,
                       [&](int64_t i, int64_t target, const auto& ids, const auto& p, const T&) {
                           for (size_t k = 0; k < ids.size(); ++k)
                               dz(i, ids[k]) = d(i) / T(temperature) * (T(ids[k] == target ? 1 : 0) - p[k]);
                       });
    dz.store(dlogits);
}

// loss = KL of the first distribution from the second, gradient by the logits of the policy.
template <class T>
struct Divergence {
    Values<T> loss, dlogits;

    Divergence(const Tensor& logits, const Tensor& teacher, const Tensor& targets, bool reverse)
        : loss(logits.dim(0)),
          dlogits(logits.dim(0), logits.dim(1)) {
        const Values<T> z(logits), w(teacher);
        const Values<int64_t> target(targets);
        for (int64_t i = 0; i < z.dim(0); ++i) {
            if (target(i) < 0) continue;
            std::vector<T> p, q;
            for (int64_t c = 0; c < z.dim(1); ++c) {
                p.push_back(z(i, c));
                q.push_back(w(i, c));
            }
            const T log_p = softmax(p), log_q = softmax(q);
            const auto log_ratio = [&](int64_t c) { return (z(i, c) - log_p) - (w(i, c) - log_q); };  // log p / q
            const auto at = [](const std::vector<T>& of, int64_t c) { return of[static_cast<size_t>(c)]; };
            for (int64_t c = 0; c < z.dim(1); ++c) loss(i) += reverse ? at(p, c) * log_ratio(c) : -(at(q, c) * log_ratio(c));
            for (int64_t c = 0; c < z.dim(1); ++c)
                dlogits(i, c) = reverse ? at(p, c) * (log_ratio(c) - loss(i)) : at(p, c) - at(q, c);
        }
    }
};

template <class T>
void ReferenceOps<T>::kl_divergence(const Tensor& loss, const Tensor& logits, const Tensor& teacher, const Tensor& targets,
                                    bool reverse) {
    Divergence<T>(logits, teacher, targets, reverse).loss.store(loss);
}

template <class T>
void ReferenceOps<T>::kl_divergence_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& teacher,
                                             const Tensor& targets, bool reverse, double scale) {
    Values<T> result = Divergence<T>(logits, teacher, targets, reverse).dlogits;
    for (T& value : result.data) value = value * T(scale);
    result.store(dlogits);
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
