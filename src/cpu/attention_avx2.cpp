#include "cpu/attention_backward_kernels.h"
#include "cpu/attention_kernels.h"
#include "cpu/simd_avx2.h"

namespace fathom {

const AttentionKernels& attention_kernels_avx2() {
    static constexpr AttentionKernels kTable{.forward = AttentionTemplates<Avx2>::forward,
                                             .backward = AttentionBackward<Avx2>::backward};
    return kTable;
}

}  // namespace fathom
