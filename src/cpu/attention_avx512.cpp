#include "cpu/attention_backward_kernels.h"
#include "cpu/attention_kernels.h"
#include "cpu/attention_split_kernels.h"
#include "cpu/simd_avx512.h"

namespace fathom {

const AttentionKernels& attention_kernels_avx512() {
    using Split = AttentionSplitTemplates<Avx512>;
    static constexpr AttentionKernels kTable{.forward = AttentionTemplates<Avx512>::forward,
                                             .backward = AttentionBackward<Avx512>::backward,
                                             .split_begin = Split::begin,
                                             .split_scores = Split::scores,
                                             .split_maxima = Split::maxima,
                                             .split_weights = Split::weights,
                                             .split_values = Split::values,
                                             .split_end = Split::end};
    return kTable;
}

}  // namespace fathom
