// Products of panels in 256-bit registers with vpdpbusd, here in the encoding of AVX512-VNNI, against the AVX2 ones, bit for
// bit.
#include "cpu/quant_lanes8.h"

#include <gtest/gtest.h>

#include "cpu/dot_vnni.h"
#include "cpu/quant_kernels.h"
#include "tensors.h"

namespace fathom {
namespace {

struct Evex {
    static __m256i dpbusd(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_epi32(sum, a, b); }
};

bool has_vnni() { return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"); }

// Every type: `kernels` give the bits of the AVX2 ones. Each set meets rows that it has quantized itself.
void expect_bits_of_avx2(const QuantKernels& kernels) {
    Tensors make(1);
    Arena arena("panels", Buffer::host, int64_t{1} << 20);
    const QuantKernels& avx2 = quant_kernels_avx2();
    for (int i = static_cast<int>(BlockType::kQ40); i <= static_cast<int>(kLastBlockType); ++i) {
        const auto type = static_cast<BlockType>(i);
        const PanelTraits traits = panel_traits(type);
        const int64_t steps = 24, panels = 3;
        const Tensor codes = make.empty(DType::kU8, {panels, steps / traits.steps * traits.block_bytes()});
        for (int64_t at = 0; at < codes.size(); ++at)  // below the infinite halves, and floats whose sums would be
            codes.as<uint8_t>()[at] = static_cast<uint8_t>(make.rng().below(traits.wide() ? 64 : 120));
        for (const int64_t rows : {1, 2, 3, 7, 13, 31}) {
            const Tensor x = make.random({rows, steps * kPanelStep}), q = make.empty(DType::kI8, {rows, steps * kPanelStep});
            std::vector<StepFactors> factors(static_cast<size_t>(rows * steps));
            const auto multiply = [&](const QuantKernels& by, const Tensor& y) {
                for (int64_t r = 0; r < rows; ++r)
                    by.quantize_row(q.as<int8_t>() + r * steps * kPanelStep, factors.data() + r * steps,
                                    x.as<float>() + r * steps * kPanelStep, steps * kPanelStep, traits.zero,
                                    traits.half_groups);
                const Tensor scratch = make.empty(DType::kU8, {panel_scratch_bytes(traits, steps)});
                by.multiply({type, codes.as<uint8_t>(), codes.stride[0], steps, panels, q.as<int8_t>(), factors.data(), rows,
                             y.as<float>(), y.stride[0]},
                            scratch.as<uint8_t>());
            };
            const Tensor y = make.empty(DType::kF32, {rows, panels * kPanelLanes}),
                         expected = make.empty(DType::kF32, {rows, panels * kPanelLanes});
            multiply(kernels, y);
            multiply(avx2, expected);
            EXPECT_EQ(bytes_of(y) == bytes_of(expected), true) << traits_of(type).name << ", " << rows << " rows";
        }
    }
}

TEST(Lanes8, MultipliesWithVnniAsWithoutIt) {
    if (!has_vnni()) GTEST_SKIP() << "no AVX512-VNNI";
    expect_bits_of_avx2({quant_kernels_avx2().quantize_row, Lanes8<DotVnni<Evex>>::multiply});
}

TEST(QuantKernels, Avx512HasTheBitsOfAvx2FetchingAheadOrNot) {
    if (!has_vnni()) GTEST_SKIP() << "no AVX512-VNNI";
    for (const bool ahead : {false, true}) expect_bits_of_avx2(quant_kernels_vnni_avx512(ahead));
}

}  // namespace
}  // namespace fathom
