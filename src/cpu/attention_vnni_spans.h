// Latent attention over a cache of int8 or int4 blocks in whole numbers (attention_vnni_avx512.cpp): the steps, which
// attend_in_spans (cpu/latent_parts.h) spreads over threads. Keys are cut into spans at fixed places, each span is attended to
// by itself, and a lane's spans are joined in ascending order. Not the bits of AttentionKernels (docs/decisions/013).
#pragma once

#include "cpu/attention_task.h"

namespace fathom {

inline constexpr int64_t kSpan = 512;  // keys of the longest
// The first 512 keys are cut into four, so that threads share a short sequence too.
[[nodiscard]] inline int64_t span_begin(int64_t i) { return i < 4 ? i * (kSpan / 4) : (i - 3) * kSpan; }
[[nodiscard]] inline int64_t span_count(int64_t keys) {
    return keys <= kSpan ? (keys + kSpan / 4 - 1) / (kSpan / 4) : 3 + (keys + kSpan - 1) / kSpan;
}

[[nodiscard]] bool has_whole_number_attention(const AttentionTask& task);

// What one span, or several joined, come to.
struct SpanSums {
    float* last;  // [2, 64]: maximum of the scores, sum of the exponentials
    float* o;     // not yet divided by that sum; [blocks of 32 channels, lanes in whole eights, 32], channels shuffled
};
[[nodiscard]] inline int64_t span_lanes(const AttentionTask& task) { return (task.lanes + 7) / 8 * 8; }
inline constexpr int64_t kLastFloats = 2 * kQueryLanes;

// A task's queries, rounded: floats of memory, and filling it.
[[nodiscard]] int64_t packed_queries_floats(const AttentionTask& task);
void pack_queries_vnni(const AttentionTask& task, float* queries);

// Keys [begin, end), at most kSpan, as far as a lane sees them; `scratch`: a thread's.
[[nodiscard]] int64_t span_scratch_floats();
void attend_to_span_vnni(const AttentionTask& task, float* queries, int64_t begin, int64_t end, const SpanSums& sums,
                         float* scratch);

// The span after those in `sums` joins them: `last` whole, blocks [first, end) of o.
void join_span_vnni(const AttentionTask& task, const SpanSums& sums, const SpanSums& next, int64_t first, int64_t end);
// Blocks [first, end) of the result; the log of the sums goes with block 0.
void finish_spans_vnni(const AttentionTask& task, const SpanSums& sums, int64_t first, int64_t end);

}  // namespace fathom
