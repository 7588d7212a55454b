// A parameter is a member of its layer and is named once, in the layer's visit(). Load, save, init, optimizer, quantize and
// count all walk that one visitor.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "tensor/tensor.h"

namespace fathom {

enum class ParamKind : uint8_t {
    kMatrix,      // [out, in]: drawn from a normal distribution, decayed
    kNorm,        // [d]: starts at 1, not decayed
    kBias,        // [d]: starts at 0, not decayed
    kRouterBias,  // [E] f32: starts at 0; a buffer that the balancing rule moves, not the optimizer
};

struct Param {
    ParamKind kind = ParamKind::kMatrix;
    int64_t rows = 0;  // out_features of a matrix, length of a vector
    int64_t cols = 0;  // in_features; 0 for a vector
    Weight weight;     // what the layer computes with; bound by whoever owns the memory (a checkpoint's map, the trainer)
    Tensor grad;       // same shape, f32 (the compute type in tests); absent outside training
    mutable bool grad_is_zero = false;  // whatever its memory holds: what comes first takes its place (nn/gradient.h)

    [[nodiscard]] static Param matrix(int64_t out, int64_t in) { return {ParamKind::kMatrix, out, in, {}, {}, false}; }
    [[nodiscard]] static Param norm(int64_t d) { return {ParamKind::kNorm, d, 0, {}, {}, false}; }
    [[nodiscard]] static Param bias(int64_t d) { return {ParamKind::kBias, d, 0, {}, {}, false}; }
    [[nodiscard]] static Param router_bias(int64_t experts) { return {ParamKind::kRouterBias, experts, 0, {}, {}, false}; }

    [[nodiscard]] bool is_matrix() const { return kind == ParamKind::kMatrix; }
    [[nodiscard]] bool trained() const { return kind != ParamKind::kRouterBias; }
    [[nodiscard]] int64_t size() const { return is_matrix() ? rows * cols : rows; }
    [[nodiscard]] const Tensor& vector() const { return weight.codes; }
    [[nodiscard]] Tensor allocate(Arena& arena, DType dtype) const {
        return is_matrix() ? arena.allocate(dtype, {rows, cols}) : arena.allocate(dtype, {rows});
    }
};

using ParamVisitor = std::function<void(const std::string& name, Param& param)>;

// A visitor with the name of the module it stands in: names.in("self_attn")("q_a_proj.weight", wq_a).
class Names {
public:
    Names(std::string prefix, const ParamVisitor& visit) : prefix_(std::move(prefix)), visit_(visit) {}

    void operator()(std::string_view name, Param& param) const { visit_(prefix_ + std::string(name), param); }
    [[nodiscard]] Names in(std::string_view module) const { return {prefix_ + std::string(module) + ".", visit_}; }

private:
    std::string prefix_;
    const ParamVisitor& visit_;
};

}  // namespace fathom
