// Small products C[m, n] (+)= sum_k A[m, k] B[k, n] for attention: n in whole vectors, any m. Lanes run over n; each element is
// one chain of fused multiply-adds over ascending k. The kernel keeps C in registers: 6 x 4 vectors with 32 registers (10 loads
// for 24 multiply-adds), 6 x 1 of two halves with 16.
#pragma once

#include <cstdint>

namespace fathom {

enum class TileStart : uint8_t { kZero, kAccumulate, kScaled };  // C starts from 0, from C, or from C times a factor per lane

template <class V>
struct TileProduct {
    float* c;
    int64_t c_row;
    const float* a;
    int64_t a_k;  // distance of A's columns; that of its rows is a template argument, so that addresses are constants
    const float* b;
    int64_t b_row;
    int64_t k;
    TileStart start;
    const float* factor;  // kScaled

    static constexpr int kMaxVectors = V::kRegisters == 32 ? 4 : 1;
    static constexpr int64_t kLanes = 16;

    // Rows of C per kernel so that C, a row of B and one broadcast fit in the registers.
    static constexpr int max_rows(int vectors) {
        if (V::kRegisters != 32) return 6;
        return vectors == 4 ? 6 : vectors == 3 ? 8 : 12;
    }

    template <int kRowStep, int kRows, int kVectors>
    static void kernel(const TileProduct& p) {
        V sum[kRows][kVectors];
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j) {
                sum[i][j] = p.start == TileStart::kZero ? V::zero() : V::load(p.c + i * p.c_row + j * kLanes);
                if (p.start == TileStart::kScaled) sum[i][j] = sum[i][j] * V::load(p.factor + j * kLanes);
            }
        const float *a = p.a, *b = p.b;
        for (int64_t k = p.k; k > 0; --k, a += p.a_k, b += p.b_row) {
            V right[kVectors];
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j) right[j] = V::load(b + j * kLanes);
#pragma GCC unroll 16
            for (int i = 0; i < kRows; ++i) {
                const V left = V::all(a[i * kRowStep]);
#pragma GCC unroll 4
                for (int j = 0; j < kVectors; ++j) sum[i][j] = V::fma(left, right[j], sum[i][j]);
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j) sum[i][j].store(p.c + i * p.c_row + j * kLanes);
    }

    // The kernel for `rows` <= kRows: a descent through the instantiations.
    template <int kRowStep, int kVectors, int kRows>
    static void with_rows(const TileProduct& p, int rows) {
        if constexpr (kRows > 1) {
            if (rows < kRows) return with_rows<kRowStep, kVectors, kRows - 1>(p, rows);
        }
        kernel<kRowStep, kRows, kVectors>(p);
    }

    // All m rows of a column block of kVectors vectors.
    template <int kRowStep, int kVectors>
    void all_rows(int64_t m) const {
        constexpr int kRows = max_rows(kVectors);
        TileProduct part = *this;
        for (int64_t i = 0; i < m; i += kRows) {
            part.c = c + i * c_row;
            part.a = a + i * kRowStep;
            with_rows<kRowStep, kVectors, kRows>(part, static_cast<int>(m - i < kRows ? m - i : kRows));
        }
    }

    // m rows, n = 16 vectors columns. A[i, l] = a[i kRowStep + l a_k]. Long chains are cut at kBlock, so that the part of B in
    // use stays in L1; a stored partial sum is exact.
    template <int kRowStep>
    void run(int64_t m, int64_t vectors) const {
        constexpr int64_t kBlock = 96;
        const int64_t groups = (vectors + kMaxVectors - 1) / kMaxVectors;
        for (int64_t group = 0, begin = 0; group < groups; ++group) {
            const int64_t count = (vectors - begin + groups - group - 1) / (groups - group);
            TileProduct part = *this;
            part.c = c + begin * kLanes;
            if (start == TileStart::kScaled) part.factor = factor + begin * kLanes;
            for (int64_t l = 0; l < k; l += kBlock) {
                part.k = k - l < kBlock ? k - l : kBlock;
                part.a = a + l * a_k;
                part.b = b + l * b_row + begin * kLanes;
                if (l > 0) part.start = TileStart::kAccumulate;
                part.template with_vectors<kRowStep, kMaxVectors>(m, count);
            }
            begin += count;
        }
    }

    template <int kRowStep, int kVectors>
    void with_vectors(int64_t m, int64_t vectors) const {
        if constexpr (kVectors > 1) {
            if (vectors < kVectors) return with_vectors<kRowStep, kVectors - 1>(m, vectors);
        }
        all_rows<kRowStep, kVectors>(m);
    }
};

}  // namespace fathom
