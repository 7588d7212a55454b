// The oracle under oath: every backward of the reference agrees with dual numbers pushed through its forward.
#include "reference/reference_ops.h"

#include <gtest/gtest.h>

#include <vector>

#include "nn/adjoint.h"

namespace fathom {
namespace {

template <class T>
Tensor like(AdjointSide<T>& side, const Tensor& x) {
    return x.rank == 1   ? side.params.allocate(dtype_of<T>(), {x.dim(0)})
           : x.rank == 2 ? side.params.allocate(dtype_of<T>(), {x.dim(0), x.dim(1)})
                         : side.params.allocate(dtype_of<T>(), {x.dim(0), x.dim(1), x.dim(2)});
}

template <class T>
Tensor zeros_like(AdjointSide<T>& side, const Tensor& x) {
    const Tensor y = like(side, x);
    side.ops.fill(y, 0);
    return y;
}

TEST(Reference, SumsAndGathers) {
    expect_adjoint([](auto& side) {
        const Tensor table = side.input({6, 4}), bias = side.input({4}), rows = side.cx.ints(std::vector<int32_t>{5, 0, 5, 2});
        const Tensor y = side.cx.empty({4, 4}), dtable = zeros_like(side, table), dbias = zeros_like(side, bias);
        side.ops.gather_rows(y, table, rows);
        side.ops.add_bias(y, bias);
        const Tensor dy = side.output(y);
        side.ops.gather_rows_backward(dtable, dy, rows);
        side.ops.add_bias_backward(dbias, dy);
        side.gradient(table, dtable);
        side.gradient(bias, dbias);
    });
}

TEST(Reference, RmsNorm) {
    expect_adjoint([](auto& side) {
        const Tensor x = side.input({5, 7}), w = side.input({7}, 1), y = side.cx.empty({5, 7});
        side.ops.rms_norm(y, x, w, 1e-3);
        const Tensor dx = like(side, x), dw = zeros_like(side, w);
        side.ops.rms_norm_backward(dx, dw, side.output(y), x, w, 1e-3);
        side.gradient(x, dx);
        side.gradient(w, dw);
    });
}

TEST(Reference, Rope) {
    for (const RopePairing pairing : {RopePairing::kInterleaved, RopePairing::kHalves}) {
        expect_adjoint([&](auto& side) {
            const Tensor x = side.input({3, 2, 8}), y = like(side, x), table = side.cx.empty({3, 8});
            const Tensor frequency = side.params.allocate(DType::kF32, {4});
            side.ops.fill(frequency, 0.3);
            side.ops.rope_table(table, side.cx.ints(std::vector<int32_t>{1, 5, 100}), frequency, 1);
            side.ops.rope(y, x, table, pairing, false);
            const Tensor dy = side.output(y);
            side.ops.rope(dy, dy, table, pairing, true);
            side.gradient(x, dy);
        });
    }
}

TEST(Reference, Products) {
    expect_adjoint([](auto& side) {
        const Tensor x = side.input({6, 5}), offsets = side.cx.ints(std::vector<int32_t>{0, 4, 4, 6});
        std::vector<Tensor> w, dw;
        std::vector<Weight> weights;
        for (int e = 0; e < 3; ++e) {
            w.push_back(side.input({3, 5}));
            weights.emplace_back(w.back());
            dw.push_back(zeros_like(side, w.back()));
        }
        const Tensor y = side.cx.empty({6, 3}), dx = like(side, x);
        side.ops.grouped_matmul(y, x, weights, offsets);
        const Tensor dy = side.output(y);
        side.ops.grouped_dgrad(dx, dy, weights, offsets);
        side.ops.grouped_wgrad(dw, dy, x, offsets);
        side.gradient(x, dx);
        for (size_t e = 0; e < 3; ++e) side.gradient(w[e], dw[e]);
    });
}

TEST(Reference, HeadProducts) {
    expect_adjoint([](auto& side) {
        const Tensor x = side.input({4, 2, 5}), w = side.cx.empty({6, 5}), y = side.cx.empty({4, 2, 3}), dx = like(side, x);
        for (int64_t i = 0; i < 6; ++i)
            side.ops.fill(w.slice(0, i, i + 1).slice(1, i % 5, 5), 0.1 * static_cast<double>(i + 1));
        for (int64_t i = 0; i < 6; ++i) side.ops.fill(w.slice(0, i, i + 1).slice(1, 0, i % 5), 0.5);
        const std::vector<Weight> heads{Weight(w).rows(0, 3), Weight(w).rows(3, 6)};
        side.ops.batched_matmul(y, x, heads);
        side.ops.batched_dgrad(dx, side.output(y), heads);
        side.gradient(x, dx);
    });
}

TEST(Reference, Attention) {
    expect_adjoint([](auto& side) {
        const Tensor q = side.input({7, 3, 6}), k = side.input({9, 3, 4}), k_shared = side.input({9, 2}),
                     v = side.input({9, 3, 5});
        const Tensor o = side.cx.empty({7, 3, 5}), lse = side.cx.empty({7, 3});
        Spans spans;
        spans.cu_q = side.cx.ints(std::vector<int32_t>{0, 2, 3, 7});
        spans.cu_k = side.cx.ints(std::vector<int32_t>{0, 4, 5, 9});
        side.ops.attention(o, lse, q, k, k_shared, v, spans, 0.4);
        const Tensor dout = side.output(o), dq = like(side, q), dk = like(side, k), ds = like(side, k_shared),
                     dv = like(side, v);
        side.ops.attention_backward(dq, dk, ds, dv, dout, q, k, k_shared, v, o, lse, spans, 0.4);
        side.gradient(q, dq);
        side.gradient(k, dk);
        side.gradient(k_shared, ds);
        side.gradient(v, dv);
    });
}

TEST(Reference, RoutingWeightsAndScores) {
    for (const ScoringFunc func : {ScoringFunc::kSoftmax, ScoringFunc::kSigmoid}) {
        for (const bool norm : {false, true}) {
            expect_adjoint([&](auto& side) {
                const RouteRule rule{func, TopkMethod::kGreedy, 1, 1, norm, 2.5};
                const Tensor logits = side.input({4, 6}), scores = side.cx.empty({4, 6}), weights = side.cx.empty({4, 3});
                const Tensor indices = side.cx.empty_ints({4, 3}), dlogits = like(side, logits);
                side.ops.route(indices, weights, scores, logits, {}, rule);
                const Tensor dweights = side.output(weights), dscores = side.output(scores);
                side.ops.route_backward(dlogits, dweights, dscores, scores, indices, rule);
                side.gradient(logits, dlogits);
            });
        }
    }
}

TEST(Reference, BalanceLosses) {
    for (const BalanceLossKind kind : {BalanceLossKind::kExpert, BalanceLossKind::kDevice, BalanceLossKind::kCommunication,
                                       BalanceLossKind::kSwitch, BalanceLossKind::kGshard, BalanceLossKind::kSquared}) {
        for (const bool per_sequence : {false, true}) {
            expect_adjoint([&](auto& side) {
                const Tensor scores = side.input({7, 6}, 2, 0.1), loss = side.cx.zeros({1}), dscores = zeros_like(side, scores);
                const Tensor indices =
                    side.cx.ints(std::vector<int32_t>{0, 1, 2, 5, 4, 3, 0, 5, 0, 2, 1, 0, 3, 1}).view({7, 2});
                const BalanceLoss rule{kind, 0.7, per_sequence, 3, 2};
                side.ops.balance_loss(loss, dscores, scores, indices, side.cx.ints(std::vector<int32_t>{0, 2, 7}), rule);
                side.loss(loss);
                side.gradient(scores, dscores);
            });
        }
    }
}

TEST(Reference, Combine) {
    expect_adjoint([](auto& side) {
        const Tensor x = side.input({6, 4}), weights = side.input({3, 2}), base = side.input({3, 4}), y = side.cx.empty({3, 4});
        const Tensor slot = side.cx.ints(std::vector<int32_t>{5, 0, 1, 4, 2, 3}).view({3, 2});
        side.ops.combine(y, x, slot, weights, base);
        const Tensor dx = like(side, x), dweights = like(side, weights), dy = side.output(y);
        side.ops.combine_backward(dx, dweights, dy, x, slot, weights);
        side.gradient(base, dy);
        side.gradient(x, dx);
        side.gradient(weights, dweights);
    });
}

TEST(Reference, Swiglu) {
    expect_adjoint([](auto& side) {
        const Tensor gate = side.input({4, 5}), up = side.input({4, 5}), y = side.cx.empty({4, 5});
        side.ops.swiglu(y, gate, up);
        const Tensor dgate = like(side, gate), dup = like(side, up);
        side.ops.swiglu_backward(dgate, dup, side.output(y), gate, up);
        side.gradient(gate, dgate);
        side.gradient(up, dup);
    });
}

TEST(Reference, CrossEntropy) {
    expect_adjoint([](auto& side) {
        const Tensor logits = side.input({4, 6}, 0, 3), loss = side.cx.empty({4}), dlogits = like(side, logits);
        const Tensor targets = side.cx.ints(std::vector<int32_t>{2, -1, 0, 5});
        side.ops.cross_entropy(loss, logits, targets);
        side.loss(loss);
        side.ops.cross_entropy_backward(dlogits, logits, targets, 1);
        side.gradient(logits, dlogits);
    });
}

TEST(Reference, TokenLogprob) {
    for (const bool masked : {false, true}) {
        expect_adjoint([masked](auto& side) {
            const Tensor logits = side.input({4, 6}, 0, 3), logprob = side.cx.empty({4}), dlogits = like(side, logits);
            const Tensor targets = side.cx.ints(std::vector<int32_t>{2, -1, 0, 5});
            const Tensor words = side.cx.ints(std::vector<int32_t>{0b000111, 0b000001, 0b111110, 0b100000});
            const Tensor allowed = masked ? words.view({4, 1}) : Tensor();
            side.ops.token_logprob(logprob, {}, logits, targets, allowed, 0.7);
            side.ops.token_logprob_backward(dlogits, logits, targets, allowed, side.output(logprob), 0.7);
            side.gradient(logits, dlogits);
        });
    }
}

TEST(Reference, KlDivergence) {
    for (const bool reverse : {false, true}) {
        expect_adjoint([reverse](auto& side) {
            const Tensor logits = side.input({4, 6}, 0, 2), teacher = side.cx.empty({4, 6}), loss = side.cx.empty({4});
            const Tensor dlogits = like(side, logits), targets = side.cx.ints(std::vector<int32_t>{2, -1, 0, 5});
            side.ops.fill(teacher, 0);
            for (int64_t c = 0; c < 6; ++c) side.ops.fill(teacher.slice(1, c, c + 1), 0.5 * static_cast<double>(c));
            side.ops.kl_divergence(loss, logits, teacher, targets, reverse);
            side.loss(loss);
            side.ops.kl_divergence_backward(dlogits, logits, teacher, targets, reverse, 1);
            side.gradient(logits, dlogits);
        });
    }
}

}  // namespace
}  // namespace fathom
