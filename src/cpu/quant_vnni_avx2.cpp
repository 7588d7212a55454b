// The products of panels with AVX-VNNI, the 256-bit form of CPUs without AVX-512. No machine at hand has it, so it is taken by
// FATHOM_CPU_ISA=avx-vnni only; tests/cpu/quant_lanes8_test.cpp runs the template in the other encoding.
#include "cpu/dot_vnni.h"
#include "cpu/quant_lanes8.h"
#include "cpu/quant_rows.h"

namespace fathom {
namespace {

struct Vex {
    static __m256i dpbusd(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
};

}  // namespace

const QuantKernels& quant_kernels_vnni_avx2() {
    static constexpr QuantKernels kKernels{quantize_row, Lanes8<DotVnni<Vex>>::multiply};
    return kKernels;
}

}  // namespace fathom
