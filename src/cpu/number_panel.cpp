#include "cpu/number_panel.h"

#include <emmintrin.h>

namespace fathom {
namespace {

constexpr int64_t kLanes = Weight::kPanelRows;

__m128i load8(const uint16_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
void store8(uint16_t* to, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), x); }

// to[16 k + r] = row r's number k, for 8 rows `stride` apart and 8 columns: pairs, then fours, then eights of rows.
void transpose8(uint16_t* to, const uint16_t* rows, int64_t stride) {
    __m128i pair[8], four[8];
    for (int r = 0; r < 8; r += 2) {
        const __m128i a = load8(rows + r * stride), b = load8(rows + (r + 1) * stride);
        pair[r] = _mm_unpacklo_epi16(a, b);  // columns 0 to 3
        pair[r + 1] = _mm_unpackhi_epi16(a, b);
    }
    for (int r = 0; r < 8; r += 4) {
        for (int half = 0; half < 2; ++half) {
            four[r + 2 * half] = _mm_unpacklo_epi32(pair[r + half], pair[r + 2 + half]);
            four[r + 2 * half + 1] = _mm_unpackhi_epi32(pair[r + half], pair[r + 2 + half]);
        }
    }
    for (int c = 0; c < 4; ++c) {
        store8(to + (2 * c) * kLanes, _mm_unpacklo_epi64(four[c], four[4 + c]));
        store8(to + (2 * c + 1) * kLanes, _mm_unpackhi_epi64(four[c], four[4 + c]));
    }
}

// The same for pairs of numbers as 32-bit units: to[16 k + r], 4 rows and 4 units.
void transpose4_pairs(uint16_t* to, const uint16_t* rows, int64_t stride) {
    __m128i pair[4];
    for (int half = 0; half < 2; ++half) {
        const __m128i a = load8(rows + 2 * half * stride), b = load8(rows + (2 * half + 1) * stride);
        pair[half] = _mm_unpacklo_epi32(a, b);  // units 0 and 1
        pair[half + 2] = _mm_unpackhi_epi32(a, b);
    }
    for (int unit = 0; unit < 4; unit += 2) {
        store8(to + unit * 2 * kLanes, _mm_unpacklo_epi64(pair[unit], pair[unit + 1]));
        store8(to + (unit + 1) * 2 * kLanes, _mm_unpackhi_epi64(pair[unit], pair[unit + 1]));
    }
}

// Where number k of row r stands in a panel of bf16.
int64_t place_in_pairs(int64_t k, int64_t r) { return (k - k % 2) * kLanes + 2 * r + k % 2; }

}  // namespace

bool has_number_panels(const Weight& w) {
    const bool fits = w.codes.dtype == DType::kF16 || (w.codes.dtype == DType::kBF16 && w.codes.dim(1) % 2 == 0);
    return w.scheme == Scheme::kPlain && w.codes.rank == 2 && fits && w.out_features() % kLanes == 0;
}

void pack_number_panel(uint16_t* to, const Weight& w, int64_t panel) {
    const int64_t stride = w.codes.stride[0], in = w.in_features();
    const auto* rows = w.codes.as<const uint16_t>() + panel * kLanes * stride;
    const bool pairs = w.codes.dtype == DType::kBF16;
    int64_t k = 0;
    for (; k + 8 <= in; k += 8) {
        for (int64_t r = 0; pairs && r < kLanes; r += 4)
            transpose4_pairs(to + k * kLanes + 2 * r, rows + r * stride + k, stride);
        for (int64_t r = 0; !pairs && r < kLanes; r += 8) transpose8(to + k * kLanes + r, rows + r * stride + k, stride);
    }
    for (; k < in; ++k)
        for (int64_t r = 0; r < kLanes; ++r) to[pairs ? place_in_pairs(k, r) : k * kLanes + r] = rows[r * stride + k];
}

void decode_number_lane(float* y, const Weight& w, int64_t panel, int64_t lane) {
    const auto* from = w.codes.as<const uint16_t>() + panel * w.codes.stride[0];
    const int64_t in = w.in_features();
    if (w.codes.dtype == DType::kBF16) {
        for (int64_t k = 0; k < in; ++k) y[k] = static_cast<float>(std::bit_cast<BFloat16>(from[place_in_pairs(k, lane)]));
    } else {
        for (int64_t k = 0; k < in; ++k) y[k] = static_cast<float>(std::bit_cast<Float16>(from[k * kLanes + lane]));
    }
}

}  // namespace fathom
