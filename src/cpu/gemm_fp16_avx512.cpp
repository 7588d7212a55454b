#include "cpu/gemm_half.h"

namespace fathom {
namespace {

struct Fp16 {
    static __m512i fma(__m512i a, __m512i b, __m512i c) {
        return reinterpret_cast<__m512i>(
            _mm512_fmadd_ph(reinterpret_cast<__m512h>(a), reinterpret_cast<__m512h>(b), reinterpret_cast<__m512h>(c)));
    }
};

}  // namespace

void gemm_tile_fp16_avx512(const GemmTile& tile, float* scratch) { HalfGemm<Fp16>::multiply_tile(tile, scratch); }

}  // namespace fathom
