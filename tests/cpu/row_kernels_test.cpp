// The row kernels of both instruction sets: accuracy against double, conversions against the scalar ones, equal bits.
#include <cmath>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/tensors.h"

namespace fathom {
namespace {

TEST(RowKernels, ExpIsWithinOneUlpAndExactAtItsEnds) {
    for (const Isa isa : isas()) {
        const Kernels& kernels = kernels_of(isa);
        std::vector<float> x, y;
        for (int i = 0; i <= 200000; ++i) x.push_back(-87.3f + 0.00088f * static_cast<float>(i));
        x.resize(200000);
        y.resize(x.size());
        kernels.exp_scaled(y.data(), x.data(), 0, 1, static_cast<int64_t>(x.size()));
        double worst = 0;
        for (size_t i = 0; i < x.size(); ++i) {
            const double exact = std::exp(static_cast<double>(x[i]));
            const double ulp =
                std::nextafter(static_cast<float>(exact), std::numeric_limits<float>::infinity()) - static_cast<float>(exact);
            worst = std::max(worst, std::abs(y[i] - exact) / ulp);
        }
        EXPECT_LT(worst, 1.0) << name_of(isa);
        const float infinity = std::numeric_limits<float>::infinity();
        const std::vector<float> ends = {-infinity, -1000, 0, 1000, infinity, std::numeric_limits<float>::quiet_NaN(),
                                         88.7228f};
        std::vector<float> at(ends.size());
        kernels.exp_scaled(at.data(), ends.data(), 0, 1, static_cast<int64_t>(ends.size()));
        EXPECT_EQ(at[0], 0);
        EXPECT_EQ(at[1], 0);
        EXPECT_EQ(at[2], 1);
        EXPECT_EQ(at[3], infinity);
        EXPECT_EQ(at[4], infinity);
        EXPECT_TRUE(std::isnan(at[5]));
        EXPECT_TRUE(std::isfinite(at[6]));
    }
}

template <class T>
void expect_widening_of_every_code(const Kernels& kernels, DType type, int codes) {
    std::vector<T> x(static_cast<size_t>(codes));
    for (int i = 0; i < codes; ++i) x[static_cast<size_t>(i)].bits = static_cast<decltype(T::bits)>(i);
    std::vector<float> y(x.size());
    for (const int64_t skip : {0, 5}) {  // the second time through the kernel for partial vectors too
        const int64_t n = codes - 2 * skip;
        kernels.widen(y.data(), x.data() + skip, type, n);
        for (int64_t i = 0; i < n; ++i) {
            const auto expected = static_cast<float>(x[static_cast<size_t>(i + skip)]);
            const float got = y[static_cast<size_t>(i)];
            if (std::isnan(expected)) {
                EXPECT_TRUE(std::isnan(got)) << i + skip;
            } else {
                EXPECT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(expected)) << i + skip;
            }
        }
    }
}

TEST(RowKernels, WidenEveryCodeAsTheScalarConversionsDo) {
    for (const Isa isa : isas()) {
        expect_widening_of_every_code<BFloat16>(kernels_of(isa), DType::kBF16, 65536);
        expect_widening_of_every_code<Float16>(kernels_of(isa), DType::kF16, 65536);
        expect_widening_of_every_code<Float8E4M3>(kernels_of(isa), DType::kF8E4M3, 256);
    }
}

TEST(RowKernels, NarrowToNearestEvenAsTheScalarConversionsDo) {
    std::vector<float> x = {0.0f,  -0.0f,   1.0f,   1.00390625f, 1.01171875f, 65504, 65520,
                            1e38f, 3.4e38f, -1e-7f, 6e-8f,       3e-8f,       1e-40f};
    Rng rng(1);
    for (int i = 0; i < 100000; ++i) {
        const float value = std::bit_cast<float>(static_cast<uint32_t>(rng.below(uint64_t{1} << 32)));
        if (!std::isnan(value)) x.push_back(value);
    }
    for (const Isa isa : isas()) {
        std::vector<BFloat16> b(x.size());
        std::vector<Float16> h(x.size());
        kernels_of(isa).narrow(b.data(), DType::kBF16, x.data(), static_cast<int64_t>(x.size()));
        kernels_of(isa).narrow(h.data(), DType::kF16, x.data(), static_cast<int64_t>(x.size()));
        for (size_t i = 0; i < x.size(); ++i) {
            EXPECT_EQ(b[i].bits, BFloat16(x[i]).bits) << x[i];
            EXPECT_EQ(h[i].bits, Float16(x[i]).bits) << x[i];
        }
    }
}

TEST(RowKernels, SumSixteenPartialsInAFixedTree) {
    Tensors make(2);
    for (const int64_t n : {1, 7, 16, 33, 250}) {
        const Tensor a = make.random({n}), b = make.random({n});
        float part[16] = {};
        for (int64_t i = 0; i < n; ++i) part[i % 16] = std::fma(a.as<float>()[i], b.as<float>()[i], part[i % 16]);
        for (int width = 8; width > 0; width /= 2)
            for (int i = 0; i < width; ++i) part[i] += part[i + width];
        for (const Isa isa : isas()) EXPECT_EQ(kernels_of(isa).dot(a.as<float>(), b.as<float>(), n), part[0]) << n;
    }
}

TEST(CpuOps, GiveTheSameBytesOnEveryInstructionSetAndAnyThreads) {
    Tensors make(3);
    const int64_t n = 150, d = 77;
    const Tensor x = make.random({n, d}), dy = make.random({n, d}), w = make.random({d}), y = make.empty(DType::kF32, {n, d});
    const Tensor dx = make.empty(DType::kF32, {n, d}), dw = make.empty(DType::kF32, {d}), sum = make.empty(DType::kF64, {1});
    const Tensor loss = make.empty(DType::kF32, {n}), targets = make.ints(std::vector<int32_t>(n, 3));
    const Tensor bf16 = make.empty(DType::kBF16, {n, d}), m = make.empty(DType::kF32, {n, d}),
                 v = make.empty(DType::kF32, {n, d});
    const Tensor rounded_m = make.empty(DType::kBF16, {n, d}), rounded_v = make.empty(DType::kBF16, {n, d});
    const Tensor table = make.empty(DType::kF32, {9, d}), rows = make.ints([] {
        std::vector<int32_t> at;
        for (int i = 0; i < 150; ++i) at.push_back(i * i % 9);
        return at;
    }());
    expect_same_bytes_everywhere({y, dx, dw, sum}, [&](CpuOps& ops) {
        ops.rms_norm(y, x, w, 1e-6);
        ops.rms_norm_backward(dx, dw, dy, x, w, 1e-6);
        ops.add_bias_backward(dw, dy);
        ops.square_norm(sum, x);
    });
    expect_same_bytes_everywhere({y, dx, table}, [&](CpuOps& ops) {
        ops.swiglu(y, x, dy);
        ops.swiglu_backward(dx, dx, dy, x, y);
        ops.gather_rows_backward(table, dy, rows);
    });
    expect_same_bytes_everywhere({loss, dx}, [&](CpuOps& ops) {
        ops.cross_entropy(loss, x, targets);
        ops.cross_entropy_backward(dx, x, targets, 0.25);
    });
    expect_same_bytes_everywhere({bf16, y, m, v}, [&](CpuOps& ops) {
        ops.copy(y, x);
        ops.adamw(bf16, y, m, v, dy, {.learning_rate = 1e-2, .step = 3});
    });
    expect_same_bytes_everywhere({y, rounded_m, rounded_v}, [&](CpuOps& ops) {
        ops.copy(y, x);
        ops.fill(rounded_m, 0.01);
        ops.fill(rounded_v, 0.02);
        ops.adamw(y, y, rounded_m, rounded_v, dy, {.learning_rate = 1e-2, .step = 3});
    });
}

TEST(CpuOps, RouteTheSameOnEveryInstructionSetAndAnyThreads) {
    Tensors make(4);
    const int64_t n = 130, experts = 40, chosen = 6;
    const Tensor logits = make.random({n, experts}), bias = make.random({experts}, 0.1), dweights = make.random({n, chosen});
    const Tensor indices = make.empty(DType::kI32, {n, chosen}), weights = make.empty(DType::kF32, {n, chosen});
    const Tensor scores = make.empty(DType::kF32, {n, experts}), dlogits = make.empty(DType::kF32, {n, experts});
    const Tensor dscores = make.empty(DType::kF32, {n, experts}), loss = make.empty(DType::kF32, {1});
    const Tensor cu = make.ints({0, 30, 30, 130});
    const RouteRule v3{ScoringFunc::kSigmoid, TopkMethod::kNoauxTc, 8, 4, true, 2.5};
    const RouteRule v2{ScoringFunc::kSoftmax, TopkMethod::kGroupLimitedGreedy, 8, 3, false, 16};
    for (const RouteRule& rule : {v3, v2})
        expect_same_bytes_everywhere({indices, weights, scores, dlogits, dscores, loss}, [&](CpuOps& ops) {
            ops.route(indices, weights, scores, logits, rule.norm_topk_prob ? bias : Tensor(), rule);
            for (const bool per_sequence : {false, true})
                ops.balance_loss(loss, dscores, scores, indices, cu, {BalanceLossKind::kExpert, 0.01, per_sequence, 1, 1});
            ops.route_backward(dlogits, dweights, dscores, scores, indices, rule);
        });
}

}  // namespace
}  // namespace fathom
