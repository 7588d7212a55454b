// How rows are dealt out, and the operand B read as f32 vectors (see gemm_tile.h for why everything here has internal linkage).
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/gemm.h"

namespace fathom {
namespace {

// Rows [m0, m1) in as few slivers as `rows` per sliver allow, of sizes that differ by at most one: no sliver is left with one
// row.
struct Slivers {
    int64_t begin, end, count;

    Slivers(int64_t m0, int64_t m1, int64_t rows) : begin(m0), end(m1), count((m1 - m0 + rows - 1) / rows) {}
    int64_t at(int64_t i) const { return begin + (end - begin) * i / count; }
};

inline constexpr int64_t kPanelColumns = Weight::kPanelRows;

// The stored matrix with its element type known.
template <class T>
struct Stored {
    const T* data;
    const GemmMatrix& matrix;

    explicit Stored(const GemmMatrix& m) : data(static_cast<const T*>(m.data)), matrix(m) {}
    const T* at(int64_t row, int64_t column) const { return data + row * matrix.stride + column; }
    // B[k, n] of panels; bf16: k is even, and B[k + 1, n] stands behind it.
    const T* in_panel(int64_t k, int64_t n) const {
        const int64_t lane = n % kPanelColumns * (std::is_same_v<T, BFloat16> ? 2 : 1);
        return data + n / kPanelColumns * matrix.stride + k * kPanelColumns + lane;
    }
    bool scaled() const { return std::is_same_v<T, Float8E4M3> && matrix.scales != nullptr; }
    // Whether rows [row, row + n) have the same scales.
    bool one_scale(int64_t row, int64_t n) const {
        return !scaled() || (row + matrix.row0) / kFp8Block == (row + n - 1 + matrix.row0) / kFp8Block;
    }
    float scale(int64_t row, int64_t column) const {
        return matrix.scales[(row + matrix.row0) / kFp8Block * matrix.scales_stride + column / kFp8Block];
    }
};

// Lanes of stored row `row` from `column`, as f32; `count` of them exist. The columns lie in one block of scales.
template <class V, class T>
[[gnu::always_inline]] inline typename V::Float load_scaled(const Stored<T>& b, int64_t row, int64_t column, int count) {
    const T* const from = b.at(row, column);
    const auto codes = count >= V::kLanes ? V::load(from) : V::load_first(from, count);
    return b.scaled() ? V::multiply(codes, V::broadcast(b.scale(row, column))) : codes;
}

// Columns n0 .. n0 + lanes and kDepth successive k of a matrix stored [n, k], transposed in registers. Rows that do not exist
// repeat the last one: their columns of C are never written.
template <class V, class T>
struct Square {
    static constexpr int kDepth = V::kLanes;
    typename V::Float rows[V::kLanes];

    // `n` columns and `count` <= kDepth of k exist.
    void load(const Stored<T>& b, int64_t n0, int64_t n, int64_t k0, int count) {
        if (n == V::kLanes && count == kDepth && b.one_scale(n0, n)) {
            const T* from = b.at(n0, k0);
#pragma GCC unroll 16
            for (int i = 0; i < V::kLanes; ++i, from += b.matrix.stride) rows[i] = V::load(from);
            if (b.scaled()) {
                const auto scale = V::broadcast(b.scale(n0, k0));
#pragma GCC unroll 16
                for (int i = 0; i < V::kLanes; ++i) rows[i] = V::multiply(rows[i], scale);
            }
        } else {
            for (int i = 0; i < V::kLanes; ++i) rows[i] = load_scaled<V>(b, n0 + std::min<int64_t>(i, n - 1), k0, count);
        }
        V::transpose(rows);
    }
    // B[k0 + i, n0 : n0 + lanes].
    typename V::Float at(int i) const { return rows[i]; }
};

// Pairs (k, k + 1) of bf16 are transposed as one 32-bit unit, half the shuffles; a bf16 is the upper half of a float.
template <class V>
struct Square<V, BFloat16> {
    static constexpr int kDepth = 2 * V::kLanes;
    typename V::Float rows[V::kLanes];

    void load(const Stored<BFloat16>& b, int64_t n0, int64_t n, int64_t k0, int count) {
        const BFloat16* from = b.at(n0, k0);
#pragma GCC unroll 16
        for (int i = 0; i < V::kLanes; ++i) {
            rows[i] = count == kDepth ? V::load_pairs(from) : V::load_first_pairs(from, count);
            if (i + 1 < n) from += b.matrix.stride;
        }
        V::transpose(rows);
    }
    typename V::Float at(int i) const { return i % 2 == 0 ? V::even_of_pairs(rows[i / 2]) : V::odd_of_pairs(rows[i / 2]); }
};

// kDepth successive k of one vector of a panel's columns.
template <class V, class T>
struct PanelLoad {
    static constexpr int kDepth = 1;
    typename V::Float column;

    explicit PanelLoad(const T* from) : column(V::load(from)) {}
    typename V::Float at(int /*i*/) const { return column; }
};
template <class V>
struct PanelLoad<V, BFloat16> {
    static constexpr int kDepth = 2;
    typename V::Float pairs;

    explicit PanelLoad(const BFloat16* from) : pairs(V::load_pairs(from)) {}
    typename V::Float at(int i) const { return i == 0 ? V::even_of_pairs(pairs) : V::odd_of_pairs(pairs); }
};

}  // namespace
}  // namespace fathom
