// Causal attention in the expanded form, forward. One task: 64 queries of one head (cpu/attention_task.h).
#include <algorithm>
#include <vector>

#include "cpu/attention_spans.h"
#include "cpu/attention_task.h"
#include "cpu/cpu_ops.h"
#include "cpu/halves.h"
#include "cpu/isa.h"
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

namespace {

// Queries [begin, end) of a sequence, in tiles of 64.
struct Piece {
    SequenceSpan span;
    int64_t begin, end;

    [[nodiscard]] int64_t tiles() const { return (end - begin + kQueryLanes - 1) / kQueryLanes; }
};

// Pieces of at most `most` tiles, of fewer where `threads` would not have four pieces each.
std::vector<Piece> pieces_of(const Spans& spans, int64_t most, int64_t heads, int64_t threads) {
    int64_t tiles = 0;
    for (int64_t i = 0; i < sequences_of(spans); ++i) tiles += (sequence_of(spans, i).len_q + kQueryLanes - 1) / kQueryLanes;
    const int64_t step = kQueryLanes * std::clamp<int64_t>(tiles * heads / (4 * threads), 1, most);
    std::vector<Piece> pieces;
    for (int64_t i = 0; i < sequences_of(spans); ++i) {
        const SequenceSpan span = sequence_of(spans, i);
        for (int64_t begin = 0; begin < span.len_q; begin += step)
            pieces.push_back({span, begin, std::min(begin + step, span.len_q)});
    }
    return pieces;
}

}  // namespace

void CpuOps::attention(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& k_shared,
                       const Tensor& v, const Spans& spans, double scale) {
    check_attention("attention", q, k, k_shared, v, o, lse, spans);
    const auto tasks = [&](AttentionTask* to, const Piece& piece, int64_t j) {
        for (int64_t begin = piece.begin; begin < piece.end; begin += kQueryLanes, ++to) {
            const SequenceSpan& span = piece.span;
            to->lanes = std::min(kQueryLanes, piece.end - begin);
            for (int64_t i = 0; i < to->lanes; ++i) {
                const auto lane = static_cast<size_t>(i);
                to->q[lane] = row(q, span.q0 + begin + i, j);
                to->o[lane] = row(o, span.q0 + begin + i, j);
                to->lse[lane] = row(lse, span.q0 + begin + i) + j;
                to->visible[lane] = span.visible(begin + i);
            }
            to->d_q = q.dim(2);
            to->d_v = v.dim(2);
            to->scale = static_cast<float>(scale);
            to->keys = head_rows(k, span.k0, j);
            to->shared = shared_rows(k_shared, span.k0);
            to->values = head_rows(v, span.k0, j);
        }
    };
    const int64_t heads = q.dim(1);
    const AttentionNumbers numbers = attention_numbers(isa_);
    const bool halves = numbers == AttentionNumbers::kHalves, pairs = numbers == AttentionNumbers::kPairs && k.dim(2) % 2 == 0;
    const std::vector<Piece> pieces = pieces_of(spans, halves ? kHalfTasks : 1, heads, pool_.size());
    const auto of_a_head = static_cast<int64_t>(pieces.size()), count = of_a_head * heads;
    const AttentionKernels& kernels = pairs ? attention_kernels_pairs() : attention_kernels_of(isa_);
    const int64_t floats =
        halves ? attention_halves_scratch_floats(kHalfTasks, q.dim(2), v.dim(2)) : attention_scratch_floats(q.dim(2), v.dim(2));
    // Head by head, so that its keys and values stay in a cache. The longest pieces of a sequence come last in `pieces`, so
    // they run backwards: short ones fill the gaps at the end.
    pool_.parallel_for(count, 1, [&](int64_t first, int64_t last, int thread) {
        float* scratch = scratch_.of_thread<float>(thread, floats);
        AttentionTask all[kHalfTasks];
        for (int64_t index = count - last; index < count - first; ++index) {
            const Piece& piece = pieces[static_cast<size_t>(index % of_a_head)];
            tasks(all, piece, index / of_a_head);
            if (halves)
                attention_halves_avx512(all, piece.tiles(), scratch);
            else
                kernels.forward(all[0], scratch);
        }
    });
}

}  // namespace fathom
