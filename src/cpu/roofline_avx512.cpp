#include "cpu/roofline_kernels.h"
#include "cpu/simd_avx512.h"

namespace fathom {

RooflineKernels roofline_kernels_avx512() { return RooflineLoops<Avx512>::table(); }

}  // namespace fathom
