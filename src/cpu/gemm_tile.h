// One tile of C (+)= A B, for any vector type V (gemm_avx2.cpp, gemm_avx512.cpp). After BLIS (Van Zee and van de Geijn 2015):
//   for each block of <= 256 k:  pack B into panels [k][2 vectors] of f32
//     for each block of rows:    pack A into slivers [k][1 vector] of up to V::kRows rows
//       for each panel, sliver:  the kernel keeps R x 2 vectors of C in registers and runs over k
// A block of k after the first starts from the sums in C. Conversions from bf16, f16 and fp8 happen while packing, once per
// element and tile. 2 FLOP per (row, column, k); 4 (m k + k n + 2 m n k/256) bytes from L2.
// Everything has internal linkage: each file that includes this is compiled for another instruction set, and the linker must
// not take one's code for the other's.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "cpu/gemm.h"
#include "cpu/gemm_operand.h"
#include "cpu/gemm_stream.h"

namespace fathom {
namespace {

// ---- kernel --------------------------------------------------------------------------------------------------------------

// c[0:R, 0:2 lanes] (+)= sum_k a[k][0:R] b[k][0:2 lanes]; a[k] is one vector wide, of which R <= V::kRows lanes count.
template <class V, int R>
void kernel(int64_t k, const float* a, const float* b, float* c, int64_t c_row, bool from_zero) {
    typename V::Float left[R], right[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        left[r] = from_zero ? V::zero() : V::load(c + r * c_row);
        right[r] = from_zero ? V::zero() : V::load(c + r * c_row + V::kLanes);
    }
    for (; k > 0; --k, a += V::kLanes, b += 2 * V::kLanes) {
        const auto b0 = V::load(b), b1 = V::load(b + V::kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const auto x = V::broadcast(a[r]);
            left[r] = V::fma(x, b0, left[r]);
            right[r] = V::fma(x, b1, right[r]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        V::store(c + r * c_row, left[r]);
        V::store(c + r * c_row + V::kLanes, right[r]);
    }
}

template <class V>
using Kernel = void (*)(int64_t, const float*, const float*, float*, int64_t, bool);

// kernels[R - 1] handles R rows.
template <class V, int... I>
constexpr std::array<Kernel<V>, sizeof...(I)> make_kernels(std::integer_sequence<int, I...>) {
    return {&kernel<V, I + 1>...};
}
template <class V>
constexpr auto kKernels = make_kernels<V>(std::make_integer_sequence<int, V::kRows>{});

// A panel whose last columns do not exist in C: compute in a full tile on the side, copy the columns that do.
template <class V>
void edge_kernel(int rows, int64_t k, const float* a, const float* b, float* c, int64_t c_row, int columns, bool from_zero) {
    constexpr int64_t kWidth = 2 * V::kLanes;
    alignas(64) float side[V::kRows * kWidth] = {};
    const auto bytes = sizeof(float) * static_cast<size_t>(columns);
    for (int r = 0; r < rows && !from_zero; ++r) std::memcpy(side + r * kWidth, c + r * c_row, bytes);
    kKernels<V>[static_cast<size_t>(rows - 1)](k, a, b, side, kWidth, from_zero);
    for (int r = 0; r < rows; ++r) std::memcpy(c + r * c_row, side + r * kWidth, bytes);
}

// Rows 0 .. count of at most kRows, `stride` apart.
template <class V, int kRows = V::kLanes, class Row>
void store_rows(float* to, int64_t stride, int count, Row row) {
    if (count == kRows) {
#pragma GCC unroll 32
        for (int i = 0; i < kRows; ++i) V::store(to + i * stride, row(i));
    } else {
        for (int i = 0; i < count; ++i) V::store(to + i * stride, row(i));
    }
}

// ---- packing A -----------------------------------------------------------------------------------------------------------

// to[l][r] = a[r a_row + l a_k] for r < rows; the other lanes are undefined.
template <class V>
void pack_sliver(float* to, const float* a, int64_t a_row, int64_t a_k, int rows, int64_t k) {
    if (a_row == 1) {  // dy^T
        for (int64_t l = 0; l < k; ++l) V::store(to + l * V::kLanes, V::load_first(a + l * a_k, rows));
        return;
    }
    for (int64_t l = 0; l < k; l += V::kLanes, a += V::kLanes, to += V::kLanes * V::kLanes) {
        typename V::Float square[V::kLanes];
        const float* from = a;
        const int count = static_cast<int>(std::min<int64_t>(V::kLanes, k - l));
#pragma GCC unroll 16
        for (int r = 0; r < V::kLanes; ++r) {
            square[r] = count == V::kLanes ? V::load(from) : V::load_first(from, count);
            if (r + 1 < rows) from += a_row;
        }
        V::transpose(square);
        store_rows<V>(to, V::kLanes, count, [&](int i) { return square[i]; });
    }
}

// ---- packing B -----------------------------------------------------------------------------------------------------------

// Stored [k, n]: rows become rows.
template <class V, class T>
void pack_panel(float* panel, const Stored<T>& b, int64_t k0, int64_t k, int64_t n0, int64_t n) {
    const int64_t width = 2 * V::kLanes;
    for (int64_t l = 0; l < k; ++l, panel += width) {
        const auto left = static_cast<int>(std::min<int64_t>(n, V::kLanes));
        const auto right = static_cast<int>(std::max<int64_t>(n - V::kLanes, 0));
        V::store(panel, load_scaled<V>(b, k0 + l, n0, left));
        V::store(panel + V::kLanes, right > 0 ? load_scaled<V>(b, k0 + l, n0 + V::kLanes, right) : V::zero());
    }
}

// Stored [n, k]: packs one vector's width of columns, square by square.
template <class V, class T>
void pack_half_transposed(float* panel, const Stored<T>& b, int64_t k0, int64_t k, int64_t n0, int64_t n) {
    const int64_t width = 2 * V::kLanes;
    constexpr int kDepth = Square<V, T>::kDepth;
    for (int64_t l = 0; l < k; l += kDepth) {
        const int count = static_cast<int>(std::min<int64_t>(kDepth, k - l));
        Square<V, T> square;
        square.load(b, n0, n, k0 + l, count);
        store_rows<V, kDepth>(panel + l * width, width, count, [&](int i) { return square.at(i); });
    }
}

// Stored in panels of 16 columns, all of which exist.
template <class V, class T>
void copy_panel(float* panel, const Stored<T>& b, int64_t k0, int64_t k, int64_t n0, int64_t n) {
    const bool two = n > V::kLanes;
    const T *left = b.in_panel(k0, n0), *right = two ? b.in_panel(k0, n0 + V::kLanes) : left;
    using Load = PanelLoad<V, T>;
    for (int64_t l = 0; l < k; l += Load::kDepth) {
        const Load a(left + l * kPanelColumns), c(right + l * kPanelColumns);
        for (int i = 0; i < Load::kDepth; ++i, panel += 2 * V::kLanes) {
            V::store(panel, a.at(i));
            V::store(panel + V::kLanes, two ? c.at(i) : V::zero());
        }
    }
}

// Packs B[k0 : k0 + k, n0 : n1] into panels [k][2 lanes].
template <class V, class T>
void pack_b(float* to, const GemmMatrix& matrix, int64_t k0, int64_t k, int64_t n0, int64_t n1) {
    const int64_t width = 2 * V::kLanes;
    const Stored<T> b(matrix);
    for (; n0 < n1; n0 += width, to += k * width) {
        const int64_t n = std::min(width, n1 - n0);
        if (matrix.panels) {
            copy_panel<V>(to, b, k0, k, n0, n);
            continue;
        }
        if (!matrix.transposed) {
            pack_panel<V>(to, b, k0, k, n0, n);
            continue;
        }
        pack_half_transposed<V>(to, b, k0, k, n0, std::min<int64_t>(n, V::kLanes));
        if (n > V::kLanes) pack_half_transposed<V>(to + V::kLanes, b, k0, k, n0 + V::kLanes, n - V::kLanes);
    }
}

template <class V>
void pack_b(float* to, const GemmMatrix& matrix, int64_t k0, int64_t k, int64_t n0, int64_t n1) {
    switch (matrix.dtype) {
        case DType::kBF16:
            return pack_b<V, BFloat16>(to, matrix, k0, k, n0, n1);
        case DType::kF16:
            return pack_b<V, Float16>(to, matrix, k0, k, n0, n1);
        case DType::kF8E4M3:
            return pack_b<V, Float8E4M3>(to, matrix, k0, k, n0, n1);
        default:
            return pack_b<V, float>(to, matrix, k0, k, n0, n1);
    }
}

// ---- tile ----------------------------------------------------------------------------------------------------------------

// One block of k against one block of rows, both packed. A sliver (16 KB) stays in L1 while the panels stream by from L2.
template <class V>
void multiply_block(const GemmTile& tile, const Slivers& slivers, int64_t k, const float* a, const float* b, bool from_zero) {
    const int64_t width = 2 * V::kLanes;
    const GemmProduct& p = *tile.product;
    for (int64_t i = 0; i < slivers.count; ++i, a += V::kLanes * k) {
        const int64_t m = slivers.at(i);
        const auto rows = static_cast<int>(slivers.at(i + 1) - m);
        const float* panel = b;
        for (int64_t n = tile.n0; n < tile.n1; n += width, panel += width * k) {
            float* const c = p.c + m * p.c_row + n;
            if (tile.n1 - n >= width)
                kKernels<V>[static_cast<size_t>(rows - 1)](k, a, panel, c, p.c_row, from_zero);
            else
                edge_kernel<V>(rows, k, a, panel, c, p.c_row, static_cast<int>(tile.n1 - n), from_zero);
        }
    }
}

// At most GemmBlocking::kMaxN columns.
template <class V>
void multiply_tile(const GemmTile& tile, float* scratch) {
    if (stream_tile<V>(tile)) return;
    const GemmProduct& p = *tile.product;
    float* const a = scratch;
    float* const b = scratch + GemmBlocking::kPackedA;
    const int64_t block_m = GemmBlocking::kPackedA / (GemmBlocking::kMaxK * V::kLanes) * V::kRows;
    for (int64_t k0 = 0; k0 == 0 || k0 < p.k; k0 += GemmBlocking::kMaxK) {
        const int64_t k = std::min(GemmBlocking::kMaxK, p.k - k0);
        pack_b<V>(b, p.b, k0, k, tile.n0, tile.n1);
        for (int64_t m0 = tile.m0; m0 < tile.m1; m0 += block_m) {
            const Slivers slivers(m0, std::min(m0 + block_m, tile.m1), V::kRows);
            float* sliver = a;
            for (int64_t i = 0; i < slivers.count; ++i) {
                const int64_t m = slivers.at(i);
                const auto rows = static_cast<int>(slivers.at(i + 1) - m);
                pack_sliver<V>(sliver, p.a + m * p.a_row + k0 * p.a_k, p.a_row, p.a_k, rows, k);
                sliver += V::kLanes * k;
            }
            multiply_block<V>(tile, slivers, k, a, b, k0 == 0 && !p.accumulate);
        }
    }
}

}  // namespace
}  // namespace fathom
