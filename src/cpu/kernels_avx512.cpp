#include "cpu/row_kernels.h"
#include "cpu/simd_avx512.h"

namespace fathom {

const Kernels& kernels_avx512() {
    static constexpr Kernels kTable = RowKernels<Avx512>::table();
    return kTable;
}

}  // namespace fathom
