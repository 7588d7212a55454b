// The frame of an op test: the same numbers in the memory of a back end (in its compute type, as rows of wider tensors) and in
// the reference's (f64), one call on each, and a comparison.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "ops/backends.h"
#include "reference/reference_ops.h"

namespace fathom {

// Largest difference to the reference, relative to the largest element of the reference.
[[nodiscard]] constexpr double tolerance(DType type) {
    switch (type) {
        case DType::kF64:
            return 1e-13;
        case DType::kF32:
            return 4e-6;
        case DType::kF16:
            return 0x1p-11;
        case DType::kBF16:
            return 0x1p-8;
        default:
            return 0;
    }
}

using Dims = std::vector<int64_t>;

// One tensor in both worlds.
struct Pair {
    Tensor device;
    Tensor reference;  // f64, or the integer type
    Tensor whole;      // the device memory that `device` is a slice of
};

struct WeightPair {
    Weight device;
    Weight reference;
};

struct SpansPair {
    Spans device;
    Spans reference;
};

// Picks one world: at(x).
class Side {
public:
    explicit Side(bool device) : device_(device) {}
    Tensor operator()(const Pair& x) const { return device_ ? x.device : x.reference; }
    Weight operator()(const WeightPair& w) const { return device_ ? w.device : w.reference; }
    Spans operator()(const SpansPair& s) const { return device_ ? s.device : s.reference; }
    std::vector<Weight> operator()(const std::vector<WeightPair>& weights) const {
        std::vector<Weight> all;
        for (const WeightPair& w : weights) all.push_back((*this)(w));
        return all;
    }
    std::vector<Tensor> operator()(const std::vector<Pair>& tensors) const {
        std::vector<Tensor> all;
        for (const Pair& x : tensors) all.push_back((*this)(x));
        return all;
    }

private:
    bool device_;
};

class OpTest : public testing::TestWithParam<Backend> {
protected:
    static constexpr int kCases = 25;  // random shapes per test
    ReferenceOps<double> reference_ops;
    std::shared_ptr<Ops> ops = GetParam().make(2);
    Rng rng{20'241'227};

    // ---- random sizes ----
    int64_t integer(int64_t low, int64_t high) {  // both included
        return low + static_cast<int64_t>(rng.below(static_cast<uint64_t>(high - low + 1)));
    }
    int64_t rows();   // 0, 1 and 2 often, else up to 300
    int64_t width();  // up to 70: whole vectors, tails, and less than a vector
    [[nodiscard]] bool coin() { return integer(0, 1) == 1; }

    // ---- tensors ----
    // Normal random numbers, rounded to the device's type in both worlds.
    Pair random(const Dims& dims, double spread = 1, double mean = 0, DType type = DType::kF32, bool packed = false);
    Pair constant(const Dims& dims, double value, DType type = DType::kF32);
    // For outputs: NaN, or -1 for integers.
    Pair empty(const Dims& dims, DType type = DType::kF32);
    Pair ints(const Dims& dims, const std::vector<int64_t>& values, DType type = DType::kI32);
    // Rows lie apart, unless packed.
    Pair values(const Dims& dims, const std::vector<double>& values, DType type, bool packed = false);
    WeightPair weight(int64_t out, int64_t in, DType type = DType::kF32);  // kF8E4M3: with block scales
    // Row numbers of `count` rows among `bound`.
    std::vector<int64_t> distinct(int64_t count, int64_t bound);
    // n K distinct choices per row among E experts.
    Pair choices(int64_t n, int64_t k, int64_t experts);
    // Group boundaries of `rows` rows: [groups + 1], empty and single-row groups are common.
    Pair offsets(int64_t rows, int64_t groups);

    // ---- run and compare ----
    template <class Call>  // call(Ops&, Side)
    void run(Call&& call) {
        call(static_cast<Ops&>(*ops), Side(true));
        call(static_cast<Ops&>(reference_ops), Side(false));
    }
    // The device's numbers, and that the memory between the rows was left alone.
    Values<double> device_values(const Pair& x);
    // Within factor * tolerance of the tensor's type; `terms`: the size of what was added up, where the sum may cancel.
    void expect_close(const Pair& x, double factor = 1, double terms = 0);
    void expect_equal(const Pair& x);  // the very same numbers

private:
    static constexpr double kBetweenRows = 77;
    std::deque<Buffer> memory_;
};

inline std::string backend_name(const testing::TestParamInfo<Backend>& info) { return info.param.name; }

}  // namespace fathom
