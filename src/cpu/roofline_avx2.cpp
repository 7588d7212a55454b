#include "cpu/roofline_kernels.h"
#include "cpu/simd_avx2.h"

namespace fathom {

RooflineKernels roofline_kernels_avx2() { return RooflineLoops<Avx2>::table(); }

}  // namespace fathom
