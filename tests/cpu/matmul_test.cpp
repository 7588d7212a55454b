// Every product against a loop of std::fma in the order that docs/decisions/001 fixes, with ==.
#include "cpu/cpu_ops.h"

#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/isa.h"

namespace fathom {
namespace {

// Random numbers, sizes and memory of one test.
class Source {
public:
    explicit Source(uint64_t seed) : state_(seed) {}

    int64_t integer(int64_t low, int64_t high) {  // both included
        return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1));
    }
    float value() { return static_cast<float>(static_cast<int64_t>(next() >> 40) - (1 << 23)) / static_cast<float>(1 << 22); }

    // [rows, cols] of random values; rows lie `cols + gap` apart.
    Tensor matrix(DType type, int64_t rows, int64_t cols, int64_t gap = 0) {
        Tensor t(memory(rows * (cols + gap) * size_of(type)), type, {rows, cols + gap});
        for (int64_t i = 0; i < t.size(); ++i) set(t, i, value());
        return t.slice(1, 0, cols);
    }
    Tensor batch(int64_t rows, int64_t heads, int64_t cols) {
        return matrix(DType::kF32, rows, heads * cols, integer(0, 1) * 5).view({rows, heads, cols});
    }
    Weight weight(DType type, int64_t out, int64_t in) {
        if (type != DType::kF8E4M3) return matrix(type, out, in, integer(0, 1) * 3);
        const int64_t row0 = integer(0, 1) * integer(0, 300);
        const auto blocks = [](int64_t size) { return (size + kFp8Block - 1) / kFp8Block; };
        Weight whole(matrix(type, row0 + out + integer(0, 9), in), matrix(DType::kF32, blocks(row0 + out + 9), blocks(in)));
        return whole.rows(row0, row0 + out);
    }
    // [experts + 1] offsets of m rows; experts with none and with one row are common.
    Tensor offsets(int64_t experts, int64_t m) {
        Tensor t(memory((experts + 1) * 4), DType::kI32, {experts + 1});
        int64_t at = 0;
        for (int64_t e = 0; e < experts; ++e) {
            t.as<int32_t>()[e] = static_cast<int32_t>(at);
            at = std::min(m, at + (integer(0, 1) == 0 ? integer(0, 1) : integer(0, 2 * m / experts)));
        }
        t.as<int32_t>()[experts] = static_cast<int32_t>(m);
        return t;
    }

private:
    uint64_t next() {  // splitmix64
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    // Memory ends where the view ends, so that a sanitizer sees reads beyond it.
    void* memory(int64_t bytes) { return memory_.emplace_back(new std::byte[static_cast<size_t>(bytes)]).get(); }
    static void set(const Tensor& t, int64_t i, float x) {
        switch (t.dtype) {
            case DType::kBF16:
                t.as<BFloat16>()[i] = BFloat16(x);
                break;
            case DType::kF16:
                t.as<Float16>()[i] = Float16(x);
                break;
            case DType::kF8E4M3:
                t.as<Float8E4M3>()[i] = Float8E4M3(x * x * x);  // subnormal codes too
                break;
            default:
                t.as<float>()[i] = x;
        }
    }

    uint64_t state_;
    std::vector<std::unique_ptr<std::byte[]>> memory_;
};

// Weights as f32, [out, in] contiguous.
std::vector<float> decoded(const Weight& w) {
    std::vector<float> result;
    for (int64_t i = 0; i < w.out_features(); ++i)
        for (int64_t j = 0; j < w.in_features(); ++j) {
            const int64_t at = i * w.codes.stride[0] + j;
            if (w.codes.dtype == DType::kBF16)
                result.push_back(static_cast<float>(w.codes.as<BFloat16>()[at]));
            else if (w.codes.dtype == DType::kF16)
                result.push_back(static_cast<float>(w.codes.as<Float16>()[at]));
            else if (w.codes.dtype == DType::kF8E4M3)
                result.push_back(static_cast<float>(w.codes.as<Float8E4M3>()[at]) *
                                 w.scales.as<float>()[(w.row0 + i) / kFp8Block * w.scales.stride[0] + j / kFp8Block]);
            else
                result.push_back(w.codes.as<float>()[at]);
        }
    return result;
}

float at(const Tensor& t, int64_t i, int64_t j) { return t.as<float>()[i * t.stride[0] + j]; }

// Rows [begin, end) of y = x w^T, or of y = x w.
void expect_product(const Tensor& y, const Tensor& x, const Weight& w, bool transposed, int64_t begin, int64_t end) {
    const std::vector<float> values = decoded(w);
    const int64_t in = w.in_features();
    int64_t wrong = 0;
    for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < y.dim(1); ++j) {
            float sum = 0;
            for (int64_t k = 0; k < x.dim(1); ++k)
                sum = std::fma(at(x, i, k), values[static_cast<size_t>(transposed ? j * in + k : k * in + j)], sum);
            wrong += at(y, i, j) != sum;
        }
    EXPECT_EQ(wrong, 0) << y.describe() << " from " << x.describe() << " and " << w.codes.describe() << " from row " << w.row0;
}

std::vector<float> copy_of(const Tensor& t) {
    std::vector<float> result;
    for (int64_t i = 0; i < t.dim(0); ++i)
        for (int64_t j = 0; j < t.dim(1); ++j) result.push_back(at(t, i, j));
    return result;
}

void expect_wgrad(const Tensor& dw, std::vector<float> sum, const Tensor& dy, const Tensor& x, int64_t begin, int64_t end) {
    const int64_t in = dw.dim(1);
    for (int64_t i = 0; i < dw.dim(0); ++i)
        for (int64_t j = 0; j < in; ++j)
            for (int64_t k = begin; k < end; ++k) {
                float& s = sum[static_cast<size_t>(i * in + j)];
                s = std::fma(at(dy, k, i), at(x, k, j), s);
            }
    EXPECT_EQ(copy_of(dw), sum) << dw.describe() << " over " << end - begin << " rows";
}

Tensor head(const Tensor& x, int64_t j) {
    Tensor t(x.as<float>() + j * x.stride[1], DType::kF32, {x.dim(0), x.dim(2)});
    t.stride[0] = x.stride[0];
    return t;
}

constexpr DType kStored[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3};

class Products : public testing::TestWithParam<std::tuple<Isa, int>> {
protected:
    void SetUp() override {
        if (!supports(std::get<0>(GetParam()))) GTEST_SKIP() << "this CPU has no " << name_of(std::get<0>(GetParam()));
    }
    ThreadPool pool_{std::get<1>(GetParam())};
    CpuOps ops_{pool_, std::get<0>(GetParam())};
    Source source_{static_cast<uint64_t>(std::get<1>(GetParam()))};
};

TEST_P(Products, MatmulIsOneChainPerElement) {
    for (int round = 0; round < 120; ++round) {
        const bool wide = round % 8 == 0;
        const int64_t n = source_.integer(0, wide ? 300 : 40), in = source_.integer(0, wide ? 700 : 140),
                      out = source_.integer(1, 150);
        const Weight w = source_.weight(kStored[round % 4], out, in);
        const Tensor x = source_.matrix(DType::kF32, n, in, source_.integer(0, 3)), y = source_.matrix(DType::kF32, n, out, 2);
        ops_.matmul(y, x, w);
        expect_product(y, x, w, true, 0, n);
        ops_.matmul_dgrad(x, y, w);
        expect_product(x, y, w, false, 0, n);
    }
}

TEST_P(Products, PanelsOfNumbersGiveTheBitsOfTheirRows) {
    Arena arena("panels", Buffer::host, 1 << 20);
    for (int round = 0; round < 60; ++round) {
        const ArenaScope scope(arena);
        const bool wide = round % 8 == 0;
        const DType type = round % 2 == 0 ? DType::kBF16 : DType::kF16;
        const int64_t n = source_.integer(0, wide ? 300 : 40), out = 16 * source_.integer(1, 12);
        int64_t in = source_.integer(1, wide ? 700 : 140);
        if (type == DType::kBF16) in += in % 2;  // stored in pairs
        const Weight w = source_.weight(type, out, in), panels = ops_.pack(w, arena);
        ASSERT_EQ(panels.scheme, Scheme::kPanels);
        ASSERT_EQ(panels.out_features(), out);
        ASSERT_EQ(panels.in_features(), in);
        const Tensor x = source_.matrix(DType::kF32, n, in, source_.integer(0, 3)), y = source_.matrix(DType::kF32, n, out, 2);
        ops_.matmul(y, x, panels);
        expect_product(y, x, w, true, 0, n);
        ops_.matmul_dgrad(x, y, panels);
        expect_product(x, y, w, false, 0, n);
        const int64_t begin = 16 * source_.integer(0, out / 16 - 1);
        const Tensor part = source_.matrix(DType::kF32, n, out - begin);
        ops_.matmul(part, x, panels.rows(begin, out));
        expect_product(part, x, w.rows(begin, out), true, 0, n);
    }
}

TEST_P(Products, AnOddNumberOfColumnsMakesNoPairs) {
    Arena arena("panels", Buffer::host, 1 << 20);
    EXPECT_EQ(ops_.pack(source_.weight(DType::kBF16, 16, 21), arena).scheme, Scheme::kPlain);
    EXPECT_EQ(ops_.pack(source_.weight(DType::kF16, 16, 21), arena).scheme, Scheme::kPanels);
}

TEST_P(Products, PanelsOfNumbersAreLookedUpByRow) {
    Arena arena("panels", Buffer::host, 1 << 20);
    std::vector<int32_t> rows{47, 0, 18};
    const Tensor at_rows(rows.data(), DType::kI32, {3});
    for (const DType type : {DType::kBF16, DType::kF16}) {
        const Weight w = source_.weight(type, 48, 22);
        const Tensor y = source_.matrix(DType::kF32, 3, 22), expected = source_.matrix(DType::kF32, 3, 22);
        ops_.gather_weight_rows(y, ops_.pack(w, arena), at_rows);
        ops_.gather_weight_rows(expected, w, at_rows);
        EXPECT_EQ(copy_of(y), copy_of(expected));
    }
}

TEST_P(Products, WgradContinuesFromTheGradient) {
    for (int round = 0; round < 60; ++round) {
        const int64_t n = source_.integer(0, round % 8 == 0 ? 600 : 40), in = source_.integer(1, 150),
                      out = source_.integer(1, 150);
        const Tensor x = source_.matrix(DType::kF32, n, in, source_.integer(0, 3)), dy = source_.matrix(DType::kF32, n, out, 1);
        const Tensor dw = source_.matrix(DType::kF32, out, in);
        const std::vector<float> before = copy_of(dw);
        ops_.matmul_wgrad(dw, dy, x);
        expect_wgrad(dw, before, dy, x, 0, n);
    }
}

TEST_P(Products, EachExpertMultipliesItsOwnRows) {
    for (int round = 0; round < 32; ++round) {
        const int64_t experts = source_.integer(1, 9), m = source_.integer(0, 120);
        const int64_t in = source_.integer(1, 90), out = source_.integer(1, 90);
        std::vector<Weight> w;
        std::vector<Tensor> dw;
        std::vector<std::vector<float>> before;
        for (int64_t e = 0; e < experts; ++e) {
            w.push_back(source_.weight(kStored[round % 4], out, in));
            dw.push_back(source_.matrix(DType::kF32, out, in));
            before.push_back(copy_of(dw.back()));
        }
        const Tensor x = source_.matrix(DType::kF32, m, in, 1), y = source_.matrix(DType::kF32, m, out);
        const Tensor offsets = source_.offsets(experts, m);
        const auto start = [&](size_t e) { return int64_t{offsets.as<int32_t>()[e]}; };
        ops_.grouped_matmul(y, x, w, offsets);
        for (size_t e = 0; e < w.size(); ++e) expect_product(y, x, w[e], true, start(e), start(e + 1));
        ops_.grouped_wgrad(dw, y, x, offsets);
        for (size_t e = 0; e < w.size(); ++e) expect_wgrad(dw[e], before[e], y, x, start(e), start(e + 1));
        ops_.grouped_dgrad(x, y, w, offsets);
        for (size_t e = 0; e < w.size(); ++e) expect_product(x, y, w[e], false, start(e), start(e + 1));
    }
}

TEST_P(Products, EachHeadMultipliesItsOwnSlice) {
    for (int round = 0; round < 32; ++round) {
        const int64_t heads = source_.integer(1, 5), n = source_.integer(0, 20);
        const int64_t in = source_.integer(1, 90), out = source_.integer(1, 90);
        std::vector<Weight> w;
        for (int64_t j = 0; j < heads; ++j) w.push_back(source_.weight(kStored[round % 4], out, in));
        const Tensor x = source_.batch(n, heads, in), y = source_.batch(n, heads, out);
        ops_.batched_matmul(y, x, w);
        for (int64_t j = 0; j < heads; ++j) expect_product(head(y, j), head(x, j), w[static_cast<size_t>(j)], true, 0, n);
        ops_.batched_dgrad(x, y, w);
        for (int64_t j = 0; j < heads; ++j) expect_product(head(x, j), head(y, j), w[static_cast<size_t>(j)], false, 0, n);
    }
}

TEST_P(Products, EveryFp8CodeIsDecodedExactly) {
    // x = 1 and in = 1: y is the weight itself.
    std::vector<Float8E4M3> codes(256);
    for (size_t i = 0; i < codes.size(); ++i) codes[i].bits = static_cast<uint8_t>(i);
    std::vector<float> scales{0.37f, 3.0f}, y(256);
    float one = 1;
    const Weight w(Tensor(codes.data(), DType::kF8E4M3, {256, 1}), Tensor(scales.data(), DType::kF32, {2, 1}));
    ops_.matmul(Tensor(y.data(), DType::kF32, {1, 256}), Tensor(&one, DType::kF32, {1, 1}), w);
    for (size_t i = 0; i < codes.size(); ++i) {
        const float expected = std::fma(one, static_cast<float>(codes[i]) * scales[i / 128], 0.0f);
        EXPECT_TRUE(y[i] == expected || (std::isnan(y[i]) && std::isnan(expected))) << i;
    }
}

TEST_P(Products, ARowDoesNotDependOnItsNeighbours) {
    const Weight w = source_.weight(DType::kBF16, 200, 500);
    const Tensor x = source_.matrix(DType::kF32, 90, 500), all = source_.matrix(DType::kF32, 90, 200);
    ops_.matmul(all, x, w);
    for (const int64_t rows : {1, 2, 5, 14, 15, 33}) {
        const Tensor some = source_.matrix(DType::kF32, rows, 200);
        ops_.matmul(some, x.slice(0, 40, 40 + rows), w);
        EXPECT_EQ(copy_of(some), copy_of(all.slice(0, 40, 40 + rows))) << rows;
    }
}

TEST_P(Products, RefuseShapesThatDoNotFit) {
    const Tensor x = source_.matrix(DType::kF32, 3, 8), y = source_.matrix(DType::kF32, 3, 5);
    EXPECT_THROW(ops_.matmul(y, x, source_.weight(DType::kF32, 5, 7)), LogicError);
    EXPECT_THROW(ops_.matmul(y, x, source_.weight(DType::kF32, 6, 8)), LogicError);
    EXPECT_THROW(ops_.matmul(y, source_.matrix(DType::kBF16, 3, 8), source_.weight(DType::kF32, 5, 8)), LogicError);
    Weight bare = source_.weight(DType::kF8E4M3, 5, 8);
    bare.scales = {};
    EXPECT_THROW(ops_.matmul(y, x, bare), LogicError);
}

std::string label(const testing::TestParamInfo<std::tuple<Isa, int>>& test) {
    const auto [isa, threads] = test.param;
    return std::string(name_of(isa)) + "_" + std::to_string(threads) + "_threads";
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, Products, testing::Combine(testing::Values(Isa::kAvx2, Isa::kAvx512), testing::Values(1, 3)),
                         label);

TEST(GemmPlan, CoversEachElementOnce) {
    Source source(7);
    for (int round = 0; round < 50; ++round) {
        std::vector<GemmProduct> products(static_cast<size_t>(source.integer(1, 4)));
        for (auto& p : products) p.m = source.integer(0, 3000), p.n = source.integer(1, 1500), p.k = source.integer(0, 600);
        std::vector<std::vector<int>> seen;
        for (const auto& p : products) seen.emplace_back(static_cast<size_t>(p.m * p.n));
        for (const GemmTile& tile : plan_gemm(products, static_cast<int>(source.integer(1, 16)))) {
            EXPECT_LE(tile.n1 - tile.n0, GemmBlocking::kMaxN);
            auto& cells = seen[static_cast<size_t>(tile.product - products.data())];
            for (int64_t i = tile.m0; i < tile.m1; ++i)
                for (int64_t j = tile.n0; j < tile.n1; ++j) ++cells[static_cast<size_t>(i * tile.product->n + j)];
        }
        for (const auto& cells : seen) EXPECT_EQ(std::ranges::count(cells, 1), static_cast<int64_t>(cells.size()));
    }
}

}  // namespace
}  // namespace fathom
