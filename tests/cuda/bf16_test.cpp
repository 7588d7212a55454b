// The back end with bf16 activations: results are those of the reference on the same numbers, rounded. Shapes with packed rows
// of multiples of eight run on tensor cores, the others on the kernels of f32.
#include <array>

#include "cuda/plugin.h"
#include "ops/op_test.h"

namespace fathom {
namespace {

std::vector<Backend> bf16_backends() {
    std::array<char, 512> message{};
    static const std::shared_ptr<Ops> ops(fathom_cuda_open(0, true, message.data(), message.size()));
    if (ops == nullptr) return {};
    return {{"CudaBf16", [](int /*threads*/) { return ops; }}};
}

class Bf16 : public OpTest {
protected:
    static constexpr double kF32Sums = 2e-5;  // of f32 results, relative to the largest

    int64_t features() { return coin() ? 8 * integer(1, 40) : width(); }
    Pair activation(const Dims& dims, double spread = 1) { return random(dims, spread, 0, DType::kBF16, coin()); }
    Pair result(const Dims& dims) { return empty(dims, DType::kBF16); }
    WeightPair matrix(int64_t out, int64_t in) {
        const Pair w = random({out, in}, 1, 0, DType::kBF16, coin());
        return {w.device, w.reference};
    }
};
INSTANTIATE_TEST_SUITE_P(, Bf16, testing::ValuesIn(bf16_backends()), backend_name);

TEST_P(Bf16, ProductsAreTheReferencesRounded) {
    for (int i = 0; i < 3 * kCases; ++i) {
        const int64_t n = coin() ? rows() : integer(1, 700), in = features(), out = features();
        const WeightPair w = matrix(out, in);
        const Pair x = activation({n, in}), dy = activation({n, out}), y = result({n, out}), dx = result({n, in});
        const Pair exact = empty({n, out}), dw = random({out, in}, 1, 0, DType::kF32, true);
        run([&](Ops& o, Side at) {
            o.matmul(at(y), at(x), at(w));
            o.matmul(at(exact), at(x), at(w));
            o.matmul_dgrad(at(dx), at(dy), at(w));
            o.matmul_wgrad(at(dw), at(dy), at(x));
        });
        expect_close(y);
        expect_close(exact, kF32Sums / tolerance(DType::kF32));
        expect_close(dx);
        expect_close(dw, kF32Sums / tolerance(DType::kF32));
    }
}

TEST_P(Bf16, ALongGradientSumIsSplitAndWhole) {
    const Pair dy = random({5000, 40}, 1, 0, DType::kBF16, true), x = random({5000, 72}, 1, 0, DType::kBF16, true);
    const Pair dw = random({40, 72}, 1, 0, DType::kF32, true), exact_dy = random({5000, 16}, 1, 0, DType::kF32, true);
    const Pair router = random({16, 72}, 1, 0, DType::kF32, true);
    run([&](Ops& o, Side at) {
        o.matmul_wgrad(at(dw), at(dy), at(x));
        o.matmul_wgrad(at(router), at(exact_dy), at(x));
    });
    expect_close(dw, kF32Sums / tolerance(DType::kF32));
    expect_close(router, kF32Sums / tolerance(DType::kF32));
}

TEST_P(Bf16, GroupsMayBeEmptyOrHoldOneRow) {
    for (int i = 0; i < 2 * kCases; ++i) {
        const int64_t m = coin() ? rows() : integer(1, 900), experts = integer(1, 40), in = features(), out = features();
        std::vector<WeightPair> w;
        std::vector<Pair> dw;
        for (int64_t e = 0; e < experts; ++e) {
            w.push_back(matrix(out, in));
            dw.push_back(random({out, in}, 1, 0, DType::kF32, true));
        }
        const Pair bounds = offsets(m, experts), x = activation({m, in}), dy = activation({m, out});
        const Pair y = result({m, out}), dx = result({m, in});
        run([&](Ops& o, Side at) {
            o.grouped_matmul(at(y), at(x), at(w), at(bounds));
            o.grouped_dgrad(at(dx), at(dy), at(w), at(bounds));
            o.grouped_wgrad(at(dw), at(dy), at(x), at(bounds));
        });
        expect_close(y);
        expect_close(dx);
        for (const Pair& one : dw) expect_close(one, kF32Sums / tolerance(DType::kF32));
    }
}

TEST_P(Bf16, EveryHeadHasItsOwnMatrix) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = rows(), heads = integer(1, 7), in = features(), out = features();
        std::vector<WeightPair> w;
        for (int64_t j = 0; j < heads; ++j) w.push_back(matrix(out, in));
        const Pair x = activation({n, heads, in}), dy = activation({n, heads, out});
        const Pair y = result({n, heads, out}), dx = result({n, heads, in});
        run([&](Ops& o, Side at) {
            o.batched_matmul(at(y), at(x), at(w));
            o.batched_dgrad(at(dx), at(dy), at(w));
        });
        expect_close(y);
        expect_close(dx);
    }
}

TEST_P(Bf16, ARowsBitsDoNotDependOnItsBatch) {
    const int64_t n = 333, in = 320, out = 264;
    const Pair x = random({n, in}, 1, 0, DType::kBF16, true), y = empty({n, out}), parts = empty({n, out});
    const WeightPair w = weight(out, in, DType::kBF16);
    const Pair packed = random({out, in}, 1, 0, DType::kBF16, true);
    for (const Weight& matrix : {w.device, Weight(packed.device)}) {
        ops->matmul(y.device, x.device, matrix);
        for (const auto& [begin, end] : {std::pair{0, 1}, {1, 40}, {40, 41}, {41, 300}, {300, 333}})
            ops->matmul(parts.device.slice(0, begin, end), x.device.slice(0, begin, end), matrix);
        EXPECT_EQ(device_values(parts).data, device_values(y).data);
    }
}

TEST_P(Bf16, NormRopeAndSwigluAreTheReferencesRounded) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = rows(), d = 2 * width();
        const Pair x = activation({n, d}), dy = activation({n, d}), w = random({d}, 1, 0, DType::kBF16), y = result({n, d});
        const Pair dx = result({n, d}), dw = random({d}), z = result({n, d}), dgate = result({n, d}), dup = result({n, d});
        const Pair rotated = activation({n, 3, d}), table = random({n, d});
        run([&](Ops& o, Side at) {
            o.rms_norm(at(y), at(x), at(w), 1e-6);
            o.rms_norm_backward(at(dx), at(dw), at(dy), at(x), at(w), 1e-6);
            o.swiglu(at(z), at(x), at(dy));
            o.swiglu_backward(at(dgate), at(dup), at(dy), at(x), at(x));
            o.rope(at(rotated), at(table), RopePairing::kInterleaved, false);
        });
        for (const Pair& one : {y, dx, z, dgate, dup, rotated}) expect_close(one);
        expect_close(dw, kF32Sums / tolerance(DType::kF32));
    }
}

TEST_P(Bf16, AttentionAndItsGradientsFollowTheirFormulas) {
    for (int i = 0; i < kCases; ++i) {
        std::vector<int64_t> cu{0};
        int64_t longest = 0;
        for (int64_t s = integer(0, 4); s >= 0; --s) {
            const int64_t length = coin() ? integer(1, 3) : integer(1, 200);
            cu.push_back(cu.back() + length);
            longest = std::max(longest, length);
        }
        const int64_t n = cu.back(), h = integer(1, 5), d_k = 8 * integer(1, 16), shared = coin() ? 0 : 8 * integer(1, 8),
                      d_v = 8 * integer(1, 16);
        const double scale = 1 / std::sqrt(static_cast<double>(d_k + shared));
        const auto packed = [&](const Dims& dims) { return random(dims, 1, 0, DType::kBF16, true); };
        const Pair q = packed({n, h, d_k + shared}), k = packed({n, h, d_k}), v = packed({n, h, d_v}),
                   dout = packed({n, h, d_v});
        const Pair k_shared = shared > 0 ? packed({n, shared}) : Pair(), o = result({n, h, d_v}), lse = empty({n, h});
        const Pair dq = result({n, h, d_k + shared}), dk = result({n, h, d_k}), dv = result({n, h, d_v});
        const Pair dk_shared = shared > 0 ? result({n, shared}) : Pair();
        const Pair bounds = ints({static_cast<int64_t>(cu.size())}, cu);
        const SpansPair spans{{bounds.device, bounds.device, {}, longest, longest},
                              {bounds.reference, bounds.reference, {}, longest, longest}};
        run([&](Ops& to, Side at) {
            to.attention(at(o), at(lse), at(q), at(k), at(k_shared), at(v), at(spans), scale);
            to.attention_backward(at(dq), at(dk), at(dk_shared), at(dv), at(dout), at(q), at(k), at(k_shared), at(v), at(o),
                                  at(lse), at(spans), scale);
        });
        expect_close(o, 2);
        expect_close(lse, 100);
        for (const Pair& gradient : {dq, dk, dv}) expect_close(gradient, 4);
        if (shared > 0) expect_close(dk_shared, 4);
    }
}

}  // namespace
}  // namespace fathom
