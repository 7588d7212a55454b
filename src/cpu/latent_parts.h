// Latent attention over many keys, where the order of sums is free: the keys of a task are cut into parts, each of which is
// attended to by itself, so that a key is read once for its score and its value, and threads share one sequence. The parts'
// results are joined by their sums of exponentials:
//   o = sum_i exp(lse_i - top) o_i / sum_i exp(lse_i - top),  lse = top + log(sum_i exp(lse_i - top))
// Cuts are at multiples of one number of keys: a row's bits depend neither on its batch nor on
// threads. They are not those of AttentionKernels::forward.
#pragma once

#include <span>

#include "base/threads.h"
#include "cpu/attention_task.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace fathom {

class LatentParts {
public:
    // Is `task` to be attended to in parts? More keys than one part's, in pages that no cut divides.
    [[nodiscard]] bool cut(const AttentionTask& task) const;
    // All `tasks`, of which `cut` is true.
    void attend(std::span<const AttentionTask> tasks, const AttentionKernels& attention, const Kernels& rows, ThreadPool& pool,
                Scratch& scratch) const;

private:
    // A part packs the queries and is joined by a pass over the sums of all heads, which many keys repay: of 256, for 16 heads,
    // both took a fifth of a token's attention.
    static constexpr int64_t kKeys = 1024;

    [[nodiscard]] int64_t count(const AttentionTask& task) const;
    [[nodiscard]] AttentionTask part(AttentionTask task, int64_t index, float* memory) const;
    void join(const AttentionTask& task, int64_t lane, const float* memory, const Kernels& rows) const;
    void attend_some(std::span<const AttentionTask> tasks, const AttentionKernels& attention, const Kernels& rows,
                     ThreadPool& pool, Scratch& scratch) const;
};

}  // namespace fathom
