// Steps of panels (cpu/quant_panel.h) as AVX-512 reads them: as they are packed, or unpacked to a byte per code and f32
// factors.
#pragma once

#include <immintrin.h>

#include <utility>

#include "cpu/quant_kernels.h"

namespace fathom {
namespace {

constexpr int64_t kCodes = kPanelStep * kPanelLanes;      // of an unpacked step
constexpr int64_t kFloats = kPanelLanes * sizeof(float);  // bytes of one factor of each lane

template <BlockType T>
constexpr PanelTraits kTraits = panel_traits(T);

// A scale has at most 22 bits and three times it no more exponent than f32: a half, or a half times a byte.
template <BlockType T>
constexpr bool kShortScaleOf = kTraits<T>.factors != PanelFactors::kE8m0 && !kTraits<T>.wide();

// ---- codes and factors ---------------------------------------------------------------------------------------------------

// 16 factors of a block.
template <BlockType T>
__m512 block_factors(const uint8_t* from) {
    if constexpr (kTraits<T>.wide()) return _mm512_loadu_ps(from);
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
__m128i bytes(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
__m512 unsigned_numbers(__m128i x) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x)); }
__m512 signed_numbers(__m128i x) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)); }
__m512 negative(__m512 x) { return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f)); }
__m512i low_bits(__m512i x, char mask) { return _mm512_and_si512(x, _mm512_set1_epi8(mask)); }

// Quads 2 v and 2 v + 1 of a step.
struct Quads {
    __m512i even, odd;
};

// Quads 2 v and 2 v + 1 of two-bit parts, at bit kUp (0 or 4) of their bytes; other bits are left in.
template <int kUp, int v>
Quads two_bits(const uint8_t* from) {
    const __m512i four = _mm512_loadu_si512(from + 64 * (v / 2));
    if constexpr (kUp == 0 && v % 2 == 0) return {four, _mm512_srli_epi16(four, 2)};
    if constexpr (kUp == 0 && v % 2 == 1) return {_mm512_srli_epi16(four, 4), _mm512_srli_epi16(four, 6)};
    if constexpr (kUp == 4 && v % 2 == 0) return {_mm512_slli_epi16(four, 4), _mm512_slli_epi16(four, 2)};
    if constexpr (kUp == 4 && v % 2 == 1) return {four, _mm512_srli_epi16(four, 2)};
}

// x, with `bit` where the mask of 64 bits says so.
__m512i with_bit(__m512i x, const uint8_t* mask, char bit) {
    const auto* from = reinterpret_cast<__mmask64*>(const_cast<uint8_t*>(mask));
    return _mm512_or_si512(x, _mm512_maskz_mov_epi8(_load_mask64(const_cast<__mmask64*>(from)), _mm512_set1_epi8(bit)));
}

template <BlockType T, int v>
Quads pair(const uint8_t* codes) {
    constexpr int kBits = kTraits<T>.bits;
    if constexpr (kBits == 8) return {_mm512_loadu_si512(codes + 128 * v), _mm512_loadu_si512(codes + 128 * v + 64)};
    Quads x;
    if constexpr (kBits < 4) {
        const auto [even, odd] = two_bits<0, v>(codes);
        x = {low_bits(even, 3), low_bits(odd, 3)};
    } else {
        const __m512i both = _mm512_loadu_si512(codes + 64 * v);
        x = {low_bits(both, 15), low_bits(_mm512_srli_epi16(both, 4), 15)};
    }
    if constexpr (kBits == 3 || kBits == 5) {
        const uint8_t* masks = codes + 64 * (kBits - 1) + 16 * v;
        x = {with_bit(x.even, masks, 1 << (kBits - 1)), with_bit(x.odd, masks + 8, 1 << (kBits - 1))};
    }
    if constexpr (kBits == 6) {
        const auto [even, odd] = two_bits<4, v>(codes + 256);
        x = {_mm512_or_si512(x.even, low_bits(even, 0x30)), _mm512_or_si512(x.odd, low_bits(odd, 0x30))};
    }
    if constexpr (kTraits<T>.table) {
        constexpr PanelTable kTable = table_of(T);
        const __m512i table = _mm512_broadcast_i32x4(bytes(kTable.value));
        x = {_mm512_shuffle_epi8(table, x.even), _mm512_shuffle_epi8(table, x.odd)};
    }
    return x;
}

// The scale of group g of a step; d: of its block, `scales`: of the step.
template <BlockType T>
__m512 scale_of(__m512 d, const uint8_t* scales, int g) {
    constexpr PanelFactors kKind = kTraits<T>.factors;
    if constexpr (kTraits<T>.of_block()) return d;
    const __m128i codes = bytes(scales + kPanelLanes * g);
    if constexpr (kKind == PanelFactors::kE8m0) {  // 2^(e - 128); e < 2 gives subnormal numbers
        const __m512i e = _mm512_cvtepu8_epi32(codes), one = _mm512_set1_epi32(1);
        const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);
        const __m512i small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
        return _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, _mm512_cmple_epu32_mask(e, one), small));
    }
    if constexpr (kKind == PanelFactors::kSigned) return _mm512_mul_ps(d, signed_numbers(codes));
    if constexpr (kKind == PanelFactors::kNibbleMin)
        return _mm512_mul_ps(d, unsigned_numbers(_mm_and_si128(codes, _mm_set1_epi8(15))));
    return _mm512_mul_ps(d, unsigned_numbers(codes));
}

// The offset of group g of a step, of types that have one.
template <BlockType T>
__m512 offset_of(__m512 m, const uint8_t* scales, int g) {
    constexpr PanelFactors kKind = kTraits<T>.factors;
    if constexpr (kTraits<T>.of_block()) return m;
    if constexpr (kKind == PanelFactors::kNibbleMin) {
        const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes(scales + kPanelLanes * g), 4), _mm_set1_epi8(15));
        return negative(_mm512_mul_ps(m, unsigned_numbers(high)));
    }
    return negative(_mm512_mul_ps(m, unsigned_numbers(bytes(scales + kPanelLanes * (kTraits<T>.groups_per_step() + g)))));
}

// ---- a step of a panel: as it is packed, or unpacked ---------------------------------------------------------------------

// One after the other, each opened before it is looked at. The hardware's own prefetch keeps up with this one stream on some
// CPUs and on others does not, so that many bytes are asked for ahead, or none: Q4_0 from memory, one thread, 33.8 GB/s without
// and 22 to 34 with on a Zen 4, 11.7 and 15.9 on a Sapphire Rapids (fetching_ahead_pays).
template <BlockType T, int64_t kAhead = 0>
class PackedSteps {
public:
    static constexpr bool kHalfGroups = kTraits<T>.half_groups, kHasOffset = kTraits<T>.has_offset(),
                          kShortScale = kShortScaleOf<T>;

    PackedSteps() = default;
    explicit PackedSteps(const uint8_t* panel) : at_(panel), fetched_(panel + kAhead) {}
    [[gnu::always_inline]] inline void open() {
        if constexpr (kAhead > 0)
            for (const uint8_t* const end = at_ + kTraits<T>.step_bytes() + kAhead; fetched_ < end; fetched_ += kLine)
                _mm_prefetch(fetched_, _MM_HINT_T1);
        if (in_block_ != 0) return;
        if constexpr (kTraits<T>.head_bytes() > 0) d_ = block_factors<T>(at_);
        if constexpr (kHasOffset) m_ = block_factors<T>(at_ + kTraits<T>.factor_bytes());
        at_ += kTraits<T>.head_bytes();
    }
    [[gnu::always_inline]] inline void next() {
        at_ += kTraits<T>.step_bytes();
        in_block_ = in_block_ + 1 == kTraits<T>.steps ? 0 : in_block_ + 1;
    }
    template <int v>
    [[nodiscard, gnu::always_inline]] inline Quads quads() const {
        return pair<T, v>(at_);
    }
    [[nodiscard, gnu::always_inline]] inline __m512 scale(int group) const { return scale_of<T>(d_, scales(), group); }
    [[nodiscard, gnu::always_inline]] inline __m512 offset(int group) const { return offset_of<T>(m_, scales(), group); }

private:
    static constexpr int64_t kLine = 64;
    const uint8_t *at_ = nullptr, *fetched_ = nullptr;
    int64_t in_block_ = 0;
    __m512 d_ = _mm512_setzero_ps(), m_ = _mm512_setzero_ps();
    [[nodiscard]] const uint8_t* scales() const { return at_ + kTraits<T>.code_bytes(); }
};

// Per step 512 codes, the scales of its groups, their offsets if there are any.
template <bool HalfGroups, bool HasOffset, bool ShortScale>
class UnpackedSteps {
public:
    static constexpr bool kHalfGroups = HalfGroups, kHasOffset = HasOffset, kShortScale = ShortScale;
    static constexpr int64_t kGroups = HalfGroups ? 2 : 1, kBytes = kCodes + kFloats * kGroups * (HasOffset ? 2 : 1);

    UnpackedSteps() = default;
    explicit UnpackedSteps(const uint8_t* panel) : at_(panel) {}
    void open() {}
    void next() { at_ += kBytes; }
    template <int v>
    [[nodiscard]] Quads quads() const {
        return {_mm512_load_si512(at_ + 128 * v), _mm512_load_si512(at_ + 128 * v + 64)};
    }
    [[nodiscard]] __m512 scale(int group) const { return _mm512_load_ps(at_ + kCodes + kFloats * group); }
    [[nodiscard]] __m512 offset(int group) const { return _mm512_load_ps(at_ + kCodes + kFloats * (kGroups + group)); }

private:
    const uint8_t* at_ = nullptr;
};
template <BlockType T>
using Unpacked = UnpackedSteps<kTraits<T>.half_groups, kTraits<T>.has_offset(), kShortScaleOf<T>>;

template <int kLess, class S, int... v>
void unpack_quads(uint8_t* to, const S& step, std::integer_sequence<int, v...>) {
    const __m512i less = _mm512_set1_epi8(static_cast<char>(kLess));
    const auto store = [&](int at, Quads x) {
        _mm512_store_si512(to + 128 * at, _mm512_sub_epi8(x.even, less));
        _mm512_store_si512(to + 128 * at + 64, _mm512_sub_epi8(x.odd, less));
    };
    (store(v, step.template quads<v>()), ...);
}

// Signed: codes become what they mean, less `zero`.
template <BlockType T, bool Signed = false>
void unpack_panel(uint8_t* to, const uint8_t* panel, int64_t steps) {
    PackedSteps<T> from(panel);
    for (int64_t s = 0; s < steps; ++s, from.next(), to += Unpacked<T>::kBytes) {
        from.open();
        unpack_quads<Signed ? kTraits<T>.zero : 0>(to, from, std::make_integer_sequence<int, 4>{});
        for (int group = 0; group < Unpacked<T>::kGroups; ++group) {
            _mm512_store_ps(to + kCodes + kFloats * group, from.scale(group));
            if constexpr (Unpacked<T>::kHasOffset)
                _mm512_store_ps(to + kCodes + kFloats * (Unpacked<T>::kGroups + group), from.offset(group));
        }
    }
}

}  // namespace
}  // namespace fathom
