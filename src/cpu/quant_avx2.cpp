// The products of panels without VNNI. vpmaddubsw would saturate (255 times 127, twice), so even and odd bytes become 16-bit
// numbers and meet in vpmaddwd.
#include "cpu/quant_lanes8.h"
#include "cpu/quant_rows.h"

namespace fathom {
namespace {

struct DotAvx2 {
    struct Halves {
        __m256i even, odd;
    };
    static Halves codes(const uint8_t* from) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        return {_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)};
    }
    static Halves row(const int8_t* from) {
        int32_t four;
        std::memcpy(&four, from, sizeof four);
        const __m256i bytes = _mm256_set1_epi32(four);
        return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
    }
    static __m256i add(__m256i sum, const Halves& codes, const Halves& row) {
        const __m256i even = _mm256_madd_epi16(codes.even, row.even), odd = _mm256_madd_epi16(codes.odd, row.odd);
        return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
    }
};

}  // namespace

const QuantKernels& quant_kernels_avx2() {
    static constexpr QuantKernels kKernels{quantize_row, Lanes8<DotAvx2>::multiply, decode_all_rows};
    return kKernels;
}

}  // namespace fathom
