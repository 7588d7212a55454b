#include "train/optimizer.h"

#include <cmath>

#include "base/rng.h"

namespace fathom {

Optimizer::Optimizer(DeepSeek& model, Ops& ops, DType dtype)
    : ops_(ops),
      arena_("optimizer", [&ops](int64_t bytes) { return ops.allocate(bytes); }) {
    model.visit([&](const std::string& name, Param& param) {
        const Tensor source = param.weight.codes;
        check(param.weight.scheme == Scheme::kPlain, "Optimizer: FP8 weights must be loaded as bf16 or f32 to be trained");
        State state{name, &param, {}, {}, {}};
        const Tensor value = param.allocate(arena_, param.trained() ? dtype : DType::kF32);
        state.master = value.dtype == DType::kF32 ? value : param.allocate(arena_, DType::kF32);
        param.weight = value;
        if (source) ops.copy(state.master, source);
        if (param.trained()) {
            state.m = param.allocate(arena_, DType::kF32);
            state.v = param.allocate(arena_, DType::kF32);
            param.grad = param.allocate(arena_, DType::kF32);
            for (const Tensor& zeroed : {state.m, state.v, param.grad}) ops.fill(zeroed, 0);
        }
        states_.push_back(state);
    });
    masters_to_params();
    square_sum_ = arena_.allocate(DType::kF64, {1});
}

void Optimizer::initialize(uint64_t seed, double std) {
    for (size_t i = 0; i < states_.size(); ++i) {
        const State& state = states_[i];
        if (!state.param->is_matrix()) {
            ops_.fill(state.master, state.param->kind == ParamKind::kNorm ? 1 : 0);
            continue;
        }
        std::vector<float> values(static_cast<size_t>(state.param->size()));
        const Philox philox{seed, i};
        for (size_t j = 0; j < values.size(); ++j) values[j] = static_cast<float>(std * philox.normal(j));
        ops_.write(state.master, values.data());
    }
    masters_to_params();
}

void Optimizer::zero_gradients() {
    for (const State& state : states_) {
        if (state.param->trained()) ops_.fill(state.param->grad, 0);
    }
}

double Optimizer::gradient_norm() {
    ops_.fill(square_sum_, 0);
    for (const State& state : states_) {
        if (state.param->trained()) ops_.square_norm(square_sum_, state.param->grad);
    }
    double sum = 0;
    ops_.read_back(&sum, square_sum_);
    return std::sqrt(sum);
}

bool Optimizer::weights_finite() {
    ops_.fill(square_sum_, 0);
    for (const State& state : states_) ops_.square_norm(square_sum_, state.master);
    double sum = 0;
    ops_.read_back(&sum, square_sum_);
    return std::isfinite(sum);  // squares of f32 do not overflow f64
}

void Optimizer::step(const AdamWStep& rule) {
    AdamWStep undecayed = rule;
    undecayed.weight_decay = 0;
    for (const State& state : states_) {
        if (!state.param->trained()) continue;
        ops_.adamw(state.param->weight.codes, state.master, state.m, state.v, state.param->grad,
                   state.param->is_matrix() ? rule : undecayed);
    }
}

void Optimizer::masters_to_params() {
    for (const State& state : states_) {
        if (state.param->weight.codes.data != state.master.data) ops_.copy(state.param->weight.codes, state.master);
    }
}

}  // namespace fathom
