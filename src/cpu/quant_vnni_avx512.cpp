// The products of panels with AVX512-VNNI: each quad of codes meets four broadcast bytes of every row, 16 x 4 multiply-adds per
// vpdpbusd; per step, row and panel 8 of them, then two fma. Integer and float sums stay in registers: of up to 12 rows and one
// panel, or of 6 rows and two panels that share what is broadcast, 8 loads for 12 products instead of 13 (as many loads as
// products keep each other waiting). Up to 12 rows unpack a step's codes on the way; for more rows a tile of panels is unpacked
// once, to bytes and f32 factors in L2. One row reads a panel at 50 GB/s and more from the cache, several times what memory
// gives.
#include <immintrin.h>
#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "cpu/quant_rows_avx512.h"
#include "cpu/quant_steps_avx512.h"

namespace fathom {
namespace {

// Integer sums begin with the bits of 3 * 2^22 instead of 0: they are numbers of f32 then without being converted, as none is
// beyond 2^22 (32 * 255 * 127 = 2^19.98), and one fma takes the start off and multiplies by the scale.
constexpr float kStart = 12582912.0f;
constexpr auto kStartBits = std::bit_cast<int32_t>(kStart);

constexpr int kMaxRows = 12;
constexpr int kRowsFromMemory = 4;  // so few leave reading the bottleneck
constexpr int64_t kAhead = 4096;    // bytes; 2 KB reads Q4_0 at 0.84 of the read roof, 4 to 16 KB at 0.94

// ---- products ------------------------------------------------------------------------------------------------------------

__m512i broadcast4(const int8_t* from) { return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(from)); }

// sum[p][r] += quads 2 v and 2 v + 1 of panel p times row r, whose columns they meet begin at x + r row_bytes.
template <int v, class S, int P, int R>
[[gnu::always_inline]] inline void add_pair(__m512i (&sum)[P][R], const S (&step)[P], const int8_t* x, int64_t row_bytes) {
    Quads codes[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) codes[p] = step[p].template quads<v>();
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
        const __m512i even = broadcast4(x + r * row_bytes), odd = broadcast4(x + r * row_bytes + 4);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
            sum[p][r] = _mm512_dpbusd_epi32(sum[p][r], codes[p].even, even);
            sum[p][r] = _mm512_dpbusd_epi32(sum[p][r], codes[p].odd, odd);
        }
    }
}
template <int kFirst, class S, int P, int R, int... i>
[[gnu::always_inline]] inline void add_pairs(__m512i (&sum)[P][R], const S (&step)[P], const int8_t* q, int64_t row_bytes,
                                             std::integer_sequence<int, i...>) {
    (add_pair<kFirst + i>(sum, step, q + 8 * (kFirst + i), row_bytes), ...);
}

// scale * float(sum) of a sum that began at kStart, whose bits are kStart + sum as f32; less: -kStart scale, without rounding.
template <class S>
[[gnu::always_inline]] inline __m512 scaled(__m512i sum, __m512 scale, __m512 less) {
    if constexpr (S::kShortScale) return _mm512_fmadd_ps(_mm512_castsi512_ps(sum), scale, less);
    return _mm512_mul_ps(scale, _mm512_sub_ps(_mm512_castsi512_ps(sum), _mm512_set1_ps(kStart)));
}

// Group kGroup of a step of P panels times R rows. Places inside a step are template arguments: as a loop's variable they kept
// the unpacking of codes from being inlined, which cost Q6_K a third; left to itself, the compiler calls add_pair as well.
template <int kGroup, class S, int P, int R>
[[gnu::always_inline]] inline void add_group(__m512 (&y)[P][R], const S (&step)[P], const int8_t* q, const StepFactors* of_row,
                                             int64_t steps) {
    constexpr int kVectors = S::kHalfGroups ? 2 : 4;
    __m512i sum[P][R];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) sum[p][r] = _mm512_set1_epi32(of_row[r * steps].shift[kGroup]);
    add_pairs<kVectors * kGroup>(sum, step, q, steps * kPanelStep, std::make_integer_sequence<int, kVectors>{});
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
        const __m512 scale = step[p].scale(kGroup), less = _mm512_mul_ps(scale, _mm512_set1_ps(-kStart));
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r)
            y[p][r] = _mm512_fmadd_ps(_mm512_set1_ps(of_row[r * steps].d), scaled<S>(sum[p][r], scale, less), y[p][r]);
        if constexpr (S::kHasOffset) {
            const __m512 offset = step[p].offset(kGroup);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r)
                y[p][r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(of_row[r * steps].sum[kGroup]), y[p][r]);
        }
    }
}

// R rows from `row` on times P panels, whose columns of C begin at `column`.
template <class S, int P, int R>
void multiply_rows(const PanelTile& tile, const uint8_t* panel, int64_t panel_bytes, int64_t row, int64_t column) {
    const int64_t steps = tile.steps;
    const int8_t* q = tile.q + row * steps * kPanelStep;
    const StepFactors* of_row = tile.factors + row * steps;
    S step[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) step[p] = S(panel + p * panel_bytes);
    __m512 y[P][R];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) y[p][r] = _mm512_setzero_ps();
    for (int64_t s = 0; s < steps; ++s, q += kPanelStep, ++of_row) {
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) step[p].open();
        add_group<0>(y, step, q, of_row, steps);
        if constexpr (S::kHalfGroups) add_group<1>(y, step, q, of_row, steps);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) step[p].next();
    }
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) _mm512_storeu_ps(tile.y + (row + r) * tile.y_row + column + p * kPanelLanes, y[p][r]);
}

using MultiplyRows = void (*)(const PanelTile& tile, const uint8_t* panel, int64_t panel_bytes, int64_t row, int64_t column);

template <class S, int P, int... I>
constexpr std::array<MultiplyRows, sizeof...(I)> make_table(std::integer_sequence<int, I...>) {
    return {&multiply_rows<S, P, I + 1>...};
}
template <class S, int P>
constexpr auto kTable = make_table<S, P>(std::make_integer_sequence<int, kMaxRows / P>{});

// All rows times `count` panels from `panels` on, the first of them the tile's panel `first`, P at a time while there are so
// many. Rows in as few slivers as possible, equal within one; a sliver's rows stay in L1 while the panels pass, which come from
// L2.
template <class S, int P>
void multiply_slivers(const PanelTile& tile, const uint8_t* panels, int64_t panel_bytes, int64_t first, int64_t count) {
    constexpr int64_t kRows = kMaxRows / P;
    const int64_t slivers = (tile.rows + kRows - 1) / kRows;
    for (int64_t i = 0; i < slivers; ++i) {
        const int64_t row = tile.rows * i / slivers, end = tile.rows * (i + 1) / slivers;
        const auto place = static_cast<size_t>(end - row - 1);
        int64_t panel = 0;
        for (; panel + P <= count; panel += P)
            kTable<S, P>[place](tile, panels + panel * panel_bytes, panel_bytes, row, (first + panel) * kPanelLanes);
        for (; panel < count; ++panel)
            kTable<S, 1>[place](tile, panels + panel * panel_bytes, panel_bytes, row, (first + panel) * kPanelLanes);
    }
}

template <BlockType T>
constexpr auto kFetchingTable = make_table<PackedSteps<T, kAhead>, 1>(std::make_integer_sequence<int, kRowsFromMemory>{});

template <BlockType T, bool Fetching>
void multiply_type(const PanelTile& tile, uint8_t* scratch) {
    if (Fetching && tile.rows <= kRowsFromMemory) {
        for (int64_t panel = 0; panel < tile.panel_count; ++panel)
            kFetchingTable<T>[static_cast<size_t>(tile.rows - 1)](tile, tile.panels + panel * tile.panel_bytes,
                                                                  tile.panel_bytes, 0, panel * kPanelLanes);
        return;
    }
    if (tile.rows <= kMaxRows)
        return multiply_slivers<PackedSteps<T>, 1>(tile, tile.panels, tile.panel_bytes, 0, tile.panel_count);
    if (kTraits<T>.bits == 8)
        return multiply_slivers<PackedSteps<T>, 2>(tile, tile.panels, tile.panel_bytes, 0, tile.panel_count);
    const int64_t bytes = unpacked_panel_bytes(kTraits<T>, tile.steps), chunk = std::max<int64_t>(1, kUnpackedBytes / bytes);
    for (int64_t first = 0; first < tile.panel_count; first += chunk) {
        const int64_t count = std::min(chunk, tile.panel_count - first);
        for (int64_t i = 0; i < count; ++i)
            unpack_panel<T>(scratch + i * bytes, tile.panels + (first + i) * tile.panel_bytes, tile.steps);
        multiply_slivers<Unpacked<T>, 2>(tile, scratch, bytes, first, count);
    }
}

using Multiply = void (*)(const PanelTile& tile, uint8_t* scratch);

template <bool Fetching, size_t... I>
constexpr std::array<Multiply, sizeof...(I)> make_types(std::index_sequence<I...>) {
    return {&multiply_type<static_cast<BlockType>(I + 1), Fetching>...};
}
template <bool Fetching>
constexpr auto kTypes = make_types<Fetching>(std::make_index_sequence<static_cast<size_t>(kLastBlockType)>{});

template <bool Fetching>
void multiply(const PanelTile& tile, uint8_t* scratch) {
    kTypes<Fetching>[static_cast<size_t>(tile.type) - 1](tile, scratch);
}

}  // namespace

const QuantKernels& quant_kernels_vnni_avx512(bool fetch_ahead) {
    static constexpr QuantKernels kPlain{quantize_row_avx512<kStartBits>, multiply<false>, decode_all_rows_avx512},
        kFetching{quantize_row_avx512<kStartBits>, multiply<true>, decode_all_rows_avx512};
    return fetch_ahead ? kFetching : kPlain;
}

}  // namespace fathom
