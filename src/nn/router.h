// The gate of an MoE layer: which K of E experts serve a token, and with which weights.
#pragma once

#include <vector>

#include "nn/linear.h"

namespace fathom {

struct RouterConfig {
    int64_t hidden_size = 0;
    int64_t n_routed_experts = 0;     // E
    int64_t num_experts_per_tok = 0;  // K
    RouteRule rule;
    bool correction_bias = false;  // V3: e_score_correction_bias, moved by the balancing rule
};

class Router {
public:
    struct Choice {
        Tensor indices;  // [n, K] i32, best first
        Tensor weights;  // [n, K]
        Tensor scores;   // [n, E]
    };

    Router() = default;
    explicit Router(const RouterConfig& config);
    void visit(const Names& names);

    // `replay` [n, K]: experts chosen earlier (RL's routing replay), whose weights are computed anew; absent = choose the
    // `chosen` best, at most the configuration's K (0: K). The choice has as many columns.
    [[nodiscard]] Choice forward(Context& cx, const Tensor& x, const Tensor& replay, bool keep, int64_t chosen = 0) const;
    // dweights [n, K] -> dx [n, hidden]. balance_loss [1] += the auxiliary losses, whose gradients join.
    [[nodiscard]] Tensor backward(Context& cx, const Tensor& dweights, const Tensor& x, const Choice& choice,
                                  const Tensor& cu_seqlens, const Tensor& balance_loss) const;

    std::vector<BalanceLoss> balance;  // set by the trainer

    // [E] f32; null without a correction bias.
    [[nodiscard]] Param* correction_bias() { return config_.correction_bias ? &bias_ : nullptr; }
    [[nodiscard]] const RouterConfig& config() const { return config_; }

private:
    RouterConfig config_;
    Linear gate_;  // [E, hidden]
    Param bias_;   // [E] f32

    [[nodiscard]] Tensor unbiased_choice(Context& cx, const Tensor& x) const;
};

}  // namespace fathom
