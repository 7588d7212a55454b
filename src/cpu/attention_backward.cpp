// Gradients of causal attention in the expanded form. One task: all of one (sequence, head), so that the sums over queries (dk,
// dv) and over keys (dq) have one owner and one order; dk_shared is summed over heads afterwards, in their order.
#include <cstring>
#include <vector>

#include "cpu/attention_spans.h"
#include "cpu/attention_task.h"
#include "cpu/cpu_ops.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {

int64_t attention_backward_scratch_floats(int64_t len_k, int64_t d_q, int64_t d_v) {
    const int64_t q_width = (d_q + 15) / 16 * 16, v_width = (d_v + 15) / 16 * 16;
    return (3 * q_width + 2 * v_width + 2 * kKeyTile + 4) * kQueryLanes + 2 * kKeyTile * kRowStride +
           len_k * (q_width + v_width);
}

void CpuOps::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dk_shared, const Tensor& dv,
                                const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& k_shared, const Tensor& v,
                                const Tensor& o, const Tensor& lse, const Spans& spans, double scale) {
    constexpr auto kOp = "attention_backward";
    check_attention(kOp, q, k, k_shared, v, o, lse, spans);
    const int64_t n = q.dim(0), h = q.dim(1), keys = k.dim(0), d_q = q.dim(2), d_k = k.dim(2), d_v = v.dim(2), d_s = d_q - d_k;
    check_tensor(kOp, "dq", dq, DType::kF32, {n, h, d_q});
    check_tensor(kOp, "dk", dk, DType::kF32, {keys, h, d_k});
    check_tensor(kOp, "dv", dv, DType::kF32, {keys, h, d_v});
    check_tensor(kOp, "dout", dout, DType::kF32, {n, h, d_v});
    check(k_shared.defined() == dk_shared.defined(), "attention_backward: dk_shared must be there exactly when k_shared is");
    if (dk_shared) check_tensor(kOp, "dk_shared", dk_shared, DType::kF32, {keys, d_s});
    float* shared_parts = dk_shared ? scratch_.shared<float>(keys * h * d_s) : nullptr;  // [keys, h, d_s]
    const AttentionKernels& kernels = attention_kernels_of(isa_);
    pool_.parallel_for(sequences_of(spans) * h, 1, [&](int64_t first, int64_t last, int thread) {
        for (int64_t index = first; index < last; ++index) {
            const SequenceSpan span = sequence_of(spans, index / h);
            const int64_t j = index % h;
            if (span.len_k == 0) continue;
            AttentionBackwardTask task{};
            task.len_q = span.len_q;
            task.len_k = span.len_k;
            task.d_q = d_q;
            task.d_k = d_k;
            task.d_v = d_v;
            task.scale = static_cast<float>(scale);
            task.keys = head_rows(k, span.k0, j);
            task.shared = shared_rows(k_shared, span.k0);
            task.values = head_rows(v, span.k0, j);
            task.q = row(q, span.q0, j);
            task.dout = row(dout, span.q0, j);
            task.o = row(o, span.q0, j);
            task.lse = row(lse, span.q0) + j;
            task.q_stride = q.stride[0];
            task.dout_stride = dout.stride[0];
            task.o_stride = o.stride[0];
            task.lse_stride = lse.stride[0];
            task.dq = row(dq, span.q0, j);
            task.dk = row(dk, span.k0, j);
            task.dv = row(dv, span.k0, j);
            task.dq_stride = dq.stride[0];
            task.dk_stride = dk.stride[0];
            task.dv_stride = dv.stride[0];
            task.dk_shared = dk_shared ? shared_parts + (span.k0 * h + j) * d_s : nullptr;
            task.dk_shared_stride = h * d_s;
            kernels.backward(task, scratch_.of_thread<float>(thread, attention_backward_scratch_floats(span.len_k, d_q, d_v)));
        }
    });
    if (dk_shared) sum_heads(dk_shared, Tensor(shared_parts, DType::kF32, {keys, h, d_s}));
}

}  // namespace fathom
