#include "quant/integer_groups.h"

#include <gtest/gtest.h>
#include <cmath>
#include <vector>

#include "base/rng.h"
#include "quant/awq.h"
#include "quant/gptq.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

constexpr GroupFormat kFormats[] = {{8, 0, true},  {8, 32, true},  {8, 64, true},  {8, 128, true}, {4, 32, true},
                                    {4, 64, true}, {4, 128, true}, {4, 32, false}, {4, 64, false}, {4, 128, false}};

std::vector<float> normal(int64_t n, uint64_t seed) {
    Rng rng(seed);
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = static_cast<float>(rng.normal());
    return x;
}

// Inputs whose columns hang together: some are large, and neighbours say nearly the same.
std::vector<float> inputs(int64_t rows, int64_t columns, uint64_t seed) {
    std::vector<float> x = normal(rows * columns, seed);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < columns; ++k) {
            float& value = x[static_cast<size_t>(i * columns + k)];
            if (k % 4 != 0) value = 0.8f * x[static_cast<size_t>(i * columns + k - 1)] + 0.4f * value;
            if (k % 16 < 4) value *= k % 4 == 0 ? 8.0f : 1.0f;
        }
    return x;
}

std::vector<float> gram_of(const std::vector<float>& x, int64_t columns) {
    const auto rows = static_cast<int64_t>(x.size()) / columns;
    std::vector<float> g(static_cast<size_t>(columns * columns));
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t a = 0; a < columns; ++a)
            for (int64_t b = 0; b < columns; ++b)
                g[static_cast<size_t>(a * columns + b)] +=
                    x[static_cast<size_t>(i * columns + a)] * x[static_cast<size_t>(i * columns + b)];
    return g;
}

// e gram e^T for the row that `to` has become, its columns divided by `s` where that is given.
double loss(const Weight& to, const std::vector<float>& w, const std::vector<float>& gram, const std::vector<float>& s = {}) {
    std::vector<float> e(w.size());
    decode_row(e.data(), to, 0);
    double sum = 0;
    for (size_t i = 0; i < e.size(); ++i) e[i] = (s.empty() ? e[i] : e[i] / s[i]) - w[i];
    for (size_t i = 0; i < e.size(); ++i)
        for (size_t k = 0; k < e.size(); ++k)
            sum += static_cast<double>(e[i]) * static_cast<double>(gram[i * e.size() + k]) * static_cast<double>(e[k]);
    return sum;
}

TEST(IntegerGroups, ComeBackWithinHalfAStep) {
    const std::vector<float> x = normal(256, 1);
    for (const GroupFormat& format : kFormats) {
        Arena arena("test", Buffer::host, 1 << 16);
        const Weight to = allocate_groups(arena, 3, 256, format);
        encode_groups(to, 1, x.data());
        std::vector<float> y(256);
        decode_row(y.data(), to, 1);
        const int64_t size = format.group_size > 0 ? format.group_size : 256;
        for (int64_t g = 0; g < 256 / size; ++g) {
            const auto* from = x.data() + g * size;
            const auto [low, high] = std::minmax_element(from, from + size);
            const float steps = format.bits == 8 ? 255 : 15;
            const float step = format.symmetric ? 2 * std::max(-*low, *high) / steps : (*high - *low) / steps;
            // The largest number of a symmetric group lies half a step beyond the last code; scales are bf16.
            for (int64_t k = 0; k < size; ++k)
                EXPECT_LE(std::fabs(y[static_cast<size_t>(g * size + k)] - from[k]),
                          0.5f * step + 0.005f * std::fabs(from[k]) + 1e-6f)
                    << format.bits << " bits, group " << format.group_size;
        }
    }
}

TEST(IntegerGroups, ZerosAndTinyAndOneSidedNumbersSurvive) {
    for (const GroupFormat& format : kFormats) {
        Arena arena("test", Buffer::host, 1 << 16);
        const Weight to = allocate_groups(arena, 1, 128, format);
        std::vector<float> x(128), y(128);
        for (const float value : {0.0f, 1e-30f, -1e-42f}) {
            std::ranges::fill(x, value);
            encode_groups(to, 0, x.data());
            decode_row(y.data(), to, 0);
            for (const float one : y) EXPECT_NEAR(one, value, 1e-30);
        }
        for (size_t k = 0; k < 128; ++k) x[k] = 5.0f + 0.01f * static_cast<float>(k);
        encode_groups(to, 0, x.data());
        decode_row(y.data(), to, 0);
        for (size_t k = 0; k < 128; ++k) EXPECT_NEAR(y[k], x[k], 0.5);
    }
}

TEST(IntegerGroups, ACostMakesWhatMattersLoseLess) {
    const std::vector<float> w = normal(128, 3), gram = gram_of(inputs(256, 128, 4), 128);
    for (const GroupFormat& format : {GroupFormat{4, 64, true}, GroupFormat{4, 64, false}}) {
        Arena arena("test", Buffer::host, 1 << 16);
        const Weight nearest = allocate_groups(arena, 1, 128, format), best = allocate_groups(arena, 1, 128, format);
        encode_groups(nearest, 0, w.data());
        encode_groups(best, 0, w.data(), {nullptr, gram.data(), 128});
        EXPECT_LT(loss(best, w, gram), loss(nearest, w, gram));
    }
}

TEST(IntegerGroups, AScaledRowHasTheSameCodes) {
    const std::vector<float> x = normal(64, 5);
    Arena arena("test", Buffer::host, 1 << 16);
    const Weight to = allocate_groups(arena, 2, 64, {4, 32, false, DType::kF32});
    for (const int64_t row : {0, 1}) encode_groups(to, row, x.data());
    scale_row(to, 1, 0.25f);
    std::vector<float> a(64), b(64);
    decode_row(a.data(), to, 0);
    decode_row(b.data(), to, 1);
    for (size_t k = 0; k < 64; ++k) EXPECT_EQ(b[k], 0.25f * a[k]);
}

TEST(Gptq, TheFactorIsThatOfTheInverse) {
    constexpr int64_t kN = 24;
    ThreadPool pool(2);
    const std::vector<float> gram = gram_of(inputs(64, kN, 6), kN);
    const GptqPlan plan = gptq_plan(gram.data(), kN, 0.01, pool);
    const std::vector<float>& u = plan.factor;
    const auto gram_at = [&](int64_t i, int64_t j) {
        return gram[static_cast<size_t>(plan.order[static_cast<size_t>(i)] * kN + plan.order[static_cast<size_t>(j)])];
    };
    for (int64_t i = 1; i < kN; ++i) EXPECT_GE(gram_at(i - 1, i - 1), gram_at(i, i));
    double mean = 0;
    for (int64_t i = 0; i < kN; ++i) mean += static_cast<double>(gram[static_cast<size_t>(i * kN + i)]) / kN;
    // (U^T U) (gram + damp) = I
    for (int64_t i = 0; i < kN; ++i) {
        for (int64_t j = 0; j < kN; ++j) {
            double sum = 0;
            for (int64_t k = 0; k < kN; ++k) {
                double inverse = 0;
                for (int64_t r = 0; r <= std::min(i, k); ++r)
                    inverse += static_cast<double>(u[static_cast<size_t>(r * kN + i)]) *
                               static_cast<double>(u[static_cast<size_t>(r * kN + k)]);
                sum += inverse * (static_cast<double>(gram_at(k, j)) + (k == j ? 0.01 * mean : 0));
            }
            EXPECT_NEAR(sum, i == j ? 1 : 0, 2e-4);
            EXPECT_TRUE(j >= i || u[static_cast<size_t>(i * kN + j)] == 0);
        }
    }
}

TEST(Gptq, LosesLessThanRoundingToNearest) {
    constexpr int64_t kColumns = 128;
    ThreadPool pool(2);
    const std::vector<float> gram = gram_of(inputs(512, kColumns, 7), kColumns);
    const GptqPlan plan = gptq_plan(gram.data(), kColumns, 0.01, pool);
    for (const GroupFormat& format : {GroupFormat{4, 32, true}, GroupFormat{4, 64, false}, GroupFormat{8, 0, true}}) {
        double nearest = 0, gptq = 0;
        for (uint64_t row = 0; row < 8; ++row) {
            const std::vector<float> w = normal(kColumns, 20 + row);
            Arena arena("test", Buffer::host, 1 << 16);
            const Weight a = allocate_groups(arena, 1, kColumns, format), b = allocate_groups(arena, 1, kColumns, format);
            encode_groups(a, 0, w.data());
            std::vector<float> left = w;
            gptq_encode(b, 0, left, plan);
            nearest += loss(a, w, gram);
            gptq += loss(b, w, gram);
        }
        EXPECT_LT(gptq, 0.7 * nearest) << format.bits;
    }
}

TEST(Gptq, InputsThatWereNeverActiveAreRoundedToNearest) {
    ThreadPool pool(1);
    const std::vector<float> gram(32 * 32, 0.0f), w = normal(32, 8);
    const GptqPlan plan = gptq_plan(gram.data(), 32, 0.01, pool);
    Arena arena("test", Buffer::host, 1 << 16);
    const Weight a = allocate_groups(arena, 1, 32, {4, 32, true}), b = allocate_groups(arena, 1, 32, {4, 32, true});
    encode_groups(a, 0, w.data());
    std::vector<float> left = w;
    gptq_encode(b, 0, left, plan);
    std::vector<float> x(32), y(32);
    decode_row(x.data(), a, 0);
    decode_row(y.data(), b, 0);
    EXPECT_EQ(x, y);
}

TEST(Awq, ScalesLoseLessThanNone) {
    constexpr int64_t kColumns = 128, kRows = 16;
    ThreadPool pool(2);
    const std::vector<float> x = inputs(512, kColumns, 9), gram = gram_of(x, kColumns), w = normal(kRows * kColumns, 10);
    std::vector<float> mean(kColumns);
    for (size_t i = 0; i < x.size(); ++i) mean[i % kColumns] += std::fabs(x[i]) / 512;
    const GroupFormat format{4, 64, true};
    const AwqRows rows{kRows, kColumns, [&w](int64_t i, float* to) { std::copy_n(w.data() + i * kColumns, kColumns, to); }};
    const std::vector<float> s = awq_scales(rows, mean, gram.data(), format, 8, pool);
    double with = 0, without = 0;
    for (int64_t i = 0; i < kRows; ++i) {
        const std::vector<float> row(w.data() + i * kColumns, w.data() + (i + 1) * kColumns);
        std::vector<float> scaled = row;
        for (size_t k = 0; k < scaled.size(); ++k) scaled[k] *= s[k];
        Arena arena("test", Buffer::host, 1 << 16);
        const Weight a = allocate_groups(arena, 1, kColumns, format), b = allocate_groups(arena, 1, kColumns, format);
        encode_groups(a, 0, row.data());
        encode_groups(b, 0, scaled.data());
        without += loss(a, row, gram);
        with += loss(b, row, gram, s);
    }
    EXPECT_LT(with, 0.9 * without);
}

}  // namespace
}  // namespace fathom
