// Dispatch to experts, combination and load of ReferenceOps; included by reference_ops.cpp only.
#pragma once

#include "reference/reference_ops.h"

namespace fathom {

template <class T>
void ReferenceOps<T>::sort_by_expert(const Tensor& offsets, const Tensor& source, const Tensor& slot, const Tensor& indices) {
    const Values<int64_t> chosen(indices);
    const int64_t experts = offsets.dim(0) - 1;
    Values<int64_t> starts(experts + 1), tokens(chosen.dim(0) * chosen.dim(1)), slots(chosen.dim(0), chosen.dim(1));
    int64_t row = 0;
    for (int64_t e = 0; e < experts; ++e) {
        for (int64_t i = 0; i < chosen.dim(0); ++i) {
            for (int64_t k = 0; k < chosen.dim(1); ++k) {
                if (chosen(i, k) != e) continue;
                tokens(row) = i;
                slots(i, k) = row++;
            }
        }
        starts(e + 1) = row;
    }
    starts.store(offsets);
    tokens.store(source);
    slots.store(slot);
}

template <class T>
void ReferenceOps<T>::combine(const Tensor& y, const Tensor& x, const Tensor& slot, const Tensor& weights, const Tensor& base) {
    const Values<T> in(x), w(weights), added(base);
    const Values<int64_t> slots(slot);
    Values<T> out(slots.dim(0), in.dim(1));
    for (int64_t i = 0; i < slots.dim(0); ++i)
        for (int64_t k = 0; k < slots.dim(1); ++k)
            for (int64_t c = 0; c < in.dim(1); ++c) out(i, c) += (weights ? w(i, k) : T(1)) * in(slots(i, k), c);
    for (int64_t i = 0; base && i < slots.dim(0); ++i)
        for (int64_t c = 0; c < in.dim(1); ++c) out(i, c) += added(i, c);
    out.store(y);
}

template <class T>
void ReferenceOps<T>::combine_backward(const Tensor& dx, const Tensor& dweights, const Tensor& dy, const Tensor& x,
                                       const Tensor& slot, const Tensor& weights) {
    const Values<T> in(x), w(weights), grad(dy);
    const Values<int64_t> slots(slot);
    Values<T> din(in.dim(0), in.dim(1)), dw(slots.dim(0), slots.dim(1));
    for (int64_t i = 0; i < slots.dim(0); ++i) {
        for (int64_t k = 0; k < slots.dim(1); ++k) {
            for (int64_t c = 0; c < in.dim(1); ++c) {
                din(slots(i, k), c) = w(i, k) * grad(i, c);
                dw(i, k) += grad(i, c) * in(slots(i, k), c);
            }
        }
    }
    din.store(dx);
    dw.store(dweights);
}

template <class T>
void ReferenceOps<T>::add_expert_load(const Tensor& load, const Tensor& offsets) {
    const Values<int64_t> starts(offsets);
    Values<int64_t> counts(load);
    for (int64_t e = 0; e < counts.dim(0); ++e) counts(e) += starts(e + 1) - starts(e);
    counts.store(load);
}

template <class T>
void ReferenceOps<T>::update_router_bias(const Tensor& bias, const Tensor& load, double gamma) {
    const Values<int64_t> counts(load);
    Values<T> b(bias);
    int64_t total = 0;
    for (const int64_t count : counts.data) total += count;
    for (int64_t e = 0; e < b.dim(0); ++e) {
        const int64_t scaled = counts(e) * b.dim(0);
        if (scaled > total) b(e) -= T(gamma);
        if (scaled < total) b(e) += T(gamma);
    }
    b.store(bias);
}

}  // namespace fathom
