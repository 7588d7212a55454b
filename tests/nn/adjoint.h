// The adjoint test of a layer: forward under dual numbers along a random direction v of all inputs and parameters gives J v,
// backward with a random dy gives J^T dy, and <dy, J v> = <J^T dy, v>. One number checks every gradient of the layer.
//
//   expect_adjoint([](auto& side) {
//       Mla mla(config);
//       side.bind(mla);                                                  // random parameters
//       const Tensor x = side.input({rows, hidden});                     // a random input
//       Mla::Saved saved;
//       const Tensor y = mla.forward(side.cx, x, batch, nullptr, &saved);
//       const Tensor dy = side.output(y);                                // a random gradient of y
//       side.gradient(x, mla.backward(side.cx, dy, batch, saved));
//   });
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "nn/context.h"
#include "nn/param.h"
#include "reference/reference_ops.h"

namespace fathom {

// Memory full of NaN (and of -1 for integers), so that reading what was never written shows.
inline Buffer poisoned_memory(int64_t bytes) {
    Buffer buffer = Buffer::host(bytes);
    std::memset(buffer.data(), 0xff, static_cast<size_t>(bytes));
    return buffer;
}

// One of the two runs of a layer: T = Dual computes J v, T = double computes J^T dy. Random tensors are numbered in the order
// in which the test asks for them, and tensor i has the same values in both runs.
template <class T>
class AdjointSide {
public:
    static constexpr int64_t kChunk = int64_t{1} << 20;

    ReferenceOps<T> ops;
    Arena scratch{"scratch", poisoned_memory, kChunk}, saved{"saved", poisoned_memory, kChunk},
        params{"params", poisoned_memory, kChunk}, grads{"grads", poisoned_memory, kChunk};
    Context cx{ops, scratch, saved};

    explicit AdjointSide(std::optional<size_t> only = {}) : only_(only) { cx.cache_type = dtype_of<T>(); }
    AdjointSide(const AdjointSide&) = delete;
    AdjointSide& operator=(const AdjointSide&) = delete;

    // Binds random weights and gradients to every parameter of a layer (anything with visit(names)).
    template <class Layer>
    void bind(Layer& layer) {
        const ParamVisitor visit = [&](const std::string& name, Param& param) { bind(name, param); };
        layer.visit(Names("", visit));
    }
    void bind(const std::string& name, Param& param) {
        const Tensor weight = param.allocate(params, dtype_of<T>());
        const double spread = param.is_matrix() ? 1 / std::sqrt(static_cast<double>(param.cols)) : 0.3;
        randomize(weight, param.kind == ParamKind::kNorm ? 1 : 0, spread, param.trained());
        param.weight = weight;
        param.grad = param.allocate(grads, dtype_of<T>());
        ops.fill(param.grad, kGradStart);
        directions_.push_back({name, weight.data, param.trained() ? param.grad : Tensor(), kGradStart});
    }

    // A random input to differentiate with respect to; values around `mean`.
    [[nodiscard]] Tensor input(std::initializer_list<int64_t> dims, double mean = 0, double spread = 1) {
        const Tensor x = params.allocate(dtype_of<T>(), dims);
        randomize(x, mean, spread, true);
        directions_.push_back({"input " + std::to_string(directions_.size()), x.data, Tensor(), 0});
        return x;
    }
    // A random gradient for an output of the forward.
    [[nodiscard]] Tensor output(const Tensor& y) {
        Values<T> dy(Values<T>(y).shape);
        for (size_t i = 0; i < dy.data.size(); ++i) dy.data[i] = T(Philox{kCotangents, outputs_}.normal(i));
        ++outputs_;
        count_output(y, dy);
        return stored(y, dy);
    }
    // A term of the loss: its gradient is 1.
    void loss(const Tensor& value) {
        Values<T> one(Values<T>(value).shape);
        for (T& element : one.data) element = T(1);
        count_output(value, one);
    }
    // What the backward says about an input.
    void gradient(const Tensor& x, const Tensor& dx) {
        for (Direction& direction : directions_)
            if (direction.data == x.data) direction.gradient = stored(dx, Values<T>(dx));
    }

    [[nodiscard]] size_t directions() const { return directions_.size(); }
    [[nodiscard]] const std::string& name(size_t i) const { return directions_[i].name; }
    [[nodiscard]] double forward_product() const { return forward_product_; }  // <dy, J v>
    [[nodiscard]] double magnitude() const { return magnitude_; }              // sum of its terms' absolute values
    // <J^T dy, v>
    [[nodiscard]] double backward_product() const {
        double sum = 0;
        for (size_t i = 0; i < directions_.size(); ++i) {
            if (!directions_[i].gradient || (only_ && *only_ != i)) continue;
            const Values<double> gradient(directions_[i].gradient);
            for (size_t j = 0; j < gradient.data.size(); ++j)
                sum += (gradient.data[j] - directions_[i].start) * Philox{kDirections, i}.normal(j);
        }
        return sum;
    }

private:
    static constexpr uint64_t kValues = 1, kDirections = 2, kCotangents = 3;  // seeds
    static constexpr double kGradStart = 0.5;  // parameter gradients are accumulated, so they start from something

    struct Direction {
        std::string name;
        const void* data;
        Tensor gradient;
        double start;  // what the gradient held before the backward
    };

    void randomize(const Tensor& x, double mean, double spread, bool differentiate) {
        const size_t id = directions_.size();
        Values<T> values(Values<T>(x).shape);
        for (size_t i = 0; i < values.data.size(); ++i) {
            const double value = mean + spread * Philox{kValues, id}.normal(i);
            if constexpr (std::is_same_v<T, Dual>) {
                const bool moves = differentiate && (!only_ || *only_ == id);
                values.data[i] = Dual(value, moves ? Philox{kDirections, id}.normal(i) : 0);
            } else {
                values.data[i] = value;
            }
        }
        values.store(x);
    }
    void count_output(const Tensor& y, const Values<T>& dy) {
        if constexpr (std::is_same_v<T, Dual>) {
            const Values<Dual> out(y);
            for (size_t i = 0; i < out.data.size(); ++i) {
                const double term = dy.data[i].value * out.data[i].derivative;
                forward_product_ += term;
                magnitude_ += std::fabs(term);
            }
        }
    }
    // Values in memory of their own, shaped like `like`.
    [[nodiscard]] Tensor stored(const Tensor& like, const Values<T>& values) {
        Tensor copy = like;
        for (int64_t i = like.rank - 1, step = 1; i >= 0; step *= like.dim(static_cast<int>(i--)))
            copy.stride[static_cast<size_t>(i)] = step;
        copy.data = params.allocate(dtype_of<T>(), {like.size()}).data;
        values.store(copy);
        return copy;
    }

    std::optional<size_t> only_;  // differentiate along this tensor alone
    std::vector<Direction> directions_;
    uint64_t outputs_ = 0;
    double forward_product_ = 0, magnitude_ = 0;
};

inline bool agree(double forward, double backward, double magnitude, double tolerance) {
    return magnitude > 0 && std::fabs(forward - backward) <= tolerance * magnitude;
}

// Runs `test` (a generic lambda over AdjointSide<T>&) under both number types and compares. On failure it says which tensor's
// gradient is wrong.
template <class Test>
void expect_adjoint(Test&& test, double tolerance = 1e-12) {
    AdjointSide<double> backward;
    test(backward);
    AdjointSide<Dual> forward;
    test(forward);
    const double left = forward.forward_product(), right = backward.backward_product();
    EXPECT_GT(forward.magnitude(), 0) << "the output does not depend on the inputs";
    if (agree(left, right, forward.magnitude(), tolerance)) return;
    ADD_FAILURE() << "<dy, J v> = " << left << " but <J^T dy, v> = " << right;
    for (size_t i = 0; i < forward.directions(); ++i) {
        AdjointSide<double> backward_i(i);
        test(backward_i);
        AdjointSide<Dual> forward_i(i);
        test(forward_i);
        const double l = forward_i.forward_product(), r = backward_i.backward_product();
        if (l != r && !agree(l, r, forward_i.magnitude(), tolerance))
            ADD_FAILURE() << "wrong along " << forward.name(i) << ": " << l << " forward, " << r << " backward";
    }
}

}  // namespace fathom
