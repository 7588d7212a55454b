// Two matrices of one width as one: the gate and up projections of an expert, so that one product does for both.
#pragma once

#include <cstddef>
#include <vector>

#include "nn/param.h"

namespace fathom {

// [a; b], [a's rows + b's rows, cols], where b begins in memory where a ends, as neighbours of a model's memory do; else
// absent.
[[nodiscard]] inline Tensor stacked(const Tensor& a, const Tensor& b) {
    const bool neighbours = a && b && a.data != nullptr && a.rank == 2 && b.rank == 2 && a.dtype == b.dtype &&
                            a.dim(1) == b.dim(1) && a.contiguous() && b.contiguous() &&
                            static_cast<const std::byte*>(a.data) + a.bytes() == b.data;
    return neighbours ? Tensor(a.data, a.dtype, {a.dim(0) + b.dim(0), a.dim(1)}) : Tensor();
}

// The same of weights; none is stacked unless all are, and with them their gradients where there are any.
struct Stacked {
    std::vector<Weight> weights;
    std::vector<Tensor> grads;
    [[nodiscard]] explicit operator bool() const { return !weights.empty(); }
};
[[nodiscard]] inline Stacked stacked(const std::vector<Param>& a, const std::vector<Param>& b) {
    Stacked all;
    for (size_t i = 0; i < a.size(); ++i) {
        const bool plain = a[i].weight.scheme == Scheme::kPlain && b[i].weight.scheme == Scheme::kPlain;
        const Tensor weight = plain ? stacked(a[i].weight.codes, b[i].weight.codes) : Tensor();
        const Tensor grad = stacked(a[i].grad, b[i].grad);
        if (!weight || (a[i].grad && !grad)) return {};
        all.weights.emplace_back(weight);
        all.grads.push_back(grad);
    }
    return all;
}

}  // namespace fathom
