// Quantized products against their definition with ==: the integers and factors of split_block, one chain over ascending
// groups.
#include "cpu/quant_matmul.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/cpu_ops.h"
#include "cpu/quant_panel.h"
#include "random_blocks.h"
#include "tensors.h"

namespace fathom {
namespace {

constexpr BlockType kPanelTypes[] = {BlockType::kQ40,   BlockType::kQ41,   BlockType::kQ50,  BlockType::kQ51, BlockType::kQ80,
                                     BlockType::kQ2K,   BlockType::kQ3K,   BlockType::kQ4K,  BlockType::kQ5K, BlockType::kQ6K,
                                     BlockType::kIq4Nl, BlockType::kIq4Xs, BlockType::kMxfp4};

bool has_scale_per_16(BlockType type) { return type == BlockType::kQ2K || type == BlockType::kQ3K || type == BlockType::kQ6K; }
bool has_minimum(BlockType type) {
    return type == BlockType::kQ41 || type == BlockType::kQ51 || type == BlockType::kQ2K || type == BlockType::kQ4K ||
           type == BlockType::kQ5K;
}

Tensor decoded(Tensors& t, const Weight& w) {
    const Tensor result = t.empty(DType::kF32, {w.out_features(), w.in_features()});
    for (int64_t i = 0; i < w.out_features(); ++i)
        decode_blocks(w.block, w.codes.as<uint8_t>() + i * w.codes.stride[0], result.as<float>() + i * w.in_features(),
                      w.in_features());
    return result;
}

// A step's activations as integers, from the definition in cpu/quant_kernels.h.
struct Step {
    float d = 0;
    int q[32] = {};
    Step(const float* x) {  // NOLINT
        float largest = 0;
        for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[i]));
        d = largest / 127.0f;
        const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        for (int i = 0; i < 32; ++i) q[i] = static_cast<int>(std::nearbyint(x[i] * inverse));
    }
};

float defined_product(const Weight& w, int64_t row, const float* x) {
    const BlockTraits& traits = traits_of(w.block);
    const int64_t width = has_scale_per_16(w.block) ? 16 : 32;
    float y = 0;
    BlockCodes block;
    for (int64_t k = 0; k < w.in_features(); k += 32) {
        const int64_t b = k / traits.elements, in_block = k % traits.elements;
        split_block(w.block, w.codes.as<uint8_t>() + row * w.codes.stride[0] + b * traits.bytes, block);
        const Step step(x + k);
        for (int64_t from = 0; from < 32; from += width) {
            int sum = 0, all = 0;
            for (int64_t i = from; i < from + width; ++i) {
                sum += block.code[in_block + i] * step.q[i];
                all += step.q[i];
            }
            const int64_t g = (in_block + from) / 16;
            y = std::fma(step.d, block.scale[g] * static_cast<float>(sum), y);
            if (has_minimum(w.block)) y = std::fma(block.offset[g], step.d * static_cast<float>(all), y);
        }
    }
    return y;
}

class QuantMatmul : public ::testing::TestWithParam<Isa> {
protected:
    void SetUp() override {
        if (!supports(GetParam())) GTEST_SKIP() << "this CPU lacks it";
    }
    Tensor multiply(const Tensor& x, const Weight& w, int threads = 2) {
        ThreadPool pool(threads);
        CpuOps ops(pool, GetParam(), false);
        const Tensor y = t.empty(DType::kF32, {x.dim(0), w.out_features()});
        ops.matmul(y, x, w);
        return y;
    }
    Weight packed(const Weight& w) {
        ThreadPool pool(2);
        return CpuOps(pool, GetParam()).pack(w, arena);
    }
    static void expect_equal(const Tensor& x, const Tensor& y, const std::string& what) {
        ASSERT_EQ(x.size(), y.size()) << what;
        EXPECT_EQ(std::memcmp(x.data, y.data, static_cast<size_t>(x.bytes())), 0) << what;
    }
    Tensors t{1};
    Arena arena{"test", Buffer::host, 1 << 20};
};

TEST_P(QuantMatmul, PanelsGiveTheBitsOfTheDefinition) {
    for (const BlockType type : kPanelTypes) {
        for (const int64_t rows : {1, 2, 4, 5, 12, 13, 25, 300}) {
            const int64_t in = traits_of(type).elements * static_cast<int64_t>(1 + t.rng().below(rows > 20 ? 2 : 4));
            const int64_t out = 16 * static_cast<int64_t>(1 + t.rng().below(rows > 20 ? 3 : 9));
            const Weight w = random_blocks(t, type, out, in);
            const Weight panels = packed(w);
            ASSERT_EQ(panels.scheme, Scheme::kPanels);
            const Tensor x = t.random({rows, in});
            if (rows > 1) std::fill_n(x.as<float>() + in, in, 0.0f);
            const Tensor y = multiply(x, panels);
            for (int64_t i = 0; i < rows; i += 1 + rows / 8)
                for (int64_t j = 0; j < out; ++j)
                    ASSERT_EQ(y.as<float>()[i * out + j], defined_product(w, j, x.as<float>() + i * in))
                        << traits_of(type).name << " " << rows << " rows, element " << i << ", " << j;
            expect_equal(y, multiply(x, panels, 1), "one thread");
        }
    }
}

TEST_P(QuantMatmul, RoundingOfActivationsIsBoundedByHalfAStepOfEach) {
    for (const BlockType type : kPanelTypes) {
        const Weight w = random_blocks(t, type, 32, 512);
        const Tensor x = t.random({7, 512}), y = multiply(x, packed(w)), f = decoded(t, w);
        for (int64_t i = 0; i < 7; ++i) {
            for (int64_t j = 0; j < 32; ++j) {
                double exact = 0, bound = 0;
                for (int64_t k = 0; k < 512; ++k) {
                    const double weight = f.as<float>()[j * 512 + k];
                    exact += weight * static_cast<double>(x.as<float>()[i * 512 + k]);
                    bound += std::fabs(weight) * 0.5001 * static_cast<double>(Step(x.as<float>() + i * 512 + k / 32 * 32).d);
                }
                EXPECT_LE(std::fabs(static_cast<double>(y.as<float>()[i * 32 + j]) - exact), bound + 1e-5)
                    << traits_of(type).name;
            }
        }
    }
}

TEST_P(QuantMatmul, BlocksWithoutPanelsGiveTheBitsOfTheirNumbers) {
    for (int number = 1; number <= static_cast<int>(BlockType::kMxfp4); ++number) {
        const auto type = static_cast<BlockType>(number);
        const Weight w = random_blocks(t, type, 21, 512);
        const Tensor numbers = decoded(t, w), x = t.random({3, 512});
        expect_equal(multiply(x, w), multiply(x, numbers), std::string(traits_of(type).name));
    }
}

TEST_P(QuantMatmul, PanelsAndBlocksGoBackwardAsTheirNumbers) {
    ThreadPool pool(2);
    CpuOps ops(pool, GetParam());
    for (const BlockType type : kPanelTypes) {
        const Weight w = random_blocks(t, type, 48, 256);
        const Tensor numbers = decoded(t, w), dy = t.random({5, 48});
        const Tensor dx = t.empty(DType::kF32, {5, 256}), expected = t.empty(DType::kF32, {5, 256});
        ops.matmul_dgrad(expected, dy, numbers);
        ops.matmul_dgrad(dx, dy, packed(w));
        expect_equal(dx, expected, "panels");
        ops.matmul_dgrad(dx, dy, w);
        expect_equal(dx, expected, "blocks");
    }
}

// Whole numbers in groups of columns, and what each of them is.
struct Integers {
    bool nibbles, with_zeros;
    Weight w;

    Integers(Tensors& t, bool four_bits, bool zeros, int64_t out, int64_t in, int64_t groups, DType scales = DType::kF32)
        : nibbles(four_bits),
          with_zeros(zeros),
          w(t.empty(four_bits ? DType::kU8 : DType::kI8, {out, four_bits ? in / 2 : in})) {
        for (int64_t i = 0; i < w.codes.bytes(); ++i) w.codes.as<uint8_t>()[i] = static_cast<uint8_t>(t.rng().below(256));
        w.scheme = Scheme::kGroups;
        w.scales = t.random({out, groups});
        if (scales != DType::kF32) {
            ThreadPool pool(1);
            const Tensor narrow = t.empty(scales, {out, groups});
            CpuOps(pool).copy(narrow, w.scales);
            w.scales = narrow;
        }
        if (!zeros) return;
        w.zeros = t.empty(DType::kU8, {out, groups});
        for (int64_t i = 0; i < out * groups; ++i) w.zeros.as<uint8_t>()[i] = static_cast<uint8_t>(t.rng().below(16));
    }
    [[nodiscard]] int code(int64_t row, int64_t k) const {
        const int64_t i = row * w.in_features() + k;
        if (!nibbles) return w.codes.as<int8_t>()[i];
        const int byte = w.codes.as<uint8_t>()[i / 2];
        return k % 2 == 0 ? byte & 15 : byte >> 4;
    }
    [[nodiscard]] int64_t group_at(int64_t row, int64_t k) const {
        return row * w.scales.dim(1) + k / (w.in_features() / w.scales.dim(1));
    }
    [[nodiscard]] float scale(int64_t row, int64_t k) const {
        const int64_t g = group_at(row, k);
        if (w.scales.dtype == DType::kF16) return static_cast<float>(w.scales.as<Float16>()[g]);
        return w.scales.dtype == DType::kBF16 ? static_cast<float>(w.scales.as<BFloat16>()[g]) : w.scales.as<float>()[g];
    }
    [[nodiscard]] int zero(int64_t row, int64_t k) const {
        return with_zeros ? w.zeros.as<uint8_t>()[group_at(row, k)] : nibbles ? 8 : 0;
    }
    // As a panel has it: with zero points an offset besides.
    [[nodiscard]] float offset(int64_t row, int64_t k) const { return -(scale(row, k) * static_cast<float>(zero(row, k))); }
    [[nodiscard]] float in_panels(int64_t row, int64_t k) const {
        if (!with_zeros) return scale(row, k) * static_cast<float>(code(row, k) - zero(row, k));
        return scale(row, k) * static_cast<float>(code(row, k)) + offset(row, k);
    }
    [[nodiscard]] float product_in_panels(int64_t row, const float* x) const {
        float y = 0;
        for (int64_t k = 0; k < w.in_features(); k += 32) {
            const Step step(x + k);
            int sum = 0, all = 0;
            for (int64_t i = 0; i < 32; ++i) {
                sum += (code(row, k + i) - (with_zeros ? 0 : zero(row, k))) * step.q[i];
                all += step.q[i];
            }
            y = std::fma(step.d, scale(row, k) * static_cast<float>(sum), y);
            if (with_zeros) y = std::fma(offset(row, k), step.d * static_cast<float>(all), y);
        }
        return y;
    }
};

TEST_P(QuantMatmul, IntegerGroupsGiveTheBitsOfTheirNumbers) {
    for (const bool nibbles : {false, true}) {
        for (const bool with_zeros : {false, true}) {
            const int64_t out = 9, in = 256;
            const Integers integers(t, nibbles, with_zeros, out, in, 4);
            const Tensor numbers = t.empty(DType::kF32, {out, in});
            for (int64_t i = 0; i < out * in; ++i) {
                const int64_t r = i / in, k = i % in;
                numbers.as<float>()[i] = integers.scale(r, k) * static_cast<float>(integers.code(r, k) - integers.zero(r, k));
            }
            const Tensor x = t.random({4, in});
            expect_equal(multiply(x, integers.w), multiply(x, numbers), nibbles ? "int4" : "int8");
        }
    }
}

TEST_P(QuantMatmul, IntegerGroupsInPanelsGiveTheBitsOfTheDefinition) {
    constexpr int64_t kIn = 768, kOut = 48;
    constexpr DType kScales[] = {DType::kF32, DType::kBF16, DType::kF16};
    ThreadPool pool(2);
    CpuOps ops(pool, GetParam());
    for (const auto& [nibbles, zeros] : {std::pair(false, false), std::pair(true, false), std::pair(true, true)}) {
        for (const int64_t group : {32, 64, 96, 128, 256, 768}) {
            const Integers integers(t, nibbles, zeros, kOut, kIn, kIn / group, kScales[t.rng().below(3)]);
            const Weight panels = packed(integers.w);
            const std::string what =
                fmt::format("{}{}, groups of {}", nibbles ? "int4" : "int8", zeros ? " with zeros" : "", group);
            ASSERT_EQ(panels.scheme, Scheme::kPanels) << what;
            EXPECT_FALSE(panels.scales || panels.zeros) << "they lie among the codes";
            EXPECT_EQ(panels.in_features(), kIn);
            EXPECT_EQ(panels.out_features(), kOut);
            const Tensor numbers = t.empty(DType::kF32, {kOut, kIn}), rows = t.empty(DType::kF32, {kOut, kIn});
            for (int64_t i = 0; i < kOut * kIn; ++i) numbers.as<float>()[i] = integers.in_panels(i / kIn, i % kIn);
            for (int64_t r = 0; r < kOut; ++r) decode_weight_row(rows.as<float>() + r * kIn, panels, r);
            expect_equal(rows, numbers, what);
            const Tensor dy = t.random({3, kOut}), dx = t.empty(DType::kF32, {3, kIn}),
                         expected = t.empty(DType::kF32, {3, kIn});
            ops.matmul_dgrad(expected, dy, numbers);
            ops.matmul_dgrad(dx, dy, panels);
            expect_equal(dx, expected, what + ", backward");
            for (const int64_t n : {1, 3, 13, 40}) {
                const Tensor x = t.random({n, kIn}), y = multiply(x, panels);
                for (int64_t i = 0; i < n; i += 1 + n / 8)
                    for (int64_t j = 0; j < kOut; ++j)
                        ASSERT_EQ(y.as<float>()[i * kOut + j], integers.product_in_panels(j, x.as<float>() + i * kIn))
                            << what << ", " << n << " rows, element " << i << ", " << j;
                expect_equal(y, multiply(x, panels, 1), "one thread");
            }
        }
    }
}

TEST_P(QuantMatmul, IntegerGroupsThatArePartsOfStepsStayAsTheyAre) {
    EXPECT_EQ(packed(Integers(t, true, false, 32, 96, 6).w).scheme, Scheme::kGroups) << "groups of 16";
    EXPECT_EQ(packed(Integers(t, false, false, 24, 96, 1).w).scheme, Scheme::kGroups) << "half a panel";
    EXPECT_EQ(packed(Integers(t, false, true, 32, 96, 1).w).scheme, Scheme::kGroups) << "int8 with zero points";
}

TEST_P(QuantMatmul, ExpertsAndHeadsAreSeparateProducts) {
    ThreadPool pool(2);
    CpuOps ops(pool, GetParam(), false);
    const Weight all = packed(random_blocks(t, BlockType::kQ80, 3 * 32, 64));
    std::vector<Weight> w;
    for (int64_t e = 0; e < 3; ++e) w.push_back(all.rows(32 * e, 32 * e + 32));
    const Tensor x = t.random({9, 64}), y = t.empty(DType::kF32, {9, 32});
    ops.grouped_matmul(y, x, w, t.ints({0, 4, 4, 9}));
    expect_equal(y.slice(0, 0, 4), multiply(x.slice(0, 0, 4), w[0]), "expert 0");
    expect_equal(y.slice(0, 4, 9), multiply(x.slice(0, 4, 9), w[2]), "expert 2");
    // Heads that all read one latent: a stride of 0.
    Tensor shared = x;
    shared.rank = 3, shared.shape = {9, 3, 64}, shared.stride = {64, 0, 1};
    const Tensor heads = t.empty(DType::kF32, {9, 3, 32});
    ops.batched_matmul(heads, shared, w);
    const Tensor one = multiply(x, w[1]);
    for (int64_t i = 0; i < 9; ++i)
        EXPECT_EQ(std::memcmp(heads.as<float>() + (i * 3 + 1) * 32, one.as<float>() + i * 32, 128), 0) << i;
}

TEST_P(QuantMatmul, EmbeddingsAreTheNumbersOfTheirRows) {
    ThreadPool pool(2);
    CpuOps ops(pool, GetParam(), false);
    const Weight w = random_blocks(t, BlockType::kQ6K, 32, 256);
    const Tensor numbers = decoded(t, w), rows = t.ints({31, 0, 17});
    for (const Weight& table : {w, packed(w)}) {
        const Tensor y = t.empty(DType::kF32, {3, 256}), expected = t.empty(DType::kF32, {3, 256});
        ops.gather_weight_rows(y, table, rows);
        ops.gather_weight_rows(expected, numbers, rows);
        expect_equal(y, expected, "rows");
        EXPECT_THROW(ops.gather_weight_rows(y, table, t.ints({0, 32, 1})), LogicError);
    }
}

INSTANTIATE_TEST_SUITE_P(Isa, QuantMatmul, ::testing::Values(Isa::kAvx2, Isa::kAvx512, Isa::kAmx),
                         [](const auto& param) { return std::string(name_of(param.param)); });

}  // namespace
}  // namespace fathom
