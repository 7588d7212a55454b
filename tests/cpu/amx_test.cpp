// Kernels of AMX on emulated tiles, which any CPU with AVX512-BF16 runs, and on tiles where the CPU has them. Whole products by
// CpuOps of Isa::kAmxBf16 and kAmx are in gemm_pairs_test.cpp and quant_matmul_test.cpp.
#include <gtest/gtest.h>

#include <cmath>

#include "cpu/cpu_ops.h"
#include "cpu/gemm_amx.h"
#include "cpu/quant_amx.h"
#include "emulated_tiles.h"
#include "tensors.h"

namespace fathom {
namespace {

template <class Tiles>
class Amx : public testing::Test {
protected:
    void SetUp() override {
        const bool emulated = std::is_same_v<Tiles, EmulatedTiles>;
        if (!supports(emulated ? Isa::kAvx512Bf16 : Isa::kAmx))
            GTEST_SKIP() << "this CPU has no " << name_of(emulated ? Isa::kAvx512Bf16 : Isa::kAmx);
    }
    int64_t integer(int64_t low, int64_t high) {  // both included
        return low + static_cast<int64_t>(make_.rng().below(static_cast<uint64_t>(high - low + 1)));
    }
    Tensor bf16(int64_t out, int64_t in, bool whole) {
        const Tensor w = make_.empty(DType::kBF16, {out, in});
        for (int64_t i = 0; i < w.size(); ++i)
            w.as<BFloat16>()[i] =
                BFloat16(whole ? static_cast<float>(integer(-16, 16)) : static_cast<float>(make_.rng().normal()));
        return w;
    }
    // y (+)= x w^T from panels of w; the result has columns [n0, out).
    template <class T>
    void multiply(const Tensor& y, const Tensor& x, const Weight& panels, bool accumulate = false) {
        GemmProduct p{.c = y.as<float>(), .c_row = y.stride[0], .a = x.as<float>(), .a_row = x.stride[0]};
        p.b = {panels.codes.data, DType::kBF16, panels.codes.stride[0], true};
        p.b.panels = true;
        p.m = x.dim(0), p.n = y.dim(1), p.k = x.dim(1), p.accumulate = accumulate;
        const Tensor scratch = make_.empty(DType::kF32, {GemmBlocking::kScratchFloats});
        for (int64_t n = 0; n < p.n; n += GemmBlocking::kMaxN)
            AmxGemm<T>::multiply_tile({&p, 0, p.m, n, std::min(n + GemmBlocking::kMaxN, p.n)}, scratch.as<float>());
    }

    Tensors make_{1};
    Arena arena_{"panels", Buffer::host, int64_t{1} << 20};
    ThreadPool pool_{1};
    CpuOps ops_{pool_, Isa::kAvx512, true};
};
using EveryTiles = testing::Types<EmulatedTiles, AmxTiles>;
TYPED_TEST_SUITE(Amx, EveryTiles);

// Rounding an activation to bf16 errs by 2^-8 of it at most, each addition by 2^-24 of the partial sums.
TYPED_TEST(Amx, Bf16IsWithinTheRoundingOfActivations) {
    for (int round = 0; round < 40; ++round) {
        const ArenaScope scope(this->arena_);
        const int64_t n = this->integer(1, round % 8 == 0 ? 300 : 40), in = 2 * this->integer(1, round % 4 == 0 ? 300 : 60),
                      out = 16 * this->integer(1, 5);
        const Weight w(this->bf16(out, in, false)), panels = this->ops_.pack(w, this->arena_);
        const Tensor x = this->make_.random({n, in}), y = this->make_.random({n, out}), exact = this->make_.random({n, out});
        this->template multiply<TypeParam>(y, x, panels);
        this->ops_.matmul(exact, x, panels);
        const double relative = std::ldexp(1, -8) + static_cast<double>(in) * std::ldexp(1, -22);
        int64_t wrong = 0;
        for (int64_t i = 0; i < n * out; ++i) {
            const float *row = x.as<float>() + i / out * in, *y_at = y.as<float>() + i, *exact_at = exact.as<float>() + i;
            double size = 0;
            for (int64_t k = 0; k < in; ++k)
                size += std::fabs(row[k] * static_cast<float>(w.codes.template as<BFloat16>()[i % out * in + k]));
            wrong += !(std::fabs(*y_at - *exact_at) <= relative * size);
        }
        EXPECT_EQ(wrong, 0) << y.describe() << " from " << x.describe();
    }
}

// More rows and columns than one block of a tile holds, and chains longer than one.
TYPED_TEST(Amx, Bf16OfWholeNumbersIsExact) {
    for (const auto& [n, in, out] :
         {std::array<int64_t, 3>{1, 12330, 16}, {8, 200, 32}, {450, 34, 48}, {33, 514, 96}, {9, 32, 528}})
        for (const bool accumulate : {false, true}) {
            const ArenaScope scope(this->arena_);
            const Weight w(this->bf16(out, in, true)), panels = this->ops_.pack(w, this->arena_);
            const Tensor x = this->make_.empty(DType::kF32, {n, in}), y = this->make_.random({n, out}),
                         exact = this->make_.random({n, out});
            for (int64_t i = 0; i < x.size(); ++i) x.template as<float>()[i] = static_cast<float>(this->integer(-16, 16));
            for (int64_t i = 0; i < y.size(); ++i) y.template as<float>()[i] = 7;
            this->template multiply<TypeParam>(y, x, panels, accumulate);
            this->ops_.matmul(exact, x, panels);
            for (int64_t i = 0; i < y.size() && accumulate; ++i) exact.template as<float>()[i] += 7;
            EXPECT_EQ(bytes_of(y) == bytes_of(exact), true) << y.describe() << " from " << x.describe();
        }
}

TYPED_TEST(Amx, Bf16GivesARowTheSameBitsInEveryBatch) {
    const int64_t in = 414, out = 48;
    const Weight panels = this->ops_.pack(Weight(this->bf16(out, in, false)), this->arena_);
    const Tensor x = this->make_.random({250, in}), alone = this->make_.random({250, out});
    for (int64_t i = 0; i < 250; ++i)
        this->template multiply<TypeParam>(alone.slice(0, i, i + 1), x.slice(0, i, i + 1), panels);
    for (const int64_t n : {2, 8, 9, 16, 17, 33, 250}) {
        const Tensor y = this->make_.random({n, out});
        this->template multiply<TypeParam>(y, x.slice(0, 0, n), panels);
        EXPECT_EQ(bytes_of(y) == bytes_of(alone.slice(0, 0, n)), true) << n;
    }
}

// The emulation is the manual's definition; if a CPU's sums differ from it, its bits differ from the documented ones.
TYPED_TEST(Amx, Bf16HasTheBitsOfTheManualsDefinition) {
    const int64_t in = 110, out = 64;
    const Weight panels = this->ops_.pack(Weight(this->bf16(out, in, false)), this->arena_);
    const Tensor x = this->make_.random({37, in}), y = this->make_.random({37, out}), expected = this->make_.random({37, out});
    this->template multiply<TypeParam>(y, x, panels);
    this->template multiply<EmulatedTiles>(expected, x, panels);
    EXPECT_EQ(bytes_of(y) == bytes_of(expected), true);
}

// Against AVX2, whose products tests/cpu/quant_matmul_test.cpp checks against their definition.
TYPED_TEST(Amx, Int8HasTheBitsOfOtherInstructionSets) {
    const QuantKernels& avx2 = quant_kernels_avx2();
    for (int i = static_cast<int>(BlockType::kQ40); i <= static_cast<int>(BlockType::kMxfp4); ++i) {
        const auto type = static_cast<BlockType>(i);
        if (!AmxQuant<TypeParam>::multiplies(type)) continue;
        const PanelTraits traits = panel_traits(type);
        for (const auto& [rows, steps, panels] :
             {std::array<int64_t, 3>{1, 8, 1}, {13, 40, 2}, {16, 32, 1}, {300, 8, 1}, {33, 72, 3}}) {
            const Tensor codes = this->make_.empty(DType::kU8, {panels, steps / traits.steps * traits.block_bytes()});
            for (int64_t at = 0; at < codes.size(); ++at)  // halves without infinity
                codes.as<uint8_t>()[at] = static_cast<uint8_t>(this->make_.rng().below(at % 3 == 0 ? 0x70 : 0x78));
            const Tensor x = this->make_.random({rows, steps * kPanelStep}),
                         q = this->make_.empty(DType::kI8, {rows, steps * kPanelStep});
            std::vector<StepFactors> factors(static_cast<size_t>(rows * steps));
            for (int64_t r = 0; r < rows; ++r)
                avx2.quantize_row(q.as<int8_t>() + r * steps * kPanelStep, factors.data() + r * steps,
                                  x.as<float>() + r * steps * kPanelStep, steps * kPanelStep, traits.zero, traits.half_groups);
            const Tensor y = this->make_.random({rows, panels * kPanelLanes}),
                         expected = this->make_.random({rows, panels * kPanelLanes}),
                         scratch = this->make_.empty(DType::kU8, {panel_scratch_bytes(traits, steps)});
            PanelTile tile{type, codes.as<uint8_t>(), codes.stride[0], steps, panels, q.as<int8_t>(), factors.data(),
                           rows, y.as<float>(),       y.stride[0]};
            AmxQuant<TypeParam>::multiply(tile, scratch.as<uint8_t>());
            tile.y = expected.as<float>();
            avx2.multiply(tile, scratch.as<uint8_t>());
            EXPECT_EQ(bytes_of(y) == bytes_of(expected), true) << traits_of(type).name << ", " << rows << " rows";
        }
    }
}

// Panels of more than one chunk of scratch memory.
TYPED_TEST(Amx, Int8OfManyPanelsIsThatOfEach) {
    constexpr BlockType kType = BlockType::kQ80;
    const PanelTraits traits = panel_traits(kType);
    const int64_t rows = 14, steps = 260, panels = 5;
    const Tensor codes = this->make_.empty(DType::kU8, {panels, steps * traits.block_bytes()});
    for (int64_t at = 0; at < codes.size(); ++at) codes.as<uint8_t>()[at] = static_cast<uint8_t>(this->make_.rng().below(0x70));
    const Tensor q = this->make_.empty(DType::kI8, {rows, steps * kPanelStep});
    for (int64_t at = 0; at < q.size(); ++at) q.as<int8_t>()[at] = static_cast<int8_t>(this->integer(-127, 127));
    const std::vector<StepFactors> factors(static_cast<size_t>(rows * steps), StepFactors{.d = 0.5f, .shift = {}, .sum = {}});
    const Tensor y = this->make_.random({rows, panels * kPanelLanes}), alone = this->make_.random({rows, panels * kPanelLanes}),
                 scratch = this->make_.empty(DType::kU8, {panel_scratch_bytes(traits, steps)});
    ASSERT_LT(kUnpackedBytes / unpacked_panel_bytes(traits, steps), panels);
    PanelTile tile{kType, codes.as<uint8_t>(), codes.stride[0], steps, panels, q.as<int8_t>(), factors.data(),
                   rows,  y.as<float>(),       y.stride[0]};
    AmxQuant<TypeParam>::multiply(tile, scratch.as<uint8_t>());
    tile.panel_count = 1, tile.y = alone.as<float>();
    for (int64_t i = 0; i < panels; ++i, tile.panels += tile.panel_bytes, tile.y += kPanelLanes)
        AmxQuant<TypeParam>::multiply(tile, scratch.as<uint8_t>());
    EXPECT_EQ(bytes_of(y) == bytes_of(alone), true);
}

}  // namespace
}  // namespace fathom
