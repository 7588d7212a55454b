// The products of panels with AVX512-VNNI. Up to 12 rows keep their integer and float sums in registers; a step's codes are
// unpacked once for all of them, and each quad of codes meets four broadcast bytes of every row: 16 x 4 multiply-adds per
// vpdpbusd. Per step and row: 8 (vpdpbusd) + load, convert, multiply, fma. One row reads a panel at 50 GB/s and more from the
// cache, several times what memory gives.
#include <immintrin.h>
#include <array>
#include <utility>

#include "cpu/quant_rows.h"

namespace fathom {
namespace {

constexpr int kMaxRows = 12;
constexpr int64_t kAhead = 2048;  // bytes

__m512 halves(const uint8_t* from) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
__m512 unsigned_bytes(const uint8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
__m512 signed_bytes(const uint8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
__m512i low_nibbles(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
__m512i high_nibbles(__m512i x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }

// Quads 2 v and 2 v + 1 of a step.
struct Quads {
    __m512i even, odd;
};

// Each type: pair(codes, v) = quads 2 v and 2 v + 1 of a step; scale(factors, g, half), offset(factors, g) of step g of a
// block.
struct Q80 {
    static constexpr BlockType kType = BlockType::kQ80;
    static constexpr int64_t kStepBytes = 512, kFactorBytes = 32, kSteps = 1;
    static constexpr bool kHalfGroups = false, kHasOffset = false;
    static Quads pair(const uint8_t* codes, int v) {
        return {_mm512_loadu_si512(codes + 128 * v), _mm512_loadu_si512(codes + 128 * v + 64)};
    }
    static __m512 scale(const uint8_t* factors, int64_t, int64_t) { return halves(factors); }
    static __m512 offset(const uint8_t*, int64_t) { return _mm512_setzero_ps(); }
};

struct Q40 {
    static constexpr BlockType kType = BlockType::kQ40;
    static constexpr int64_t kStepBytes = 256, kFactorBytes = 32, kSteps = 1;
    static constexpr bool kHalfGroups = false, kHasOffset = false;
    static Quads pair(const uint8_t* codes, int v) {
        const __m512i both = _mm512_loadu_si512(codes + 64 * v);
        return {low_nibbles(both), high_nibbles(both)};
    }
    static __m512 scale(const uint8_t* factors, int64_t, int64_t) { return halves(factors); }
    static __m512 offset(const uint8_t*, int64_t) { return _mm512_setzero_ps(); }
};

struct Q50 : Q40 {
    static constexpr BlockType kType = BlockType::kQ50;
    static constexpr int64_t kStepBytes = 320;
    static Quads pair(const uint8_t* codes, int v) {
        const auto [low, high] = Q40::pair(codes, v);
        const __m512i bit = _mm512_set1_epi8(16);
        const __mmask64* masks = reinterpret_cast<const __mmask64*>(codes + 256) + 2 * v;
        return {_mm512_or_si512(low, _mm512_maskz_mov_epi8(_load_mask64(const_cast<__mmask64*>(masks)), bit)),
                _mm512_or_si512(high, _mm512_maskz_mov_epi8(_load_mask64(const_cast<__mmask64*>(masks + 1)), bit))};
    }
};

struct Q4K : Q40 {
    static constexpr BlockType kType = BlockType::kQ4K;
    static constexpr int64_t kFactorBytes = 320, kSteps = 8;
    static constexpr bool kHasOffset = true;
    static __m512 scale(const uint8_t* factors, int64_t g, int64_t) {
        return _mm512_mul_ps(halves(factors), unsigned_bytes(factors + 64 + 16 * g));
    }
    static __m512 offset(const uint8_t* factors, int64_t g) {
        const __m512 product = _mm512_mul_ps(halves(factors + 32), unsigned_bytes(factors + 192 + 16 * g));
        return _mm512_xor_ps(product, _mm512_set1_ps(-0.0f));
    }
};

struct Q6K {
    static constexpr BlockType kType = BlockType::kQ6K;
    static constexpr int64_t kStepBytes = 384, kFactorBytes = 288, kSteps = 8;
    static constexpr bool kHalfGroups = true, kHasOffset = false;
    static Quads pair(const uint8_t* codes, int v) {
        const auto [low, high] = Q40::pair(codes, v);
        const __m512i top = _mm512_loadu_si512(codes + 256 + 64 * (v / 2)), mask = _mm512_set1_epi8(0x30);
        const __m512i first = v % 2 == 0 ? _mm512_slli_epi16(top, 4) : top;
        const __m512i second = v % 2 == 0 ? _mm512_slli_epi16(top, 2) : _mm512_srli_epi16(top, 2);
        return {_mm512_or_si512(low, _mm512_and_si512(first, mask)), _mm512_or_si512(high, _mm512_and_si512(second, mask))};
    }
    static __m512 scale(const uint8_t* factors, int64_t g, int64_t half) {
        return _mm512_mul_ps(halves(factors), signed_bytes(factors + 32 + 16 * (2 * g + half)));
    }
    static __m512 offset(const uint8_t*, int64_t) { return _mm512_setzero_ps(); }
};

__m512i broadcast4(const int8_t* from) { return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(from)); }

// sum[r] += vectors [first, last) of a step times row r.
template <class F, int R>
void add_pairs(__m512i (&sum)[R], const uint8_t* codes, const int8_t* q, int64_t row_bytes, int first, int last) {
#pragma GCC unroll 4
    for (int v = first; v < last; ++v) {
        const auto [even, odd] = F::pair(codes, v);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            sum[r] = _mm512_dpbusd_epi32(sum[r], even, broadcast4(q + r * row_bytes + 8 * v));
            sum[r] = _mm512_dpbusd_epi32(sum[r], odd, broadcast4(q + r * row_bytes + 8 * v + 4));
        }
    }
}

// R rows times one panel.
template <class F, int R>
void multiply_rows(const PanelTile& tile, int64_t row, int64_t panel) {
    const uint8_t* codes = tile.panels + panel * tile.panel_bytes;
    const uint8_t* factors = codes + tile.steps * F::kStepBytes;
    const int64_t row_bytes = tile.steps * kPanelStep;
    const int8_t* q = tile.q + row * row_bytes;
    const StepFactors* of_row = tile.factors + row * tile.steps;
    __m512 y[R];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) y[r] = _mm512_setzero_ps();
    for (int64_t s = 0; s < tile.steps; ++s, codes += F::kStepBytes, q += kPanelStep, ++of_row) {
        const int64_t g = s % F::kSteps;
        if constexpr (R <= 2) {  // from memory: the hardware's prefetch stops where a page ends
#pragma GCC unroll 8
            for (int64_t line = 0; line < F::kStepBytes; line += 64)
                _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead + line), _MM_HINT_T0);
        }
        constexpr int kGroups = F::kHalfGroups ? 2 : 1;
#pragma GCC unroll 2
        for (int half = 0; half < kGroups; ++half) {
            __m512i sum[R];
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) sum[r] = _mm512_set1_epi32(of_row[r * tile.steps].shift[half]);
            add_pairs<F, R>(sum, codes, q, row_bytes, 4 / kGroups * half, 4 / kGroups * (half + 1));
            const __m512 scale = F::scale(factors, g, half);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const __m512 d = _mm512_set1_ps(of_row[r * tile.steps].d);
                y[r] = _mm512_fmadd_ps(scale, _mm512_mul_ps(d, _mm512_cvtepi32_ps(sum[r])), y[r]);
            }
        }
        if constexpr (F::kHasOffset) {
            const __m512 offset = F::offset(factors, g);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) y[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(of_row[r * tile.steps].sum), y[r]);
        }
        if (g == F::kSteps - 1) factors += F::kFactorBytes;
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(tile.y + (row + r) * tile.y_row + panel * kPanelLanes, y[r]);
}

using MultiplyRows = void (*)(const PanelTile& tile, int64_t row, int64_t panel);

template <class F, int... I>
constexpr std::array<MultiplyRows, sizeof...(I)> make_table(std::integer_sequence<int, I...>) {
    return {&multiply_rows<F, I + 1>...};
}
template <class F>
constexpr auto kTable = make_table<F>(std::make_integer_sequence<int, kMaxRows>{});

// Rows in as few slivers as possible, equal within one; a sliver's rows stay in L1 while the panels pass, which come from L2
// after the first sliver.
template <class F>
void multiply_type(const PanelTile& tile) {
    const int64_t slivers = (tile.rows + kMaxRows - 1) / kMaxRows;
    for (int64_t i = 0; i < slivers; ++i) {
        const int64_t row = tile.rows * i / slivers, end = tile.rows * (i + 1) / slivers;
        for (int64_t panel = 0; panel < tile.panel_count; ++panel)
            kTable<F>[static_cast<size_t>(end - row - 1)](tile, row, panel);
    }
}

void multiply(const PanelTile& tile) {
    switch (tile.type) {
        case BlockType::kQ80:
            return multiply_type<Q80>(tile);
        case BlockType::kQ40:
            return multiply_type<Q40>(tile);
        case BlockType::kQ50:
            return multiply_type<Q50>(tile);
        case BlockType::kQ4K:
            return multiply_type<Q4K>(tile);
        default:
            return multiply_type<Q6K>(tile);
    }
}

}  // namespace

const QuantKernels& quant_kernels_vnni_avx512() {
    static constexpr QuantKernels kKernels{quantize_row, multiply};
    return kKernels;
}

}  // namespace fathom
