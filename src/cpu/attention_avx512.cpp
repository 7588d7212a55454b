#include "cpu/attention_backward_kernels.h"
#include "cpu/attention_kernels.h"
#include "cpu/simd_avx512.h"

namespace fathom {

const AttentionKernels& attention_kernels_avx512() {
    static constexpr AttentionKernels kTable{.forward = AttentionTemplates<Avx512>::forward,
                                             .backward = AttentionBackward<Avx512>::backward};
    return kTable;
}

}  // namespace fathom
