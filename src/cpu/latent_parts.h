// Latent attention over many keys, where the order of sums is free: the keys of a task are cut into parts, each of which is
// attended to by itself, so that a key is read once for its score and its value, and threads share one sequence. The parts'
// results are joined by their sums of exponentials:
//   o = sum_i exp(lse_i - top) o_i / sum_i exp(lse_i - top),  lse = top + log(sum_i exp(lse_i - top))
// Cuts are at multiples of one number of keys: a row's bits depend neither on its batch nor on threads. They are not those of
// AttentionKernels::forward.
#pragma once

#include <span>

#include "base/threads.h"
#include "cpu/attention_task.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace fathom {

// Is `task` to be attended to in parts? More keys than one part's, in pages that no cut divides.
[[nodiscard]] bool goes_in_parts(const AttentionTask& task);
// All `tasks`, every one of which goes in parts.
void attend_in_parts(std::span<const AttentionTask> tasks, const AttentionKernels& attention, const Kernels& rows,
                     ThreadPool& pool, Scratch& scratch);

// The same over int8 and int4 blocks in whole numbers, whose kernels know no keys but in spans (attention_vnni_spans.h).
void attend_in_spans(std::span<const AttentionTask> tasks, ThreadPool& pool, Scratch& scratch);

}  // namespace fathom
