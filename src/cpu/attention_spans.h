// One sequence of a Spans: where its query rows and keys are.
#pragma once

#include "ops/ops.h"

namespace fathom {

struct SequenceSpan {
    int64_t q0 = 0, len_q = 0;  // query rows [q0, q0 + len_q)
    int64_t k0 = 0, len_k = 0;  // key rows [k0, k0 + len_k), when they lie contiguously

    // Keys visible to query row i of the sequence: its own and all earlier ones.
    [[nodiscard]] int64_t visible(int64_t i) const { return len_k - len_q + i + 1; }
};

[[nodiscard]] inline int64_t sequences_of(const Spans& spans) { return spans.cu_q.dim(0) - 1; }

[[nodiscard]] inline SequenceSpan sequence_of(const Spans& spans, int64_t i) {
    const auto *q = spans.cu_q.as<int32_t>(), *k = spans.cu_k.as<int32_t>();
    return {q[i], q[i + 1] - q[i], k[i], k[i + 1] - k[i]};
}

}  // namespace fathom
