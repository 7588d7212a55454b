#include "train/optimizer.h"

#include <cmath>

#include "base/rng.h"
#include "base/threads.h"
#include "nn/gradient.h"

namespace fathom {

namespace {

// Whether the rule with weight decay is for this parameter, of those that are trained.
bool is_decayed(const Param& param) { return param.is_matrix(); }

// Elements [begin, begin + size) of `whole` in the shape of `param`.
Tensor part(const Tensor& whole, int64_t begin, const Param& param) {
    const Tensor flat = whole.slice(0, begin, begin + param.size());
    return param.is_matrix() ? flat.view({param.rows, param.cols}) : flat;
}

}  // namespace

Optimizer::Optimizer(DeepSeek& model, Ops& ops, DType dtype, DType moments)
    : ops_(ops),
      arena_("optimizer", [&ops](int64_t bytes) { return ops.allocate(bytes); }),
      decayed_(allocate_group(model, dtype, moments, true)),
      undecayed_(allocate_group(model, dtype, moments, false)) {
    bind(model);
    masters_to_params();
    square_sum_ = arena_.allocate(DType::kF64, {1});
}

Optimizer::Group Optimizer::allocate_group(DeepSeek& model, DType dtype, DType moments, bool decayed) {
    int64_t size = 0;
    model.visit([&](const std::string&, Param& param) {
        if (param.trained() && is_decayed(param) == decayed) size += aligned_size(param);
    });
    Group group;
    group.param = arena_.allocate(dtype, {size});
    group.master = dtype == DType::kF32 ? group.param : arena_.allocate(DType::kF32, {size});
    for (Tensor* moment : {&group.m, &group.v}) *moment = arena_.allocate(moments, {size});
    group.grad = arena_.allocate(DType::kF32, {size});
    for (const Tensor& state : {group.master, group.m, group.v, group.grad}) ops_.fill(state, 0);
    return group;
}

// Gives every parameter its place, and to its master the value that it had.
void Optimizer::bind(DeepSeek& model) {
    int64_t next[2] = {0, 0};
    model.visit([&](const std::string& name, Param& param) {
        const Tensor source = param.weight.codes;
        check(param.weight.scheme == Scheme::kPlain, "Optimizer: FP8 weights must be loaded as bf16 or f32 to be trained");
        State state{name, &param, {}, {}, {}};
        if (param.trained()) {
            const Group& group = is_decayed(param) ? decayed_ : undecayed_;
            int64_t& at = next[is_decayed(param) ? 1 : 0];
            param.weight = part(group.param, at, param);
            param.grad = part(group.grad, at, param);
            state.master = part(group.master, at, param);
            state.m = part(group.m, at, param);
            state.v = part(group.v, at, param);
            at += aligned_size(param);
        } else {
            state.master = param.allocate(arena_, DType::kF32);
            param.weight = state.master;
        }
        if (source) ops_.copy(state.master, source);
        states_.push_back(state);
    });
}

int64_t Optimizer::aligned_size(const Param& param) { return (param.size() + kAlignment - 1) / kAlignment * kAlignment; }

void Optimizer::initialize(uint64_t seed, double std) {
    ThreadPool pool(0);  // numbers depend on their place alone, so any threads will do
    for (size_t i = 0; i < states_.size(); ++i) {
        const State& state = states_[i];
        if (!state.param->is_matrix()) {
            ops_.fill(state.master, state.param->kind == ParamKind::kNorm ? 1 : 0);
            continue;
        }
        std::vector<float> values(static_cast<size_t>(state.param->size()));
        const Philox philox{seed, i};
        pool.parallel_for(state.param->size(), 1 << 16, [&](int64_t begin, int64_t end, int) {
            for (auto j = static_cast<size_t>(begin); j < static_cast<size_t>(end); ++j)
                values[j] = static_cast<float>(std * philox.normal(j));
        });
        ops_.write(state.master, values.data());
    }
    masters_to_params();
}

void Optimizer::zero_gradients() {
    for (const State& state : states_) state.param->grad_is_zero = state.param->trained();
}

// Of parameters that no gradient has reached.
void Optimizer::clear_marked_gradients() {
    for (const State& state : states_)
        if (state.param->trained()) (void)summed_gradient(ops_, *state.param);
}

double Optimizer::gradient_norm() {
    clear_marked_gradients();
    ops_.fill(square_sum_, 0);
    for (const Group* group : {&decayed_, &undecayed_}) ops_.square_norm(square_sum_, group->grad);
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
    clear_marked_gradients();
    AdamWStep undecayed = rule;
    undecayed.weight_decay = 0;
    ops_.adamw(decayed_.param, decayed_.master, decayed_.m, decayed_.v, decayed_.grad, rule);
    ops_.adamw(undecayed_.param, undecayed_.master, undecayed_.m, undecayed_.v, undecayed_.grad, undecayed);
}

void Optimizer::masters_to_params() {
    for (const Group* group : {&decayed_, &undecayed_})
        if (group->param.data != group->master.data) ops_.copy(group->param, group->master);
}

}  // namespace fathom
