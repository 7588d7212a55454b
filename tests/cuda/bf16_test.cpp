// The back end with bf16 activations: results are those of the reference on the same numbers, rounded. Shapes with packed rows
// of multiples of eight run on tensor cores, the others on the kernels of f32. On a Hopper card the wider ones, and experts
// that lie one after the other, run on the kernels of that card; FATHOM_CUDA_PORTABLE=1 takes the portable ones.
#include <array>
#include <span>
#include <vector>

#include "cuda/bf16_backend.h"
#include "ops/op_test.h"

namespace fathom {
namespace {

std::vector<Backend> bf16_backends() { return bf16_backend<false>("CudaBf16"); }

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
// Matrices as a model's memory has them: at equal distances, which may be longer than a matrix.
struct Matrices {
    std::vector<WeightPair> weights;
    std::vector<Pair> gradients;
};

class Bf16Hopper : public Bf16 {
protected:
    static constexpr int kFewCases = 8;

    int64_t wide() { return 8 * integer(8, 60); }
    Matrices matrices(int64_t count, int64_t out, int64_t in) {
        const int64_t step = out + (coin() ? 8 * integer(1, 5) : 0);
        const Pair w = random({count * step, in}, 1, 0, DType::kBF16, true),
                   dw = random({count * step, in}, 1, 0, DType::kF32, true);
        Matrices all;
        for (int64_t i = 0; i < count; ++i) {
            const auto cut = [&](const Pair& x) {
                Pair part{x.device.slice(0, i * step, i * step + out), x.reference.slice(0, i * step, i * step + out), {}};
                part.whole = part.device;
                return part;
            };
            const Pair weight = cut(w);
            all.weights.push_back({weight.device, weight.reference});
            all.gradients.push_back(cut(dw));
        }
        return all;
    }
    Pair packed(const Dims& dims, DType type = DType::kBF16) { return random(dims, 1, 0, type, true); }
    void expect_gated_as_alone(int64_t m, int64_t experts, int64_t in, int64_t width);
};
INSTANTIATE_TEST_SUITE_P(, Bf16Hopper, testing::ValuesIn(bf16_backends()), backend_name);

INSTANTIATE_TEST_SUITE_P(, Bf16, testing::ValuesIn(bf16_backends()), backend_name);

TEST_P(Bf16, ProductsAreTheReferencesRounded) {
    for (int i = 0; i < 3 * kCases; ++i) {
        const int64_t n = coin() ? rows() : integer(1, 700), in = features(), out = features();
        const WeightPair w = matrix(out, in);
        const Pair x = activation({n, in}), dy = activation({n, out}), y = result({n, out}), dx = result({n, in});
        const Pair exact = empty({n, out}), dw = random({out, in}, 1, 0, DType::kF32, true);
        const bool first = coin();  // = in place of +=
        run([&](Ops& o, Side at) {
            o.matmul(at(y), at(x), at(w));
            o.matmul(at(exact), at(x), at(w));
            o.matmul_dgrad(at(dx), at(dy), at(w));
            first ? o.first_matmul_wgrad(at(dw), at(dy), at(x)) : o.matmul_wgrad(at(dw), at(dy), at(x));
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
    const bool first = coin();  // = in place of +=
    run([&](Ops& o, Side at) {
        first ? o.first_matmul_wgrad(at(dw), at(dy), at(x)) : o.matmul_wgrad(at(dw), at(dy), at(x));
        first ? o.first_matmul_wgrad(at(router), at(exact_dy), at(x)) : o.matmul_wgrad(at(router), at(exact_dy), at(x));
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
        const bool first = coin();  // = in place of +=
        run([&](Ops& o, Side at) {
            o.grouped_matmul(at(y), at(x), at(w), at(bounds));
            o.grouped_dgrad(at(dx), at(dy), at(w), at(bounds));
            first ? o.first_grouped_wgrad(at(dw), at(dy), at(x), at(bounds))
                  : o.grouped_wgrad(at(dw), at(dy), at(x), at(bounds));
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

TEST_P(Bf16, HeadsMayBeginBetweenTwoPairs) {
    const int64_t n = 70, in = 64, out = 65;
    std::vector<WeightPair> w;
    for (int64_t j = 0; j < 2; ++j) w.push_back(matrix(out, in));
    const Pair x = random({n, 2, in}, 1, 0, DType::kBF16, true), all = random({n, 3, out}, 1, 0, DType::kBF16, true);
    run([&](Ops& o, Side at) { o.batched_matmul(at(all).slice(1, 1, 3), at(x), at(w)); });
    expect_close(all);
}

class Bf16Deterministic : public Bf16 {};
INSTANTIATE_TEST_SUITE_P(, Bf16Deterministic, testing::ValuesIn(bf16_backend<true>("CudaBf16Deterministic")), backend_name);

TEST_P(Bf16Deterministic, ARowsBitsDoNotDependOnItsBatch) {
    const int64_t n = 333, in = 320, out = 264;
    const auto space = [&] { return random({n, out}, 1, 0, DType::kF32, true); };
    const Pair x = random({n, in}, 1, 0, DType::kBF16, true), y = space(), parts = space();
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
            o.rope(at(rotated), at(rotated), at(table), RopePairing::kInterleaved, false);
        });
        for (const Pair& one : {y, dx, z, dgate, dup, rotated}) expect_close(one);
        expect_close(dw, kF32Sums / tolerance(DType::kF32));
    }
}

TEST_P(Bf16, ASumAndItsNormAreThoseOfTwoOpsToTheBit) {
    for (const int64_t d : {24, 40, 1000, 2048, 2051, 9000}) {
        const int64_t n = rows();
        const Pair a = activation({n, d}), b = activation({n, d}), w = random({d}, 1, 0, DType::kBF16);
        const auto space = [&] { return random({n, d}, 1, 0, DType::kBF16, true); };
        const Pair sum = space(), y = space(), sum_alone = space(), y_alone = space();
        ops->add_rms_norm(y.device, sum.device, a.device, b.device, w.device, 1e-6);
        ops->add(sum_alone.device, a.device, b.device);
        ops->rms_norm(y_alone.device, sum_alone.device, w.device, 1e-6);
        EXPECT_EQ(device_values(sum).data, device_values(sum_alone).data) << d;
        EXPECT_EQ(device_values(y).data, device_values(y_alone).data) << d;
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

TEST_P(Bf16Hopper, WideProductsAreTheReferencesRounded) {
    for (int i = 0; i < 2 * kFewCases; ++i) {
        const int64_t n = coin() ? rows() : integer(1, 500), in = wide(), out = wide();
        const Matrices m = matrices(1, out, in);
        const Pair x = packed({n, in}), dy = packed({n, out}), y = packed({n, out}), dx = packed({n, in});
        const Pair exact = packed({n, out}, DType::kF32);
        const bool first = coin();  // = in place of +=
        run([&](Ops& o, Side at) {
            o.matmul(at(y), at(x), at(m.weights[0]));
            o.matmul(at(exact), at(x), at(m.weights[0]));
            o.matmul_dgrad(at(dx), at(dy), at(m.weights[0]));
            first ? o.first_matmul_wgrad(at(m.gradients[0]), at(dy), at(x)) : o.matmul_wgrad(at(m.gradients[0]), at(dy), at(x));
        });
        expect_close(y);
        expect_close(exact, kF32Sums / tolerance(DType::kF32));
        expect_close(dx);
        expect_close(m.gradients[0], kF32Sums / tolerance(DType::kF32));
    }
}

TEST_P(Bf16Hopper, ExpertsInARowMayBeEmptyOrHoldOneRow) {
    for (int i = 0; i < 2 * kFewCases; ++i) {
        const int64_t m = coin() ? rows() : integer(1, 600), experts = i == 0 ? 150 : integer(1, 40), in = wide(), out = wide();
        const Matrices all = matrices(experts, out, in);
        const Pair bounds = offsets(m, experts), x = packed({m, in}), dy = packed({m, out}), y = packed({m, out}),
                   dx = packed({m, in});
        const bool first = coin();  // = in place of +=
        run([&](Ops& o, Side at) {
            o.grouped_matmul(at(y), at(x), at(all.weights), at(bounds));
            o.grouped_dgrad(at(dx), at(dy), at(all.weights), at(bounds));
            first ? o.first_grouped_wgrad(at(all.gradients), at(dy), at(x), at(bounds))
                  : o.grouped_wgrad(at(all.gradients), at(dy), at(x), at(bounds));
        });
        expect_close(y);
        expect_close(dx);
        for (const Pair& one : all.gradients) expect_close(one, kF32Sums / tolerance(DType::kF32));
    }
}

// Gate, up and SwiGLU in one call against the same one by one, for `m` rows in all and for one matrix alone.
void Bf16Hopper::expect_gated_as_alone(int64_t m, int64_t experts, int64_t in, int64_t width) {
    const Matrices all = matrices(experts, 2 * width, in);
    const Pair bounds = offsets(m, experts), x = packed({m, in}), both = packed({m, 2 * width});
    const Pair y = packed({m, width}), alone = packed({m, width});
    const Tensor gate = both.device.slice(1, 0, width), up = both.device.slice(1, width, 2 * width);
    std::vector<Weight> weights;
    for (const WeightPair& w : all.weights) weights.push_back(w.device);
    ops->grouped_matmul_swiglu(y.device, both.device, x.device, weights, bounds.device);
    ops->grouped_matmul(both.device, x.device, weights, bounds.device);
    ops->swiglu(alone.device, gate, up);
    EXPECT_EQ(device_values(y).data, device_values(alone).data) << m << " rows, " << experts << " experts";
    ops->matmul_swiglu(y.device, both.device, x.device, weights[0]);
    ops->matmul(both.device, x.device, weights[0]);
    ops->swiglu(alone.device, gate, up);
    EXPECT_EQ(device_values(y).data, device_values(alone).data) << m << " rows";
}

TEST_P(Bf16Hopper, GateAndUpInOneProductAreThoseOfTwoOpsToTheBit) {
    for (int i = 0; i < 2 * kFewCases; ++i)
        expect_gated_as_alone(coin() ? rows() : integer(1, 900), integer(1, 40), wide(), wide());
}

// Up to 8 rows, 32 of experts, have kernels of their own; widths that leave the last block warps without a column, and the last
// step lanes without a channel.
TEST_P(Bf16Hopper, GateAndUpOfFewRowsAreThoseOfTwoOpsToTheBit) {
    for (const int64_t m : {1, 2, 3, 4, 5, 8, 9, 31, 32, 33})
        for (const auto& [in, width] : {std::pair<int64_t, int64_t>{520, 264}, {2056, 20}, {8, 12}})
            expect_gated_as_alone(m, integer(1, 12), in, width);
}

// A dense product's tiles are as wide as suits its shape, those of experts always 256 columns.
TEST_P(Bf16Hopper, TilesOfEveryWidthGiveTheSameBits) {
    constexpr int64_t kIn = 320;
    for (const auto& [m, out] : {std::pair<int64_t, int64_t>{640, 3648},
                                 {640, 2048},
                                 {1152, 2048},
                                 {128, 5632},
                                 {1024, 5632},
                                 {1152, 5632},
                                 {1152, 3648},
                                 {300, 1096}}) {
        const Matrices all = matrices(1, out, kIn);
        const Pair bounds = offsets(m, 1), x = packed({m, kIn}), y = packed({m, out}), expert = packed({m, out});
        const Weight& w = all.weights[0].device;
        ops->matmul(y.device, x.device, w);
        ops->grouped_matmul(expert.device, x.device, std::span(&w, 1), bounds.device);
        EXPECT_EQ(device_values(y).data, device_values(expert).data) << m << " rows, " << out << " columns";
    }
}

// Tiles beside each other for the small groups, above each other for 256 rows of a larger one among them.
TEST_P(Bf16Hopper, ALargeExpertAmongSmallOnesHasTheBitsOfItsOwnProduct) {
    const std::vector<int64_t> ends{0, 50, 250, 250, 550, 590, 719, 783, 823, 888, 1016, 1400, 1440, 1480, 1520};
    const int64_t m = ends.back(), experts = static_cast<int64_t>(ends.size()) - 1;
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{1408, 200}, {264, 1096}, {2048, 72}}) {
        const Matrices all = matrices(experts, out, in);
        const Pair bounds = ints({experts + 1}, ends), x = packed({m, in}), dy = packed({m, out});
        const Pair y = packed({m, out}), dx = packed({m, in}), y_alone = packed({m, out}), dx_alone = packed({m, in});
        std::vector<Weight> weights;
        for (const WeightPair& w : all.weights) weights.push_back(w.device);
        ops->grouped_matmul(y.device, x.device, weights, bounds.device);
        ops->grouped_dgrad(dx.device, dy.device, weights, bounds.device);
        for (int64_t e = 0; e < experts; ++e) {
            const int64_t first = ends[e], last = ends[e + 1];
            if (first == last) continue;
            const Pair whole = ints({2}, {0, last - first});
            const auto rows = [&](const Pair& t) { return t.device.slice(0, first, last); };
            ops->grouped_matmul(rows(y_alone), rows(x), std::span(&weights[e], 1), whole.device);
            ops->grouped_dgrad(rows(dx_alone), rows(dy), std::span(&weights[e], 1), whole.device);
        }
        EXPECT_EQ(device_values(y).data, device_values(y_alone).data) << out << " columns";
        EXPECT_EQ(device_values(dx).data, device_values(dx_alone).data) << in << " columns";
    }
}

TEST_P(Bf16Hopper, HeadsInARowHaveTheirOwnMatrices) {
    for (int i = 0; i < kFewCases; ++i) {
        const int64_t n = rows(), heads = integer(1, 7), in = wide(), out = wide();
        const Matrices all = matrices(heads, out, in);
        const Pair x = packed({n, heads, in}), dy = packed({n, heads, out}), y = packed({n, heads, out}),
                   dx = packed({n, heads, in});
        run([&](Ops& o, Side at) {
            o.batched_matmul(at(y), at(x), at(all.weights));
            o.batched_dgrad(at(dx), at(dy), at(all.weights));
        });
        expect_close(y);
        expect_close(dx);
    }
}

TEST_P(Bf16Hopper, ALongGradientSumRepeatsAndIsWhole) {
    for (const int64_t n : {4096, 5000, 2049}) {
        const Pair dy = packed({n, 136}), x = packed({n, 264}), dw = packed({136, 264}, DType::kF32);
        const Pair again = values({136, 264}, device_values(dw).data, DType::kF32, true);
        run([&](Ops& o, Side at) { o.matmul_wgrad(at(dw), at(dy), at(x)); });
        ops->matmul_wgrad(again.device, dy.device, x.device);
        expect_close(dw, kF32Sums / tolerance(DType::kF32));
        EXPECT_EQ(device_values(again).data, device_values(dw).data);
    }
}

// MLA's own sizes: 128 channels per head and 64 that all heads share, or 192 per head; chunks behind a prefix.
class Bf16Mla : public Bf16Hopper {
protected:
    struct Case {
        Pair q, k, k_shared, v, dout, o, lse, dq, dk, dk_shared, dv, cu_q, cu_k;
        int64_t longest_q = 0, longest_k = 0;
        double scale = 1 / std::sqrt(192.0);

        [[nodiscard]] SpansPair spans() const {
            return {{cu_q.device, cu_k.device, {}, longest_q, longest_k},
                    {cu_q.reference, cu_k.reference, {}, longest_q, longest_k}};
        }
    };

    Case draw(const std::vector<std::pair<int64_t, int64_t>>& lengths, int64_t h, bool shared) {
        std::vector<int64_t> cu_q{0}, cu_k{0};
        Case c;
        for (const auto& [queries, keys] : lengths) {
            cu_q.push_back(cu_q.back() + queries);
            cu_k.push_back(cu_k.back() + keys);
            c.longest_q = std::max(c.longest_q, queries);
            c.longest_k = std::max(c.longest_k, keys);
        }
        const int64_t n = cu_q.back(), m = cu_k.back(), d_k = shared ? 128 : 192;
        c.q = packed({n, h, 192}), c.k = packed({m, h, d_k}), c.v = packed({m, h, 128}), c.dout = packed({n, h, 128});
        c.o = packed({n, h, 128}), c.lse = packed({n, h}, DType::kF32), c.dq = packed({n, h, 192});
        c.dk = packed({m, h, d_k}), c.dv = packed({m, h, 128});
        if (shared) c.k_shared = packed({m, 64}), c.dk_shared = packed({m, 64});
        c.cu_q = ints({static_cast<int64_t>(cu_q.size())}, cu_q);
        c.cu_k = ints({static_cast<int64_t>(cu_k.size())}, cu_k);
        return c;
    }

    static void attend(Ops& to, Side at, const Case& c) {
        to.attention(at(c.o), at(c.lse), at(c.q), at(c.k), at(c.k_shared), at(c.v), at(c.spans()), c.scale);
        to.attention_backward(at(c.dq), at(c.dk), at(c.dk_shared), at(c.dv), at(c.dout), at(c.q), at(c.k), at(c.k_shared),
                              at(c.v), at(c.o), at(c.lse), at(c.spans()), c.scale);
    }
};
INSTANTIATE_TEST_SUITE_P(, Bf16Mla, testing::ValuesIn(bf16_backends()), backend_name);

TEST_P(Bf16Mla, AttentionAndItsGradientsFollowTheirFormulas) {
    for (int i = 0; i < kFewCases; ++i) {
        std::vector<std::pair<int64_t, int64_t>> lengths;
        for (int64_t s = integer(0, 4); s >= 0; --s) {
            const int64_t queries = coin() ? integer(1, 3) : integer(1, 300);
            lengths.emplace_back(queries, queries + (coin() ? 0 : integer(1, 200)));
        }
        const Case c = draw(lengths, integer(1, 3), coin());
        run([&](Ops& to, Side at) { attend(to, at, c); });
        expect_close(c.o, 2);
        expect_close(c.lse, 100);
        for (const Pair& gradient : {c.dq, c.dk, c.dv}) expect_close(gradient, 4);
        if (c.k_shared.device) expect_close(c.dk_shared, 4);
    }
}

TEST_P(Bf16Mla, AbsorbedAttentionReadsThePagesOfACache) {
    constexpr int64_t kBlock = 64, kKey = 576, kLatent = 512;
    for (int i = 0; i < kFewCases; ++i) {
        const int64_t h = std::array{8, 16, 128}[static_cast<size_t>(i % 3)], sequences = integer(1, h == 128 ? 2 : 6);
        std::vector<int64_t> cu_q{0}, cu_k{0};
        int64_t longest_q = 0, longest_k = 0;
        for (int64_t s = 0; s < sequences; ++s) {
            const int64_t queries = coin() ? 1 : integer(1, 4), keys = queries + (coin() ? integer(0, 70) : integer(0, 300));
            cu_q.push_back(cu_q.back() + queries);
            cu_k.push_back(cu_k.back() + keys);
            longest_q = std::max(longest_q, queries);
            longest_k = std::max(longest_k, keys);
        }
        const int64_t width = (longest_k + kBlock - 1) / kBlock + integer(0, 2), blocks = sequences * width + integer(0, 3);
        const Pair table = ints({sequences, width}, distinct(sequences * width, blocks)), queries = ints({sequences + 1}, cu_q),
                   keys = ints({sequences + 1}, cu_k);
        const Pair q = packed({cu_q.back(), h, kKey}), pages = packed({blocks, kBlock, kKey});
        const Pair u = packed({cu_q.back(), h, kLatent}), lse = packed({cu_q.back(), h}, DType::kF32);
        const SpansPair spans{{queries.device, keys.device, table.device, longest_q, longest_k},
                              {queries.reference, keys.reference, table.reference, longest_q, longest_k}};
        run([&](Ops& to, Side at) { to.latent_attention(at(u), at(lse), at(q), at(pages), at(spans), 0.07); });
        expect_close(u, 2);
        expect_close(lse, 100);
    }
}

TEST_P(Bf16Mla, ASequencesBitsDoNotDependOnTheOthersAndRepeat) {
    const std::vector<std::pair<int64_t, int64_t>> lengths{{1, 1}, {130, 130}, {7, 200}, {257, 300}, {64, 64}};
    const Case c = draw(lengths, 2, true);
    const auto forward_and_backward = [&](const Case& one) { attend(*ops, Side(true), one); };
    const auto results = [&](const Case& one) {
        std::vector<std::vector<double>> all;
        for (const Pair& x : {one.o, one.lse, one.dq, one.dk, one.dv, one.dk_shared}) all.push_back(device_values(x).data);
        return all;
    };
    forward_and_backward(c);
    const auto first = results(c);
    forward_and_backward(c);
    EXPECT_EQ(results(c), first);

    int64_t q0 = 0, k0 = 0;
    for (const auto& [queries, keys] : lengths) {  // each alone, in the same memory
        const auto cut = [](Pair x, int64_t begin, int64_t count) {
            x.device = x.whole = x.device.slice(0, begin, begin + count);
            return x;
        };
        Case one = c;
        for (Pair* x : {&one.q, &one.dout, &one.o, &one.lse, &one.dq}) *x = cut(*x, q0, queries);
        for (Pair* x : {&one.k, &one.v, &one.k_shared, &one.dk, &one.dv, &one.dk_shared}) *x = cut(*x, k0, keys);
        one.cu_q = ints({2}, {0, queries});
        one.cu_k = ints({2}, {0, keys});
        one.longest_q = queries, one.longest_k = keys;
        forward_and_backward(one);
        q0 += queries, k0 += keys;
    }
    EXPECT_EQ(results(c), first);
}

}  // namespace
}  // namespace fathom
