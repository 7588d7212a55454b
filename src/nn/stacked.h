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

// The same of weights of one scheme whose scales and zero points follow each other, too; else one without codes.
[[nodiscard]] inline Weight stacked(const Weight& a, const Weight& b) {
    const bool blocks = a.scheme == Scheme::kFp8Block;
    if (a.scheme != b.scheme || a.block != b.block || a.scheme == Scheme::kBlocks) return {};
    // The blocks of b must begin where those of a end.
    if (blocks && (a.row0 != 0 || b.row0 != 0 || a.codes.dim(0) % kFp8Block != 0)) return {};
    Weight both = a;
    both.codes = stacked(a.codes, b.codes);
    if (a.scheme != Scheme::kPlain) both.scales = stacked(a.scales, b.scales);
    if (a.zeros || b.zeros) both.zeros = stacked(a.zeros, b.zeros);
    const bool whole = both.codes && both.scales.defined() == a.scales.defined() && both.zeros.defined() == a.zeros.defined() &&
                       a.zeros.defined() == b.zeros.defined();
    return whole ? both : Weight();
}

// The same of parameters; none is stacked unless all are, and with them their gradients where there are any.
struct Stacked {
    std::vector<Weight> weights;
    std::vector<Tensor> grads;
    [[nodiscard]] explicit operator bool() const { return !weights.empty(); }
};
[[nodiscard]] inline Stacked stacked(const std::vector<Param>& a, const std::vector<Param>& b) {
    Stacked all;
    all.weights.reserve(a.size());
    all.grads.reserve(a.size());
    for (size_t i = 0; i < a.size(); ++i) {
        const Weight weight = stacked(a[i].weight, b[i].weight);
        const Tensor grad = stacked(a[i].grad, b[i].grad);
        if (!weight.codes || (a[i].grad && !grad)) return {};
        all.weights.push_back(weight);
        all.grads.push_back(grad);
    }
    return all;
}

}  // namespace fathom
