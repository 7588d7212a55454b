// Panels as numbers: sixteen columns of all rows at a time, turned into rows.
#include <array>
#include <utility>

#include "cpu/quant_steps_avx512.h"
#include "cpu/simd_avx512.h"

namespace fathom {
namespace {

// Columns 8 v to 8 v + 7 of a step, which are quads 2 v and 2 v + 1; a number is scale code + offset, each rounded.
template <BlockType T, int v>
void decode_columns(Avx512* column, const PackedSteps<T>& step) {
    constexpr int kGroup = kTraits<T>.half_groups ? v / 2 : 0;
    const __m512 scale = step.scale(kGroup);
    const Quads codes = step.template quads<v>();
    for (int i = 0; i < 8; ++i) {
        const __m512i quad = _mm512_srli_epi32(i < 4 ? codes.even : codes.odd, static_cast<unsigned>(i % 4 * 8));
        const __m512i code =
            _mm512_sub_epi32(_mm512_and_si512(quad, _mm512_set1_epi32(255)), _mm512_set1_epi32(kTraits<T>.zero));
        column[i].v = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(code));
        if constexpr (kTraits<T>.has_offset()) column[i].v = _mm512_add_ps(column[i].v, step.offset(kGroup));
    }
}

template <BlockType T>
void decode_type(float* y, int64_t stride, const uint8_t* panel, int64_t steps) {
    PackedSteps<T> step(panel);
    for (int64_t s = 0; s < steps; ++s, step.next(), y += kPanelStep) {
        step.open();
        Avx512 half[2][kPanelLanes];
        decode_columns<T, 0>(half[0], step);
        decode_columns<T, 1>(half[0] + 8, step);
        decode_columns<T, 2>(half[1], step);
        decode_columns<T, 3>(half[1] + 8, step);
        for (int64_t h = 0; h < 2; ++h) {
            Avx512::transpose(half[h]);
            for (int64_t r = 0; r < kPanelLanes; ++r) half[h][r].store(y + r * stride + 16 * h);
        }
    }
}

using DecodeType = void (*)(float* y, int64_t stride, const uint8_t* panel, int64_t steps);
template <size_t... I>
constexpr std::array<DecodeType, sizeof...(I)> make_types(std::index_sequence<I...>) {
    return {&decode_type<static_cast<BlockType>(I + 1)>...};
}
constexpr auto kTypes = make_types(std::make_index_sequence<static_cast<size_t>(kLastBlockType)>{});

}  // namespace

void decode_all_rows_avx512(float* y, int64_t stride, BlockType type, const uint8_t* panel, int64_t steps) {
    kTypes[static_cast<size_t>(type) - 1](y, stride, panel, steps);
}

}  // namespace fathom
