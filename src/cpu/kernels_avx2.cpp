#include "cpu/row_kernels.h"
#include "cpu/simd_avx2.h"

namespace fathom {

const Kernels& kernels_avx2() {
    static constexpr Kernels kTable = RowKernels<Avx2>::table();
    return kTable;
}

}  // namespace fathom
