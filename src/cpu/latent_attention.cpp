// Absorbed multi-head latent attention (V2 2.1.2): all heads share one key per token, so the lanes of a task are (row, head)
// pairs and a tile of latents is read, and converted from the cache's dtype, once for all of them. 2 (2 c + r) FLOP per
// (row, head, key).
#include <vector>

#include "cpu/attention_spans.h"
#include "cpu/attention_task.h"
#include "cpu/attention_vnni_spans.h"
#include "cpu/cpu_ops.h"
#include "cpu/kernels.h"
#include "cpu/latent_parts.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {
namespace {

// Numbers of a row; of blocks perhaps more than were cached.
int64_t row_width(const Weight& latents) {
    if (latents.scheme == Scheme::kPlain) return latents.codes.dim(-1);
    return latents.codes.dim(-1) / cache_block_bytes(latents.block) * kCacheBlock;
}

KeyRows latent_rows(const Weight& cache, const Spans& spans, int64_t sequence, int64_t width) {
    const Tensor& latents = cache.codes;
    const SequenceSpan span = sequence_of(spans, sequence);
    const int64_t bytes = size_of(latents.dtype);
    KeyRows rows{.dtype = latents.dtype, .type = cache.block, .width = width};
    if (!spans.block_table) {
        rows.data = row_bytes(latents, span.k0);
        rows.stride = latents.stride[0] * bytes;
        return rows;
    }
    rows.data = latents.as<std::byte>();
    rows.pages = row<int32_t>(spans.block_table, sequence);
    rows.block = latents.dim(1);
    rows.page_stride = latents.stride[0] * bytes;
    rows.stride = latents.stride[1] * bytes;
    const int64_t pages = (span.len_k + rows.block - 1) / rows.block;
    check(pages <= spans.block_table.dim(1), "latent_attention: the block table has too few pages for a sequence");
    for (int64_t i = 0; i < pages; ++i)
        check(rows.pages[i] >= 0 && rows.pages[i] < latents.dim(0), "latent_attention: a page number is out of range");
    return rows;
}

// One tile of (row, head) pairs of a sequence.
struct Piece {
    int64_t sequence;
    int64_t begin;  // first pair
};

AttentionTask task_of(const Piece& piece, const Tensor& u, const Tensor& lse, const Tensor& q, const Weight& latents,
                      const Spans& spans, double scale) {
    const SequenceSpan span = sequence_of(spans, piece.sequence);
    const int64_t h = q.dim(1);
    AttentionTask task;
    task.lanes = std::min(kQueryLanes, span.len_q * h - piece.begin);
    for (int64_t i = 0; i < task.lanes; ++i) {
        const auto lane = static_cast<size_t>(i);
        const int64_t r = (piece.begin + i) / h, j = (piece.begin + i) % h;
        task.q[lane] = row(q, span.q0 + r, j);
        task.o[lane] = row(u, span.q0 + r, j);
        task.lse[lane] = row(lse, span.q0 + r) + j;
        task.visible[lane] = span.visible(r);
    }
    task.d_q = q.dim(2);
    task.d_v = u.dim(2);
    task.scale = static_cast<float>(scale);
    task.keys = latent_rows(latents, spans, piece.sequence, task.d_q);
    return task;
}

// The task on all threads of the pool.
void split_over_threads(const AttentionTask& task, const AttentionKernels& kernels, ThreadPool& pool, Scratch& scratch) {
    const int64_t tiles = (task.visible[task.lanes - 1] + kKeyTile - 1) / kKeyTile, floats = attention_scratch_floats(0, 0);
    const AttentionSplit split{&task, scratch.shared<float>(attention_split_floats(tiles, task.d_q, task.d_v))};
    const int64_t per_task = std::max<int64_t>(1, tiles / (4 * pool.size()));
    kernels.split_begin(split);
    pool.parallel_for(tiles, per_task, [&](int64_t begin, int64_t end, int thread) {
        float* rows = scratch.of_thread<float>(thread, floats);
        for (int64_t tile = begin; tile < end; ++tile) kernels.split_scores(split, tile, rows);
    });
    kernels.split_maxima(split);
    pool.parallel_for(tiles, per_task, [&](int64_t begin, int64_t end, int) {
        for (int64_t tile = begin; tile < end; ++tile) kernels.split_weights(split, tile);
    });
    const int64_t each = (task.d_v + 2 * pool.size() - 1) / (2 * pool.size());
    const int64_t width = (each + kCacheBlock - 1) / kCacheBlock * kCacheBlock;  // no block is cut
    pool.parallel_for(task.d_v, width, [&](int64_t begin, int64_t end, int thread) {
        kernels.split_values(split, begin, end, scratch.of_thread<float>(thread, floats));
    });
    kernels.split_end(split);
}

}  // namespace

int64_t attention_split_floats(int64_t tiles, int64_t d_q, int64_t d_v) {
    return (d_q + d_v + tiles * (kKeyTile + 3)) * kQueryLanes;
}

void CpuOps::latent_attention(const Tensor& u, const Tensor& lse, const Tensor& q, const Weight& latents, const Spans& spans,
                              double scale) {
    constexpr auto kOp = "latent_attention";
    check_tensor(kOp, "q", q, DType::kF32, {kAny, kAny, kAny});
    const int64_t n = q.dim(0), h = q.dim(1), width = q.dim(2);
    check_tensor(kOp, "u", u, DType::kF32, {n, h, kAny});
    check_tensor(kOp, "lse", lse, DType::kF32, {n, h});
    if (spans.block_table) {
        check_tensor(kOp, "latents", latents.codes, {kAny, kAny, kAny});
        check_tensor(kOp, "block_table", spans.block_table, DType::kI32, {sequences_of(spans), kAny});
    } else {
        check_tensor(kOp, "latents", latents.codes, {kAny, kAny});
    }
    check(caches(latents.codes.dtype, latents.block), "latent_attention: latents of a type that is none of a cache");
    const int64_t held = row_width(latents);
    check(latents.block == BlockType::kNone ? held == width : held >= width && held < width + kCacheBlock,
          "latent_attention: the latents are not as wide as q");
    check(width <= kMaxHeadWidth && u.dim(2) <= width, "latent_attention: q is wider than 576 channels, or u than q");
    check_spans(kOp, spans, n, latents.codes.dim(0));
    std::vector<Piece> pieces;
    for (int64_t i = 0; i < sequences_of(spans); ++i)
        for (int64_t begin = 0; begin < sequence_of(spans, i).len_q * h; begin += kQueryLanes) pieces.push_back({i, begin});
    if (pieces.empty()) return;
    const auto task_at = [&](const Piece& piece) { return task_of(piece, u, lse, q, latents, spans, scale); };
    const AttentionKernels& kernels = attention_kernels_of(isa_);
    if (!deterministic_) {
        const bool whole_numbers = has_avx512(isa_) && has_whole_number_attention(task_at(pieces[0]));
        std::vector<AttentionTask> tasks;
        std::erase_if(pieces, [&](const Piece& piece) {
            const AttentionTask task = task_at(piece);
            const bool taken = whole_numbers || goes_in_parts(task);
            if (taken) tasks.push_back(task);
            return taken;
        });
        if (whole_numbers)
            attend_in_spans(tasks, pool_, scratch_);
        else
            attend_in_parts(tasks, kernels, kernels_of(isa_), pool_, scratch_);
    }
    const auto count = static_cast<int64_t>(pieces.size());
    if (count < pool_.size()) {  // one token of one sequence or so: threads share the keys
        for (const Piece& piece : pieces) split_over_threads(task_at(piece), kernels, pool_, scratch_);
        return;
    }
    pool_.parallel_for(count, 1, [&](int64_t first, int64_t last, int thread) {
        float* scratch = scratch_.of_thread<float>(thread, attention_scratch_floats(width, u.dim(2)));
        for (int64_t index = count - last; index < count - first; ++index)  // the long ones first
            kernels.forward(task_at(pieces[static_cast<size_t>(index)]), scratch);
    });
}

}  // namespace fathom
