// The CPU's ops, which let somebody see the input of every matrix before it is multiplied, and multiply with another one.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cpu/cpu_ops.h"
#include "model/deepseek.h"

namespace fathom {

// A matrix that lies in a weight's memory: several where a layer multiplies two as one (nn/stacked.h).
struct ObservedMatrix {
    std::string name;
    const Param* param = nullptr;
};

class CalibratingOps final : public CpuOps {
public:
    // `seen(matrix, x)` is told of the rows x [n, in] (f32, rows may be strided) that meet a matrix, n = 0 for an expert
    // without tokens, and returns the numbers [out, in] f32 to multiply with, or an absent tensor for the matrix as it is.
    // `group` is told of all matrices of a grouped product first, each with its rows.
    using Seen = std::function<Tensor(const ObservedMatrix& matrix, const Tensor& x)>;

    CalibratingOps(ThreadPool& pool, DeepSeek& model, Seen seen) : CpuOps(pool), seen_(std::move(seen)) {
        model.visit([this](const std::string& name, Param& param) {
            if (param.is_matrix()) matrices_.emplace(param.weight.codes.data, ObservedMatrix{name, &param});
        });
    }

    void matmul(const Tensor& y, const Tensor& x, const Weight& w) override { multiply(y, x, w); }
    void grouped_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w, const Tensor& offsets) override {
        for (size_t e = 0; e < w.size(); ++e) {
            const int64_t begin = offsets.as<int32_t>()[e], end = offsets.as<int32_t>()[e + 1];
            multiply(y.slice(0, begin, end), x.slice(0, begin, end), w[e]);
        }
    }

private:
    std::map<const void*, ObservedMatrix> matrices_;  // by where the codes begin
    Seen seen_;

    void multiply(const Tensor& y, const Tensor& x, const Weight& w) {
        const auto* end = static_cast<const std::byte*>(w.codes.data) + w.codes.bytes();
        int64_t row = 0;
        for (auto at = matrices_.find(w.codes.data); at != matrices_.end() && at->first < end && row < y.dim(1); ++at) {
            const int64_t rows = at->second.param->rows;
            const Tensor numbers = seen_(at->second, x);
            const Tensor part = y.slice(1, row, row + rows);
            if (x.dim(0) > 0) CpuOps::matmul(part, x, numbers ? Weight(numbers) : w.rows(row, row + rows));
            row += rows;
        }
        check(row == y.dim(1), "CalibratingOps: a product with a matrix that is no parameter");
    }
};

}  // namespace fathom
