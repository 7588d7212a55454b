// docs/decisions/001, bit by bit: chains of fused multiply-adds, and rows that depend on nothing but themselves.
#include "ops/op_test.h"

namespace fathom {
namespace {

class OneArithmeticOps : public OpTest {
protected:
    // A call on the rows [begin, end) of its tensors, and where its results lie.
    struct RowOp {
        std::string name;
        std::vector<Pair> results;
        std::function<void(Ops&, int64_t begin, int64_t end)> call;
    };
    static constexpr int64_t kRows = 67, kWidth = 45;

    static Tensor cut(const Pair& x, int64_t begin, int64_t end) { return x.device.slice(0, begin, end); }
    std::vector<RowOp> row_ops();
    std::vector<RowOp> product_ops();
    std::vector<RowOp> expert_ops();

    // Runs `op` over consecutive pieces of the rows and returns the results.
    std::vector<std::vector<double>> results(Ops& on, const RowOp& op, const std::vector<int64_t>& bounds) {
        for (size_t i = 0; i + 1 < bounds.size(); ++i) op.call(on, bounds[i], bounds[i + 1]);
        std::vector<std::vector<double>> all;
        for (const Pair& x : op.results) all.push_back(device_values(x).data);
        return all;
    }
    std::vector<RowOp> all_row_ops() {
        std::vector<RowOp> all;
        for (auto& some : {row_ops(), product_ops(), expert_ops()}) all.insert(all.end(), some.begin(), some.end());
        return all;
    }
};
using OneArithmetic = OneArithmeticOps;
INSTANTIATE_TEST_SUITE_P(, OneArithmetic, testing::ValuesIn(backends()), backend_name);

std::vector<OneArithmeticOps::RowOp> OneArithmeticOps::row_ops() {
    const Pair x = random({kRows, kWidth}), other = random({kRows, kWidth}), w = random({kWidth}), y = empty({kRows, kWidth});
    const Pair dx = empty({kRows, kWidth}), dw = random({kWidth}), loss = empty({kRows}), heads = random({kRows, 3, kWidth});
    const Pair positions = ints({kRows}, distinct(kRows, 5000)), frequency = random({10}, 0.1, 0.5), table = empty({kRows, 20});
    const Pair targets = ints({kRows}, std::vector<int64_t>(kRows, 7));
    return {
        {"rms_norm", {y}, [=](Ops& o, int64_t b, int64_t e) { o.rms_norm(cut(y, b, e), cut(x, b, e), w.device, 1e-6); }},
        {"rms_norm_backward",
         {dx},
         [=](Ops& o, int64_t b, int64_t e) {
             o.rms_norm_backward(cut(dx, b, e), dw.device, cut(other, b, e), cut(x, b, e), w.device, 1e-6);
         }},
        {"rope_table",
         {table},
         [=](Ops& o, int64_t b, int64_t e) { o.rope_table(cut(table, b, e), cut(positions, b, e), frequency.device, 1); }},
        {"sum_heads", {y}, [=](Ops& o, int64_t b, int64_t e) { o.sum_heads(cut(y, b, e), cut(heads, b, e)); }},
        {"swiglu", {y}, [=](Ops& o, int64_t b, int64_t e) { o.swiglu(cut(y, b, e), cut(x, b, e), cut(other, b, e)); }},
        {"swiglu_backward",
         {y, dx},
         [=](Ops& o, int64_t b, int64_t e) {
             o.swiglu_backward(cut(y, b, e), cut(dx, b, e), cut(other, b, e), cut(x, b, e), cut(other, b, e));
         }},
        {"cross_entropy",
         {loss, dx},
         [=](Ops& o, int64_t b, int64_t e) {
             o.cross_entropy(cut(loss, b, e), cut(x, b, e), cut(targets, b, e));
             o.cross_entropy_backward(cut(dx, b, e), cut(x, b, e), cut(targets, b, e), 0.3);
         }},
        {"token_logprob",
         {loss, y, dx},
         [=](Ops& o, int64_t b, int64_t e) {
             o.token_logprob(cut(loss, b, e), {}, cut(x, b, e), cut(targets, b, e), {}, 0.8);
             o.token_logprob_backward(cut(dx, b, e), cut(x, b, e), cut(targets, b, e), {}, cut(loss, b, e), 0.8);
             o.kl_divergence_backward(cut(y, b, e), cut(x, b, e), cut(other, b, e), cut(targets, b, e), true, 0.3);
         }},
    };
}

std::vector<OneArithmeticOps::RowOp> OneArithmeticOps::product_ops() {
    std::vector<RowOp> all;
    const Pair x = random({kRows, 133}), dy = random({kRows, 77}), heads = random({kRows, 2, 20});
    for (const DType type : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
        const WeightPair w = weight(77, 133, type);
        const std::vector<Weight> per_head{weight(19, 20, type).device, weight(19, 20, type).device};
        const Pair y = empty({kRows, 77}), dx = empty({kRows, 133}), y_heads = empty({kRows, 2, 19});
        const std::string of = " of " + std::string(name_of(type));
        all.push_back(
            {"matmul" + of, {y}, [=](Ops& o, int64_t b, int64_t e) { o.matmul(cut(y, b, e), cut(x, b, e), w.device); }});
        all.push_back({"matmul_dgrad" + of, {dx}, [=](Ops& o, int64_t b, int64_t e) {
                           o.matmul_dgrad(cut(dx, b, e), cut(dy, b, e), w.device);
                       }});
        all.push_back({"batched_matmul" + of, {y_heads}, [=](Ops& o, int64_t b, int64_t e) {
                           o.batched_matmul(cut(y_heads, b, e), cut(heads, b, e), per_head);
                       }});
    }
    return all;
}

std::vector<OneArithmeticOps::RowOp> OneArithmeticOps::expert_ops() {
    const Pair logits = random({kRows, 16}), indices = empty({kRows, 4}, DType::kI32), weights = empty({kRows, 4});
    const Pair scores = empty({kRows, 16}), dweights = random({kRows, 4}), dlogits = empty({kRows, 16});
    const Pair slot = ints({kRows, 4}, distinct(kRows * 4, kRows * 4)), answers = random({kRows * 4, kWidth});
    const Pair y = empty({kRows, kWidth}), bias = random({16}, 0.1);
    const RouteRule rule{ScoringFunc::kSigmoid, TopkMethod::kNoauxTc, 4, 2, true, 2.5};
    RouteRule softmax;
    softmax.topk_method = TopkMethod::kGreedy;
    return {
        {"route",
         {indices, weights, scores, dlogits},
         [=](Ops& o, int64_t b, int64_t e) {
             o.route(cut(indices, b, e), cut(weights, b, e), cut(scores, b, e), cut(logits, b, e), bias.device, rule);
             o.route_backward(cut(dlogits, b, e), cut(dweights, b, e), {}, cut(scores, b, e), cut(indices, b, e), rule);
         }},
        {"softmax route",
         {indices, weights, scores},
         [=](Ops& o, int64_t b, int64_t e) {
             o.route(cut(indices, b, e), cut(weights, b, e), cut(scores, b, e), cut(logits, b, e), {}, softmax);
         }},
        {"combine",
         {y},
         [=](Ops& o, int64_t b, int64_t e) {
             o.combine(cut(y, b, e), answers.device, cut(slot, b, e), cut(dweights, b, e), {});
         }},
    };
}

TEST_P(OneArithmetic, AProductsElementIsOneChainOfFusedMultiplyAdds) {
    ReferenceOps<float> chain;
    for (const DType type : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
        for (int i = 0; i < kCases; ++i) {
            const int64_t n = rows(), in = coin() ? width() : integer(1, 400), out = width();
            const Pair x = random({n, in}), dy = random({n, out}), y = empty({n, out}), dx = empty({n, in});
            const Pair dw = random({out, in}, 1, 0, DType::kF32, true);
            const WeightPair w = weight(out, in, type);
            ops->matmul(y.device, x.device, w.device);
            ops->matmul_dgrad(dx.device, dy.device, w.device);
            ops->matmul_wgrad(dw.device, dy.device, x.device);
            chain.matmul(y.reference, x.reference, w.reference);
            chain.matmul_dgrad(dx.reference, dy.reference, w.reference);
            chain.matmul_wgrad(dw.reference, dy.reference, x.reference);
            for (const Pair& result : {y, dx, dw}) expect_equal(result);
        }
    }
}

TEST_P(OneArithmetic, ARowHasTheSameBitsInEveryBatch) {
    std::vector<int64_t> one_by_one;
    for (int64_t i = 0; i <= kRows; ++i) one_by_one.push_back(i);
    for (const RowOp& op : all_row_ops()) {
        const auto together = results(*ops, op, {0, kRows});
        EXPECT_EQ(results(*ops, op, one_by_one), together) << op.name;
        EXPECT_EQ(results(*ops, op, {0, 3, 10, 11, 43, kRows}), together) << op.name;
    }
}

TEST_P(OneArithmetic, ThreadsDoNotChangeRows) {
    for (const int threads : {1, 3}) {
        const auto others = GetParam().make(threads);
        for (const RowOp& op : all_row_ops())
            EXPECT_EQ(results(*ops, op, {0, kRows}), results(*others, op, {0, kRows}))
                << op.name << ", " << threads << " threads";
    }
}

TEST_P(OneArithmetic, ThreadsDoNotChangeSumsOverRows) {
    const int64_t n = 257, d = 50;
    const auto bytes = [&](int threads) {
        rng = Rng(7);
        const auto on = GetParam().make(threads);
        const auto packed = [&](const Dims& dims) { return random(dims, 1, 0, DType::kF32, true); };
        const Pair x = random({n, d}), dy = random({n, d}), w = random({d}), dx = empty({n, d}), dw = constant({d}, 1);
        const Pair table = constant({9, d}, 0), index = choices(n, 1, 9), sum = constant({1}, 0, DType::kF64);
        const Pair matrix = packed({d, d}), bias = constant({d}, 0);
        const Pair scores = random({n, 8}, 0.1, 1), chosen = choices(n, 2, 8), loss = constant({1}, 0),
                   dscores = constant({n, 8}, 0);
        on->rms_norm_backward(dx.device, dw.device, dy.device, x.device, w.device, 1e-6);
        on->add_bias_backward(bias.device, dy.device);
        on->gather_rows_backward(table.device, dy.device, index.device.view({n}));
        on->matmul_wgrad(matrix.device, dy.device, x.device);
        on->square_norm(sum.device, matrix.device);
        on->balance_loss(loss.device, dscores.device, scores.device, chosen.device, ints({2}, {0, n}).device, {});
        std::vector<std::vector<double>> all;
        for (const Pair& result : {dw, bias, table, matrix, sum, loss, dscores}) all.push_back(device_values(result).data);
        return all;
    };
    const auto one = bytes(1);
    EXPECT_EQ(bytes(2), one);
    EXPECT_EQ(bytes(3), one);
    EXPECT_EQ(bytes(1), one);
}

TEST_P(OneArithmetic, ThreadsDoNotChangeAttentionAndItsGradients) {
    const int64_t n = 150, h = 3, d = 20, shared = 6;
    const auto bytes = [&](int threads) {
        rng = Rng(8);
        const auto on = GetParam().make(threads);
        const Pair cu = ints({4}, {0, 70, 71, n}), q = random({n, h, d + shared}), k = random({n, h, d}), v = random({n, h, d});
        const Pair k_shared = random({n, shared}), o = empty({n, h, d}), lse = empty({n, h}), dout = random({n, h, d});
        const Pair dq = empty({n, h, d + shared}), dk = empty({n, h, d}), dv = empty({n, h, d}), dk_shared = empty({n, shared});
        const Spans spans{cu.device, cu.device, {}, 79, 79};
        on->attention(o.device, lse.device, q.device, k.device, k_shared.device, v.device, spans, 0.2);
        on->attention_backward(dq.device, dk.device, dk_shared.device, dv.device, dout.device, q.device, k.device,
                               k_shared.device, v.device, o.device, lse.device, spans, 0.2);
        std::vector<std::vector<double>> all;
        for (const Pair& result : {o, lse, dq, dk, dv, dk_shared}) all.push_back(device_values(result).data);
        return all;
    };
    const auto one = bytes(1);
    EXPECT_EQ(bytes(2), one);
    EXPECT_EQ(bytes(3), one);
}

TEST_P(OneArithmetic, EveryBackEndGivesTheSameBits) {
    const auto first = backends().front().make(2);
    for (const RowOp& op : all_row_ops()) EXPECT_EQ(results(*ops, op, {0, kRows}), results(*first, op, {0, kRows})) << op.name;
}

}  // namespace
}  // namespace fathom
