#include "nn/router.h"

#include <algorithm>

namespace fathom {

Router::Router(const RouterConfig& config)
    : config_(config),
      gate_(config.n_routed_experts, config.hidden_size),
      bias_(Param::router_bias(config.n_routed_experts)) {}

void Router::visit(const Names& names) {
    gate_.visit(names);
    if (config_.correction_bias) names("e_score_correction_bias", bias_);
}

Router::Choice Router::forward(Context& cx, const Tensor& x, const Tensor& replay, bool keep, int64_t chosen) const {
    const int64_t most = config_.num_experts_per_tok, n = x.dim(0), k = replay || chosen <= 0 ? most : std::min(chosen, most);
    const Tensor logits = precise_linear(cx, x, gate_);  // [n, E]
    Choice choice{cx.empty_ints({n, k}, keep), cx.empty_precise({n, k}, keep),
                  cx.empty_precise({n, config_.n_routed_experts}, keep)};
    if (replay) {
        cx.ops.copy(choice.indices, replay);
        cx.ops.route_weights(choice.weights, choice.scores, logits, choice.indices, config_.rule);
    } else {
        cx.ops.route(choice.indices, choice.weights, choice.scores, logits, bias_.vector(), config_.rule);
    }
    return choice;
}

Tensor Router::backward(Context& cx, const Tensor& dweights, const Tensor& x, const Choice& choice, const Tensor& cu_seqlens,
                        const Tensor& balance_loss) const {
    const int64_t n = x.dim(0), experts = config_.n_routed_experts;
    Tensor dscores;
    if (!balance.empty()) {
        dscores = cx.empty_precise({n, experts});
        cx.ops.fill(dscores, 0);
        const Tensor counted = config_.correction_bias ? unbiased_choice(cx, x) : choice.indices;
        for (const BalanceLoss& loss : balance)
            cx.ops.balance_loss(balance_loss, dscores, choice.scores, counted, cu_seqlens, loss);
    }
    const Tensor dlogits = cx.empty_precise({n, experts});
    cx.ops.route_backward(dlogits, dweights, dscores, choice.scores, choice.indices, config_.rule);
    return linear_backward(cx, dlogits, x, gate_);
}

// V3 eq. 18: the balance loss counts the K largest affinities themselves, without bias and groups.
Tensor Router::unbiased_choice(Context& cx, const Tensor& x) const {
    const int64_t n = x.dim(0), k = config_.num_experts_per_tok;
    const Tensor logits = precise_linear(cx, x, gate_), indices = cx.empty_ints({n, k});
    cx.ops.route(indices, cx.empty_precise({n, k}), cx.empty_precise({n, config_.n_routed_experts}), logits, {},
                 {.scoring_func = config_.rule.scoring_func});
    return indices;
}

}  // namespace fathom
