#include "nn/moe.h"

#include <initializer_list>
#include <string>
#include <utility>

#include "nn/expert_source.h"
#include "nn/stacked.h"

namespace fathom {
namespace {

std::vector<Weight> weights_of(const std::vector<Param>& experts) {
    std::vector<Weight> weights;
    weights.reserve(experts.size());
    for (const Param& expert : experts) weights.push_back(expert.weight);
    return weights;
}

std::vector<Tensor> grads_of(const std::vector<Param>& experts) {
    std::vector<Tensor> grads;
    for (const Param& expert : experts) grads.push_back(expert.grad);
    return grads;
}

// grads += dy^T x by expert; grads are those of `params`, of which two may lie in one.
void add_gradients(Context& cx, const std::vector<Tensor>& grads, std::initializer_list<const std::vector<Param>*> params,
                   const Tensor& dy, const Tensor& x, const Tensor& offsets) {
    std::vector<const Param*> all;
    for (const std::vector<Param>* some : params)
        for (const Param& param : *some) all.push_back(&param);
    if (take_zeros(cx.ops, all))
        cx.ops.first_grouped_wgrad(grads, dy, x, offsets);
    else
        cx.ops.grouped_wgrad(grads, dy, x, offsets);
}

// linear() over rows grouped by expert. x [m, in] -> [m, out].
Tensor experts(Context& cx, const Tensor& x, const std::vector<Param>& w, const Tensor& offsets, bool keep) {
    Tensor y = cx.empty({x.dim(0), w[0].rows}, keep);
    cx.ops.grouped_matmul(y, x, weights_of(w), offsets);
    return y;
}

Tensor experts_backward(Context& cx, const Tensor& dy, const Tensor& x, const std::vector<Param>& w, const Tensor& offsets) {
    add_gradients(cx, grads_of(w), {&w}, dy, x, offsets);
    Tensor dx = cx.empty({x.dim(0), w[0].cols});
    cx.ops.grouped_dgrad(dx, dy, weights_of(w), offsets);
    return dx;
}

// The halves of [gate | up], [m, 2 width].
std::pair<Tensor, Tensor> halves(const Tensor& both) {
    const int64_t width = both.dim(1) / 2;
    return {both.slice(1, 0, width), both.slice(1, width, 2 * width)};
}

struct Activated {
    Tensor gate_up;  // [m, 2 width]; only there where it is kept
    Tensor inner;    // silu(gate) up, [m, width]
};

// Of rows grouped by expert.
Activated gates_and_ups(Context& cx, const Tensor& x, const std::vector<Param>& gates, const std::vector<Param>& ups,
                        const Tensor& offsets, bool keep) {
    const int64_t m = x.dim(0), width = gates[0].rows;
    const Activated a{cx.empty({m, 2 * width}, keep), cx.empty({m, width})};
    const Stacked one = stacked(gates, ups);
    if (one && !keep) {
        cx.ops.grouped_matmul_swiglu(a.inner, a.gate_up, x, one.weights, offsets);
        return a;
    }
    const auto [gate, up] = halves(a.gate_up);
    if (one) {
        cx.ops.grouped_matmul(a.gate_up, x, one.weights, offsets);
    } else {
        cx.ops.grouped_matmul(gate, x, weights_of(gates), offsets);
        cx.ops.grouped_matmul(up, x, weights_of(ups), offsets);
    }
    cx.ops.swiglu(a.inner, gate, up);
    return a;
}

// dboth [m, 2 width] -> dx [m, hidden]; accumulates the gradients of gates and ups.
Tensor gates_and_ups_backward(Context& cx, const Tensor& dboth, const Tensor& x, const std::vector<Param>& gates,
                              const std::vector<Param>& ups, const Tensor& offsets) {
    if (const Stacked one = stacked(gates, ups)) {
        add_gradients(cx, one.grads, {&gates, &ups}, dboth, x, offsets);
        Tensor dx = cx.empty({x.dim(0), x.dim(1)});
        cx.ops.grouped_dgrad(dx, dboth, one.weights, offsets);
        return dx;
    }
    const auto [dgate, dup] = halves(dboth);
    Tensor dx = experts_backward(cx, dgate, x, gates, offsets);
    cx.ops.add(dx, dx, experts_backward(cx, dup, x, ups, offsets));
    return dx;
}

}  // namespace

Moe::Moe(const MoeConfig& config) : config_(config), router_(config.router) {
    const int64_t hidden = config.router.hidden_size, width = config.moe_intermediate_size;
    for (int64_t e = 0; e < config.router.n_routed_experts; ++e) {
        gate_.push_back(Param::matrix(width, hidden));
        up_.push_back(Param::matrix(width, hidden));
        down_.push_back(Param::matrix(hidden, width));
    }
    if (config.n_shared_experts > 0) shared_ = Mlp(hidden, config.n_shared_experts * width);
}

void Moe::visit(const Names& names) {
    router_.visit(names.in("gate"));
    for (size_t e = 0; e < gate_.size(); ++e) {
        const Names expert = names.in("experts." + std::to_string(e));
        expert("gate_proj.weight", gate_[e]);
        expert("up_proj.weight", up_[e]);
        expert("down_proj.weight", down_[e]);
    }
    if (config_.n_shared_experts > 0) shared_.visit(names.in("shared_experts"));
}

// y = h + Shared(x) + sum_{k in top K} w_k Expert_k(x)
void Moe::forward(Context& cx, const Tensor& y, const Tensor& h, const Tensor& x, const Batch& batch, Saved* saved) const {
    const bool keep = saved != nullptr;
    Saved routed;
    Mlp::Saved shared;
    Tensor base = h;
    if (config_.n_shared_experts > 0) {
        base = cx.empty({x.dim(0), x.dim(1)});
        cx.ops.side_by_side([&] { routed = answers(cx, x, batch, keep); },
                            [&] { shared_.forward(cx, base, h, x, batch, keep ? &shared : nullptr); });
    } else {
        routed = answers(cx, x, batch, keep);
    }
    cx.ops.combine(y, routed.y, routed.slot, routed.choice.weights, base);
    routed.shared = shared;
    if (keep) *saved = routed;
}

// What the chosen experts say of each token, sorted by expert.
Moe::Saved Moe::answers(Context& cx, const Tensor& x, const Batch& batch, bool keep) const {
    const auto layer = static_cast<size_t>(config_.layer);
    const int64_t n = x.dim(0), hidden = x.dim(1), E = config_.router.n_routed_experts;
    const Tensor replay = layer < batch.replay.size() ? batch.replay[layer] : Tensor();
    const Router::Choice choice = router_.forward(cx, x, replay, keep || batch.record != nullptr, batch.experts_per_token);
    const int64_t m = choice.indices.size();
    if (batch.record != nullptr) (*batch.record)[layer] = {choice.indices, choice.weights};
    const Tensor offsets = cx.empty_ints({E + 1}, keep), source = cx.empty_ints({m}, keep),
                 slot = cx.empty_ints({n, choice.indices.dim(1)}, keep);
    cx.ops.sort_by_expert(offsets, source, slot, choice.indices);
    // Once per training step: of a layer that is recomputed only the second forward keeps its activations.
    if (statistics.expert_load && keep) cx.ops.add_expert_load(statistics.expert_load, offsets);

    if (cx.experts != nullptr) {
        cx.experts->require(config_.layer, offsets);
        cx.experts->foresee(cx, config_.layer, x);
    }
    if (!keep && cx.ops.takes_experts(gate_[0].weight, up_[0].weight, down_[0].weight, offsets)) {
        const Tensor said = cx.empty({m, hidden});
        cx.ops.experts(said, x, source, weights_of(gate_), weights_of(up_), weights_of(down_), offsets);
        return {x, choice, offsets, source, slot, {}, {}, said, {}};
    }
    const Tensor dispatched = cx.empty({m, hidden});
    cx.ops.gather_rows(dispatched, x, source);
    const auto [gate_up, inner] = gates_and_ups(cx, dispatched, gate_, up_, offsets, keep);
    const auto [gate, up] = halves(gate_up);
    const Tensor expert_y = experts(cx, inner, down_, offsets, keep);
    return {x, choice, offsets, source, slot, gate, up, expert_y, {}};
}

Tensor Moe::backward(Context& cx, const Tensor& dy, const Batch& batch, const Saved& s) const {
    const int64_t n = dy.dim(0), hidden = dy.dim(1), m = s.source.dim(0), width = s.gate.dim(1);
    const Tensor dexpert_y = cx.empty({m, hidden}), dweights = cx.empty_precise({n, s.slot.dim(1)});
    cx.ops.combine_backward(dexpert_y, dweights, dy, s.y, s.slot, s.choice.weights);

    const Tensor dispatched = cx.empty({m, hidden}), inner = cx.empty({m, width});  // recomputed: cheaper than kept
    cx.ops.gather_rows(dispatched, s.x, s.source);
    cx.ops.swiglu(inner, s.gate, s.up);
    const Tensor dinner = experts_backward(cx, dexpert_y, inner, down_, s.offsets);
    const Tensor dgate_up = cx.empty({m, 2 * width});
    const auto [dgate, dup] = halves(dgate_up);
    cx.ops.swiglu_backward(dgate, dup, dinner, s.gate, s.up);
    const Tensor ddispatched = gates_and_ups_backward(cx, dgate_up, dispatched, gate_, up_, s.offsets);

    const Tensor dx = cx.empty({n, hidden});
    cx.ops.combine(dx, ddispatched, s.slot, {},
                   router_.backward(cx, dweights, s.x, s.choice, batch.cu_seqlens, statistics.balance_loss));
    if (config_.n_shared_experts > 0) cx.ops.add(dx, dx, shared_.backward(cx, dy, batch, s.shared));
    return dx;
}

}  // namespace fathom
