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

// Rows m0 .. m0 + R of C and the lanes of up to W vectors of columns from n0; lanes beyond `columns` do not exist.
template <class V, int R, int W>
struct Sums {
    typename V::Float sum[W][R];

    void begin(const GemmProduct& p, int64_t m0, int64_t n0, int64_t columns) {
#pragma GCC unroll 16
        for (int w = 0; w < W; ++w)
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                sum[w][r] = p.accumulate ? V::load_first(at(p, m0 + r, n0, w), count(columns, w)) : V::zero();
    }
    void end(const GemmProduct& p, int64_t m0, int64_t n0, int64_t columns) const {
#pragma GCC unroll 16
        for (int w = 0; w < W; ++w)
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) V::store_first(at(p, m0 + r, n0, w), sum[w][r], count(columns, w));
    }
    static float* at(const GemmProduct& p, int64_t m, int64_t n0, int w) { return p.c + m * p.c_row + n0 + w * V::kLanes; }
    static int count(int64_t columns, int w) {
        return static_cast<int>(std::clamp<int64_t>(columns - w * V::kLanes, 0, V::kLanes));
    }
};

// B stored [n, k]: one vector of columns, square by square.
template <class V, class T, int R>
void stream_transposed(const GemmProduct& p, int64_t m0, int64_t n0, int64_t n1) {
    const int64_t columns = n1 - n0;
    constexpr int kDepth = Square<V, T>::kDepth;
    const Stored<T> b(p.b);
    const float* a = p.a + m0 * p.a_row;
    Sums<V, R, 1> c;
    c.begin(p, m0, n0, columns);
    Square<V, T> square;
    const auto add = [&](int i) {
        const auto y = square.at(i);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) c.sum[0][r] = V::fma(V::broadcast(a[r * p.a_row + i]), y, c.sum[0][r]);
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
    c.end(p, m0, n0, columns);
}

// B stored [k, n]: W vectors of columns, row by row.
template <class V, class T, int R, int W>
void stream_rows(const GemmProduct& p, int64_t m0, int64_t n0, int64_t columns) {
    constexpr int kAhead = 8;  // rows: the next one is on another page, so the hardware does not guess it
    const Stored<T> b(p.b);
    const float* const a = p.a + m0 * p.a_row;
    Sums<V, R, W> c;
    c.begin(p, m0, n0, columns);
    for (int64_t k = 0; k < p.k; ++k) {
        typename V::Float x[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) x[r] = V::broadcast(a[r * p.a_row + k]);
#pragma GCC unroll 16
        for (int w = 0; w < W; ++w) {
            const int64_t n = n0 + w * V::kLanes;
            if (w * V::kLanes * static_cast<int>(sizeof(T)) % 64 == 0) V::prefetch(b.at(k + kAhead, n));
            const auto y = load_scaled<V>(b, k, n, W == 1 ? c.count(columns, w) : V::kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) c.sum[w][r] = V::fma(x[r], y, c.sum[w][r]);
        }
    }
    c.end(p, m0, n0, columns);
}

// Columns [n0, n1): groups as wide as the registers allow, then what is left.
template <class V, class T, int R>
void stream_direct(const GemmProduct& p, int64_t m0, int64_t n0, int64_t n1) {
    constexpr int kWide = std::clamp(V::kSums / R, 1, 16);
    for (; n0 + kWide * V::kLanes <= n1; n0 += kWide * V::kLanes) stream_rows<V, T, R, kWide>(p, m0, n0, kWide * V::kLanes);
    if constexpr (kWide > 4)
        for (; n0 + 4 * V::kLanes <= n1; n0 += 4 * V::kLanes) stream_rows<V, T, R, 4>(p, m0, n0, 4 * V::kLanes);
    for (; n0 < n1; n0 += V::kLanes) stream_rows<V, T, R, 1>(p, m0, n0, std::min<int64_t>(n1 - n0, V::kLanes));
}

using Stream = void (*)(const GemmProduct& p, int64_t m0, int64_t n0, int64_t n1);

template <class V, class T, int... I>
constexpr std::array<std::array<Stream, sizeof...(I)>, 2> make_streams(std::integer_sequence<int, I...>) {
    return {{{&stream_direct<V, T, I + 1>...}, {&stream_transposed<V, T, I + 1>...}}};
}
// kStreams[transposed][rows - 1].
template <class V, class T>
constexpr auto kStreams = make_streams<V, T>(std::make_integer_sequence<int, V::kStreamRows>{});

template <class V, class T>
void stream(const GemmTile& tile) {
    const GemmProduct& p = *tile.product;
    const auto& streams = kStreams<V, T>[p.b.transposed ? 1 : 0];
    const Slivers slivers(tile.m0, tile.m1, V::kStreamRows);
    // A second sliver of rows finds the columns' weights in L2 if few columns are done at a time.
    const int64_t step = p.b.transposed ? V::kLanes : tile.n1 - tile.n0;
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
