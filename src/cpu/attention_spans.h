// The sequences of a Spans, and what the three attention ops ask of their arguments.
#pragma once

#include "cpu/attention_task.h"
#include "ops/ops.h"

namespace fathom {

// Where a sequence's query rows and keys are.
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

void check_spans(const char* op, const Spans& spans, int64_t rows, int64_t keys);
void check_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& k_shared, const Tensor& v, const Tensor& o,
                     const Tensor& lse, const Spans& spans);

// Rows of one head of x [m, h, d], and of x [m, d] shared by all heads (absent: width 0), from `first_row` on.
[[nodiscard]] KeyRows head_rows(const Tensor& x, int64_t first_row, int64_t head);
[[nodiscard]] KeyRows shared_rows(const Tensor& x, int64_t first_row);

}  // namespace fathom
