// Mixture of experts (DeepSeekMoE 3): shared experts serve every token, K of E fine-grained experts are chosen per token.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "nn/batch.h"
#include "nn/mlp.h"
#include "nn/router.h"

namespace fathom {

struct MoeConfig {
    int64_t layer = 0;  // index into Batch::replay and Batch::record
    RouterConfig router;
    int64_t moe_intermediate_size = 0;
    int64_t n_shared_experts = 0;  // stored as one MLP of n_shared_experts * moe_intermediate_size
};

// Counters of one layer since the trainer last cleared them; absent outside training.
struct MoeStatistics {
    Tensor expert_load;   // [E] i64: tokens each expert served
    Tensor balance_loss;  // [1]: sum of the auxiliary losses
};

class Moe {
public:
    // m = n K rows, sorted by expert.
    struct Saved {
        Tensor x;  // [n, hidden]
        Router::Choice choice;
        Tensor offsets, source, slot;  // [E + 1], [m], [n, K]: see Ops::sort_by_expert
        Tensor gate, up;               // [m, width]
        Tensor y;                      // [m, hidden]: what each expert said, not yet weighted
        Mlp::Saved shared;
    };

    explicit Moe(const MoeConfig& config);
    void visit(const Names& names);

    // y = h + Moe(x), all [n, hidden]; backward of Moe(x) alone.
    void forward(Context& cx, const Tensor& y, const Tensor& h, const Tensor& x, const Batch& batch, Saved* saved) const;
    [[nodiscard]] Tensor backward(Context& cx, const Tensor& dy, const Batch& batch, const Saved& saved) const;

    [[nodiscard]] Router& router() { return router_; }
    // Gate, up and down of expert e.
    [[nodiscard]] std::array<Param*, 3> expert(int64_t e) {
        const auto i = static_cast<size_t>(e);
        return {&gate_[i], &up_[i], &down_[i]};
    }
    MoeStatistics statistics;

private:
    MoeConfig config_;
    Router router_;
    std::vector<Param> gate_, up_, down_;  // E each: [width, hidden], [width, hidden], [hidden, width]
    Mlp shared_;

    [[nodiscard]] Saved answers(Context& cx, const Tensor& x, const Batch& batch, bool keep) const;
};

}  // namespace fathom
