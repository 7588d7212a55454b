// AdamW over a model's parameters: f32 masters, moments in f32 or bf16, gradients accumulated in f32.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/deepseek.h"

namespace fathom {

// Owns the memory of parameters, masters, moments and gradients of one model in training, in the visitor's order.
class Optimizer {
public:
    struct State {
        std::string name;
        Param* param = nullptr;
        Tensor master;  // f32; the parameter itself when that is f32
        Tensor m, v;    // f32 or bf16; absent for what is not trained
    };

    // Gives every parameter writable memory in `dtype` (f32 or bf16; router biases f32) and a zeroed gradient. What a parameter
    // pointed to before, e.g. a checkpoint's map, is copied; without it the values are for initialize() or a restore to write.
    // `moments`: f32 or bf16 (V3 3.3.3).
    Optimizer(DeepSeek& model, Ops& ops, DType dtype, DType moments = DType::kF32);

    // Matrices from a normal distribution of standard deviation `std`, norms 1, biases 0: a function of the seed and the
    // parameter's place in the visitor's order alone.
    void initialize(uint64_t seed, double std);

    // Marks all gradients as zero: what is added first takes the memory's place (nn/gradient.h).
    void zero_gradients();
    // sqrt(sum of squares) of all gradients.
    [[nodiscard]] double gradient_norm();
    // Whether every weight is a number: one that is not would spoil a checkpoint and every step after it.
    [[nodiscard]] bool weights_finite();
    // One step with `rule` for matrices, and without weight decay for norms and biases.
    void step(const AdamWStep& rule);

    [[nodiscard]] std::vector<State>& states() { return states_; }
    // After masters were written from outside: parameters = masters in their own type.
    void masters_to_params();
    [[nodiscard]] int64_t bytes() const { return arena_.used(); }

private:
    // Parameters that one rule updates lie one after the other, so that a step is a few long operations and not many short
    // ones. Each begins at a multiple of kAlignment elements; what lies between is zero and stays so. [n] each.
    struct Group {
        Tensor param;   // in the parameters' type
        Tensor master;  // f32; `param` itself when that is f32
        Tensor m, v, grad;
    };
    static constexpr int64_t kAlignment = 64;

    Ops& ops_;
    Arena arena_;
    std::vector<State> states_;
    Group decayed_, undecayed_;  // matrices; norms and biases

    [[nodiscard]] Group allocate_group(DeepSeek& model, DType dtype, DType moments, bool decayed);
    void bind(DeepSeek& model);
    void clear_marked_gradients();
    [[nodiscard]] static int64_t aligned_size(const Param& param);
    Tensor square_sum_;  // [1] f64
};

}  // namespace fathom
