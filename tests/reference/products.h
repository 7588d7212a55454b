// Matrix products of ReferenceOps: one chain of fused multiply-adds per element. Included by reference_ops.cpp only.
#pragma once

#include "reference/reference_ops.h"

namespace fathom {

template <class T>
void ReferenceOps<T>::matmul(const Tensor& y, const Tensor& x, const Weight& w) {
    using std::fma;
    const Values<T> in(x), weight = weight_values<T>(w);
    check(in.dim(1) == weight.dim(1), "matmul: in_features differ");
    Values<T> out(in.dim(0), weight.dim(0));
    for (int64_t i = 0; i < out.dim(0); ++i)
        for (int64_t o = 0; o < out.dim(1); ++o)
            for (int64_t k = 0; k < in.dim(1); ++k) out(i, o) = fma(in(i, k), weight(o, k), out(i, o));
    out.store(y);
}

template <class T>
void ReferenceOps<T>::matmul_dgrad(const Tensor& dx, const Tensor& dy, const Weight& w) {
    using std::fma;
    const Values<T> grad(dy), weight = weight_values<T>(w);
    check(grad.dim(1) == weight.dim(0), "matmul_dgrad: out_features differ");
    Values<T> din(grad.dim(0), weight.dim(1));
    for (int64_t i = 0; i < din.dim(0); ++i)
        for (int64_t k = 0; k < din.dim(1); ++k)
            for (int64_t o = 0; o < grad.dim(1); ++o) din(i, k) = fma(grad(i, o), weight(o, k), din(i, k));
    din.store(dx);
}

template <class T>
void ReferenceOps<T>::matmul_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) {
    using std::fma;
    const Values<T> grad(dy), in(x);
    check(grad.dim(0) == in.dim(0), "matmul_wgrad: rows differ");
    Values<T> dweight(dw);
    for (int64_t o = 0; o < grad.dim(1); ++o)
        for (int64_t k = 0; k < in.dim(1); ++k)
            for (int64_t i = 0; i < grad.dim(0); ++i) dweight(o, k) = fma(grad(i, o), in(i, k), dweight(o, k));
    dweight.store(dw);
}

// Rows of expert e.
inline Tensor expert_rows(const Tensor& x, const Values<int64_t>& offsets, int64_t e) {
    return x.slice(0, offsets(e), offsets(e + 1));
}

template <class T>
void ReferenceOps<T>::grouped_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w, const Tensor& offsets) {
    const Values<int64_t> rows(offsets);
    for (size_t e = 0; e < w.size(); ++e) {
        const auto expert = static_cast<int64_t>(e);
        matmul(expert_rows(y, rows, expert), expert_rows(x, rows, expert), w[e]);
    }
}

template <class T>
void ReferenceOps<T>::grouped_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w, const Tensor& offsets) {
    const Values<int64_t> rows(offsets);
    for (size_t e = 0; e < w.size(); ++e) {
        const auto expert = static_cast<int64_t>(e);
        matmul_dgrad(expert_rows(dx, rows, expert), expert_rows(dy, rows, expert), w[e]);
    }
}

template <class T>
void ReferenceOps<T>::grouped_wgrad(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, const Tensor& offsets) {
    const Values<int64_t> rows(offsets);
    for (size_t e = 0; e < dw.size(); ++e) {
        const auto expert = static_cast<int64_t>(e);
        matmul_wgrad(dw[e], expert_rows(dy, rows, expert), expert_rows(x, rows, expert));
    }
}

// Head j of [n, h, d] as a matrix [n, d].
inline Tensor head(const Tensor& x, int64_t j) {
    Tensor y = x.slice(1, j, j + 1);
    y.rank = 2;
    y.shape = {x.dim(0), x.dim(2)};
    y.stride = {x.stride[0], x.stride[2]};
    return y;
}

template <class T>
void ReferenceOps<T>::batched_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w) {
    for (size_t j = 0; j < w.size(); ++j) matmul(head(y, static_cast<int64_t>(j)), head(x, static_cast<int64_t>(j)), w[j]);
}

template <class T>
void ReferenceOps<T>::batched_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w) {
    for (size_t j = 0; j < w.size(); ++j)
        matmul_dgrad(head(dx, static_cast<int64_t>(j)), head(dy, static_cast<int64_t>(j)), w[j]);
}

}  // namespace fathom
