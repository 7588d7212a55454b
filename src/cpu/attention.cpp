// Causal attention in the expanded form, forward. One task: 64 queries of one head (cpu/attention_task.h).
#include <vector>

#include "cpu/attention_spans.h"
#include "cpu/attention_task.h"
#include "cpu/cpu_ops.h"
#include "cpu/roofline.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {

int64_t attention_scratch_floats(int64_t d_q, int64_t d_v) {
    return (d_q + d_v + kKeyTile) * kQueryLanes + 2 * kKeyTile * kRowStride;
}

void check_spans(const char* op, const Spans& spans, int64_t rows, int64_t keys) {
    check_tensor(op, "cu_q", spans.cu_q, DType::kI32, {kAny});
    const int64_t sequences = sequences_of(spans);
    check_tensor(op, "cu_k", spans.cu_k, DType::kI32, {sequences + 1});
    check(sequences >= 0 && spans.cu_q.as<int32_t>()[0] == 0, "attention: cu_q must begin with 0");
    for (int64_t i = 0; i < sequences; ++i) {
        const SequenceSpan span = sequence_of(spans, i);
        check(0 <= span.len_q && span.len_q <= span.len_k, "attention: a sequence has more queries than keys");
        check(span.len_k < (int64_t{1} << 24), "attention: a sequence has 2^24 keys or more");
        check(spans.block_table || (span.k0 >= 0 && span.k0 + span.len_k <= keys), "attention: cu_k points beyond the keys");
    }
    check(spans.cu_q.as<int32_t>()[sequences] == rows, "attention: cu_q does not cover the query rows");
}

KeyRows head_rows(const Tensor& x, int64_t first_row, int64_t head) {
    return {.data = reinterpret_cast<const std::byte*>(row(x, first_row, head)),
            .dtype = DType::kF32,
            .width = x.dim(2),
            .stride = x.stride[0] * size_of(DType::kF32)};
}

KeyRows shared_rows(const Tensor& x, int64_t first_row) {
    if (!x) return {};
    return {.data = reinterpret_cast<const std::byte*>(row(x, first_row)),
            .dtype = DType::kF32,
            .width = x.dim(1),
            .stride = x.stride[0] * size_of(DType::kF32)};
}

void check_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& k_shared, const Tensor& v, const Tensor& o,
                     const Tensor& lse, const Spans& spans) {
    check_tensor(op, "q", q, DType::kF32, {kAny, kAny, kAny});
    const int64_t n = q.dim(0), h = q.dim(1), d_q = q.dim(2);
    check_tensor(op, "k", k, DType::kF32, {kAny, h, kAny});
    const int64_t keys = k.dim(0), d_shared = d_q - k.dim(2);
    if (k_shared) check_tensor(op, "k_shared", k_shared, DType::kF32, {keys, d_shared});
    check(k_shared || d_shared == 0, "attention: q is wider than k and k_shared is absent");
    check_tensor(op, "v", v, DType::kF32, {keys, h, kAny});
    check_tensor(op, "o", o, DType::kF32, {n, h, v.dim(2)});
    check_tensor(op, "lse", lse, DType::kF32, {n, h});
    check(d_q <= kMaxHeadWidth && v.dim(2) <= kMaxHeadWidth, "attention: a head is wider than 576 channels");
    check_spans(op, spans, n, keys);
}

void CpuOps::attention(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& k_shared,
                       const Tensor& v, const Spans& spans, double scale) {
    check_attention("attention", q, k, k_shared, v, o, lse, spans);
    struct Piece {
        SequenceSpan span;
        int64_t begin;  // first query of the tile
    };
    std::vector<Piece> pieces;
    for (int64_t i = 0; i < sequences_of(spans); ++i) {
        const SequenceSpan span = sequence_of(spans, i);
        for (int64_t begin = 0; begin < span.len_q; begin += kQueryLanes) pieces.push_back({span, begin});
    }
    const auto task_of = [&](const Piece& piece, int64_t j) {
        const auto& [span, begin] = piece;
        AttentionTask task;
        task.lanes = std::min(kQueryLanes, span.len_q - begin);
        for (int64_t i = 0; i < task.lanes; ++i) {
            const auto lane = static_cast<size_t>(i);
            task.q[lane] = row(q, span.q0 + begin + i, j);
            task.o[lane] = row(o, span.q0 + begin + i, j);
            task.lse[lane] = row(lse, span.q0 + begin + i) + j;
            task.visible[lane] = span.visible(begin + i);
        }
        task.d_q = q.dim(2);
        task.d_v = v.dim(2);
        task.scale = static_cast<float>(scale);
        task.keys = head_rows(k, span.k0, j);
        task.shared = shared_rows(k_shared, span.k0);
        task.values = head_rows(v, span.k0, j);
        return task;
    };
    const auto tiles = static_cast<int64_t>(pieces.size()), count = tiles * q.dim(1);
    if (count == 0) return;
    const bool pairs =
        (isa_ == Isa::kAvx512Bf16 || (has_tiles(isa_) && bf16_pairs_pay())) && has_paired_attention(task_of(pieces[0], 0));
    const AttentionKernels& kernels = pairs ? attention_kernels_pairs() : attention_kernels_of(isa_);
    // Head by head, so that its keys and values stay in a cache. The longest tiles of a sequence come last in `pieces`, so
    // tasks run backwards: short ones fill the gaps at the end.
    pool_.parallel_for(count, 1, [&](int64_t first, int64_t last, int thread) {
        float* scratch = scratch_.of_thread<float>(thread, attention_scratch_floats(q.dim(2), v.dim(2)));
        for (int64_t index = count - last; index < count - first; ++index)
            kernels.forward(task_of(pieces[static_cast<size_t>(index % tiles)], index / tiles), scratch);
    });
}

}  // namespace fathom
