// Products of panels of bf16 with vdpbf16ps: activations rounded to bf16, each f32 sum takes two columns at a time.
// For rows of at most 8 (decoding) a panel is read once along its length, one stream of bytes, which is what memory gives
// fastest (docs/performance.md); for more, 14 rows x 2 panels of sums stay in registers, as in gemm_tile.h, and the next two
// panels are fetched meanwhile. Panels are met as they lie in memory; only rows of activations are packed.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <utility>

#include "cpu/gemm.h"
#include "cpu/gemm_operand.h"
#include "cpu/pairs_avx512.h"

namespace fathom {
namespace {

constexpr int kRows = 14, kFewRows = 8;
constexpr int64_t kLanes = 16;
constexpr int64_t kBlock = 256;          // pairs: two panels of them are 32 KB, 14 rows 14 KB
constexpr int64_t kAhead = 48 * kLanes;  // pairs of one panel: 5 to 8 rows gain a tenth, fewer lose one
constexpr int64_t kPackedRows = GemmBlocking::kPackedA / kBlock / kRows * kRows;

// ---- activations ---------------------------------------------------------------------------------------------------------

// to[l rows + r] = pair l of row r. Writes up to 15 pairs behind its end.
void pack_rows(Pair* to, const float* a, int64_t a_row, int rows, int64_t pairs) {
    for (int64_t l = 0; l < pairs; l += kLanes) {
        const int64_t count = std::min(kLanes, pairs - l);
        if (rows == 1) {
            _mm512_storeu_ps(to + l, pairs_of(a + 2 * l, 2 * count));
            continue;
        }
        Avx512 square[kLanes];
        for (int r = 0; r < kLanes; ++r)
            square[r].v = r < rows ? pairs_of(a + r * a_row + 2 * l, 2 * count) : _mm512_setzero_ps();
        Avx512::transpose(square);
        for (int64_t i = 0; i < count; ++i) _mm512_storeu_ps(to + (l + i) * rows, square[i].v);
    }
}

// ---- kernels -------------------------------------------------------------------------------------------------------------

struct Step {
    const Pair* a;     // [pairs, R]
    const Pair* b;     // the first panel
    int64_t b_panel;   // pairs between panels
    const Pair* next;  // what is wanted soon, a line for each pair, or b itself
    int64_t pairs;
    float* c;
    int64_t c_row;
    bool from_zero;
};

// c[0:R, 0:16 N] (+)= R rows times N panels.
template <int R, int N>
void kernel(const Step& step) {
    __m512 sum[R][N];
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j)
            sum[r][j] = step.from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(step.c + r * step.c_row + j * kLanes);
    const Pair *a = step.a, *b = step.b, *next = step.next;
    for (int64_t l = 0; l < step.pairs; ++l, a += R, b += kLanes) {
        __m512 y[N];
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) y[j] = _mm512_loadu_ps(b + j * step.b_panel);
        if constexpr (N == 1 && R >= 5) _mm_prefetch(b + kAhead, _MM_HINT_T0);
        if constexpr (N == 2) {
            _mm_prefetch(next, _MM_HINT_T1);
            next += kLanes;
        }
#pragma GCC unroll 14
        for (int r = 0; r < R; ++r) {
            const __m512 x = _mm512_set1_ps(a[r]);
#pragma GCC unroll 2
            for (int j = 0; j < N; ++j) sum[r][j] = add_pairs(sum[r][j], x, y[j]);
        }
    }
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) _mm512_storeu_ps(step.c + r * step.c_row + j * kLanes, sum[r][j]);
}

using Kernel = void (*)(const Step&);
template <int N, int... I>
constexpr std::array<Kernel, sizeof...(I)> make_kernels(std::integer_sequence<int, I...>) {
    return {&kernel<I + 1, N>...};
}
// kKernels[panels - 1][rows - 1].
constexpr std::array kKernels{make_kernels<1>(std::make_integer_sequence<int, kRows>{}),
                              make_kernels<2>(std::make_integer_sequence<int, kRows>{})};

// ---- tile ----------------------------------------------------------------------------------------------------------------

struct Block {
    const GemmTile& tile;
    const Slivers& slivers;
    int64_t k0, pairs;
    const Pair* rows;  // of all slivers
};

// All panels of the tile, for each all rows: while the first two slivers meet two panels, the next two are fetched.
void multiply_block(const Block& block) {
    const GemmProduct& p = *block.tile.product;
    const Stored<BFloat16> b(p.b);
    const auto panel_at = [&](int64_t n) { return reinterpret_cast<const Pair*>(b.in_panel(block.k0, n)); };
    const int64_t together = block.slivers.count == 1 && block.slivers.end - block.slivers.begin <= kFewRows ? 1 : 2;
    Step step{.b_panel = p.b.stride / 2, .pairs = block.pairs, .c_row = p.c_row, .from_zero = block.k0 == 0 && !p.accumulate};
    for (int64_t n = block.tile.n0; n < block.tile.n1; n += together * kLanes) {
        const int64_t panels = std::min(together, (block.tile.n1 - n) / kLanes);
        step.a = block.rows;
        step.b = panel_at(n);
        for (int64_t i = 0; i < block.slivers.count; ++i) {
            const int64_t m = block.slivers.at(i), rows = block.slivers.at(i + 1) - m;
            const int64_t soon = n + (2 + i) * kLanes;
            step.next = i < 2 && soon < block.tile.n1 ? panel_at(soon) : step.b;
            step.c = p.c + m * p.c_row + n;
            kKernels[static_cast<size_t>(panels - 1)][static_cast<size_t>(rows - 1)](step);
            step.a += rows * block.pairs;
        }
    }
}

}  // namespace

void pack_pairs_avx512(void* panel, const float* rows, int64_t stride, int64_t k) {
    auto* to = static_cast<Pair*>(panel);
    for (int64_t l = 0; l < k; l += 2, to += kLanes)
        _mm512_storeu_ps(to, pairs_of(Avx512::load(rows + l * stride), Avx512::load(rows + (l + 1) * stride)));
}

void gemm_tile_pairs_avx512(const GemmTile& tile, float* scratch) {
    const GemmProduct& p = *tile.product;
    const int64_t most = tile.m1 - tile.m0, all = p.k / 2;
    const int64_t block_pairs = most <= kFewRows ? GemmBlocking::kPackedA / kFewRows : kBlock;
    for (int64_t l = 0; l == 0 || l < all; l += block_pairs) {
        const int64_t pairs = std::min(block_pairs, all - l);
        for (int64_t m0 = tile.m0; m0 < tile.m1; m0 += kPackedRows) {
            const Slivers slivers(m0, std::min(m0 + kPackedRows, tile.m1), kRows);
            Pair* to = scratch;
            for (int64_t i = 0; i < slivers.count; ++i) {
                const int64_t m = slivers.at(i), rows = slivers.at(i + 1) - m;
                pack_rows(to, p.a + m * p.a_row + 2 * l, p.a_row, static_cast<int>(rows), pairs);
                to += rows * pairs;
            }
            multiply_block({tile, slivers, 2 * l, pairs, scratch});
        }
    }
}

}  // namespace fathom
