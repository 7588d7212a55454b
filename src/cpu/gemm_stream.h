// Products with few rows: decoding. Each weight is read once from memory, becomes f32 in a register and is used at once for all
// rows; nothing is packed. Bound by memory up to about 4 rows of bf16 (docs/performance.md).
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "cpu/gemm.h"
#include "cpu/gemm_operand.h"

namespace fathom {
namespace {

// B stored [n, k]: one vector of columns, square by square.
template <class V, class T, int R>
void stream_transposed(const GemmProduct& p, int64_t m0, int64_t n0, int64_t n1) {
    const auto columns = static_cast<int>(n1 - n0);
    constexpr int kDepth = Square<V, T>::kDepth;
    const Stored<T> b(p.b);
    const float* a = p.a + m0 * p.a_row;
    float* const c = p.c + m0 * p.c_row + n0;
    typename V::Float sum[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r] = p.accumulate ? V::load_first(c + r * p.c_row, columns) : V::zero();
    Square<V, T> square;
    const auto add = [&](int i) {
        const auto y = square.at(i);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r] = V::fma(V::broadcast(a[r * p.a_row + i]), y, sum[r]);
    };
    int64_t k = 0;
    for (; k + kDepth <= p.k; k += kDepth, a += kDepth) {
        square.load(b, n0, columns, k, kDepth);
#pragma GCC unroll 32
        for (int i = 0; i < kDepth; ++i) add(i);
    }
    const int left = static_cast<int>(p.k - k);
    if (left > 0) square.load(b, n0, columns, k, left);
    for (int i = 0; i < left; ++i) add(i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) V::store_first(c + r * p.c_row, sum[r], columns);
}

// B stored [k, n]: J rows of it at a time, so that each is read along its length; C waits in L1 meanwhile. The next J rows lie
// on other pages, where the hardware does not look ahead. They are fetched to L2: rows a power of two apart share one set of
// L1, which has no room for twice J lines (L1: 0.55 of the read roof, L2: 0.75 to 0.99).
template <class V, class T, int R, int J>
void stream_rows(const GemmProduct& p, int64_t m0, int64_t n0, int64_t n1, int64_t k, bool from_zero) {
    const Stored<T> b(p.b);
    const float* const a = p.a + m0 * p.a_row + k;
    typename V::Float x[R][J];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) x[r][j] = V::broadcast(a[r * p.a_row + j]);
    for (int64_t n = n0; n < n1; n += V::kLanes) {
        const int count = static_cast<int>(std::min<int64_t>(n1 - n, V::kLanes));
        typename V::Float y[J];
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) {
            V::prefetch_to_l2(b.at(k + J + j, n));
            y[j] = load_scaled<V>(b, k + j, n, count);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            float* const c = p.c + (m0 + r) * p.c_row + n;
            auto sum = from_zero ? V::zero() : V::load_first(c, count);
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j) sum = V::fma(x[r][j], y[j], sum);
            V::store_first(c, sum, count);
        }
    }
}

template <class V, class T, int R>
void stream_direct(const GemmProduct& p, int64_t m0, int64_t n0, int64_t n1) {
    constexpr int kRowsOfB = R == 1 ? 8 : 4;
    int64_t k = 0;
    for (; k + kRowsOfB <= p.k; k += kRowsOfB) stream_rows<V, T, R, kRowsOfB>(p, m0, n0, n1, k, k == 0 && !p.accumulate);
    for (; k < p.k; ++k) stream_rows<V, T, R, 1>(p, m0, n0, n1, k, k == 0 && !p.accumulate);
    if (p.k == 0) stream_rows<V, T, R, 0>(p, m0, n0, n1, 0, !p.accumulate);
}

template <class Load, class T, int N, int... J>
std::array<Load, N> loads(const T* const (&from)[N], int64_t at, std::integer_sequence<int, J...>) {
    return {Load(from[J] + at)...};
}

// B in panels: N vectors of columns side by side, so that as many chains of sums are under way while a multiply-add takes its
// time, and each panel is read along its length. One row of bf16 from memory, one thread: 0.92 of the read roof with N = 2,
// 0.83 with 4, 0.52 from rows as above.
template <class V, class T, int R, int N>
void stream_panel_vectors(const GemmProduct& p, int64_t m0, int64_t n0) {
    using Load = PanelLoad<V, T>;
    constexpr int64_t kAhead = 2048 / sizeof(T);                                                // elements
    constexpr int64_t kLine = std::max<int64_t>(64 / sizeof(T) / kPanelColumns, Load::kDepth);  // k of a cache line
    const Stored<T> b(p.b);
    const T* from[N];
    typename V::Float sum[R][N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
        from[j] = b.in_panel(0, n0 + j * V::kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
            sum[r][j] = p.accumulate ? V::load(p.c + (m0 + r) * p.c_row + n0 + j * V::kLanes) : V::zero();
    }
    // Behind the end of its panel a chain asks for what it will read next, beyond the panels of the others.
    const int64_t last = p.k - kAhead / kPanelColumns;
    const int64_t others = std::max<int64_t>(0, N * V::kLanes / kPanelColumns - 1) * p.b.stride;
    const float* a = p.a + m0 * p.a_row;
    const auto add = [&](int64_t k) {
        std::array<Load, N> line = loads<Load>(from, k * kPanelColumns, std::make_integer_sequence<int, N>{});
#pragma GCC unroll 2
        for (int i = 0; i < Load::kDepth; ++i)
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const auto x = V::broadcast(a[r * p.a_row + k + i]);
#pragma GCC unroll 4
                for (int j = 0; j < N; ++j) sum[r][j] = V::fma(x, line[j].at(i), sum[r][j]);
            }
    };
    int64_t k = 0;
    for (; k + kLine <= p.k; k += kLine) {
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) V::prefetch(from[j] + k * kPanelColumns + kAhead + (k < last ? 0 : others));
#pragma GCC unroll 4
        for (int64_t i = 0; i < kLine; i += Load::kDepth) add(k + i);
    }
    for (; k < p.k; k += Load::kDepth) add(k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) V::store(p.c + (m0 + r) * p.c_row + n0 + j * V::kLanes, sum[r][j]);
}

template <class V, class T, int R>
void stream_panels(const GemmProduct& p, int64_t m0, int64_t n0, int64_t n1) {
    constexpr int kVectors = R <= 4 ? 2 : 1;
    for (; n0 + kVectors * V::kLanes <= n1; n0 += kVectors * V::kLanes) stream_panel_vectors<V, T, R, kVectors>(p, m0, n0);
    for (; n0 < n1; n0 += V::kLanes) stream_panel_vectors<V, T, R, 1>(p, m0, n0);
}

using Stream = void (*)(const GemmProduct& p, int64_t m0, int64_t n0, int64_t n1);

template <class V, class T, int... I>
constexpr std::array<std::array<Stream, sizeof...(I)>, 3> make_streams(std::integer_sequence<int, I...>) {
    return {{{&stream_direct<V, T, I + 1>...}, {&stream_transposed<V, T, I + 1>...}, {&stream_panels<V, T, I + 1>...}}};
}
// kStreams[stored [k, n], [n, k] or panels][rows - 1].
template <class V, class T>
constexpr auto kStreams = make_streams<V, T>(std::make_integer_sequence<int, V::kStreamRows>{});

template <class V, class T>
void stream(const GemmTile& tile) {
    const GemmProduct& p = *tile.product;
    const auto& streams = kStreams<V, T>[p.b.panels ? 2 : p.b.transposed ? 1 : 0];
    const Slivers slivers(tile.m0, tile.m1, V::kStreamRows);
    // A second sliver of rows finds the columns' weights in L2 if few columns are done at a time.
    const int64_t step = p.b.panels ? 64 : p.b.transposed ? V::kLanes : tile.n1 - tile.n0;
    for (int64_t n = tile.n0; n < tile.n1; n += step)
        for (int64_t i = 0; i < slivers.count; ++i) {
            const int64_t m = slivers.at(i), rows = slivers.at(i + 1) - m;
            streams[static_cast<size_t>(rows - 1)](p, m, n, std::min(n + step, tile.n1));
        }
}

// Does nothing and says so when the tile has too many rows or the rows of A are not contiguous.
template <class V>
bool stream_tile(const GemmTile& tile) {
    const GemmProduct& p = *tile.product;
    if (tile.m1 - tile.m0 > V::kFewRows || p.a_k != 1) return false;
    switch (p.b.dtype) {
        case DType::kBF16:
            return stream<V, BFloat16>(tile), true;
        case DType::kF16:
            return stream<V, Float16>(tile), true;
        case DType::kF8E4M3:
            return stream<V, Float8E4M3>(tile), true;
        default:
            return stream<V, float>(tile), true;
    }
}

}  // namespace
}  // namespace fathom
