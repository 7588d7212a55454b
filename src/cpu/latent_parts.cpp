#include "cpu/latent_parts.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace fathom {
namespace {

// A part packs the queries and is joined by a pass over the sums of all heads, which many keys repay: of 256, for 16 heads,
// both took a fifth of a token's attention.
constexpr int64_t kKeys = 1024;
constexpr int64_t kMostFloats = int64_t{8} << 20;  // of parts that wait to be joined, unless one task has more

// A part's o [lanes, d_v] and lse [lanes].
int64_t part_floats(const AttentionTask& task) { return task.lanes * (task.d_v + 1); }

int64_t count(const AttentionTask& task) { return (task.visible[task.lanes - 1] + kKeys - 1) / kKeys; }

AttentionTask part(AttentionTask task, int64_t index, float* memory) {
    const int64_t begin = index * kKeys;
    for (int64_t i = 0; i < task.lanes; ++i) {
        task.o[i] = memory + i * task.d_v;
        task.lse[i] = memory + task.lanes * task.d_v + i;
        task.visible[i] = std::min(task.visible[i] - begin, kKeys);
    }
    if (task.keys.pages == nullptr)
        task.keys.data += begin * task.keys.stride;
    else
        task.keys.pages += begin / task.keys.block;
    return task;
}

// `memory`: the task's parts, of which those count that hold a key the lane sees.
void join(const AttentionTask& task, int64_t lane, const float* memory, const Kernels& rows) {
    const int64_t parts = (task.visible[lane] + kKeys - 1) / kKeys;
    std::vector<const float*> o(static_cast<size_t>(parts));
    std::vector<float> weight(static_cast<size_t>(parts));
    for (int64_t i = 0; i < parts; ++i) {
        const float* const part = memory + i * part_floats(task);
        o[static_cast<size_t>(i)] = part + lane * task.d_v;
        weight[static_cast<size_t>(i)] = part[task.lanes * task.d_v + lane];
    }
    const float top = rows.largest(weight.data(), parts), sum = rows.sum_exp(weight.data(), top, parts);
    rows.exp_scaled(weight.data(), weight.data(), top, 1.0f / sum, parts);
    rows.weighted_sum(task.o[lane], o.data(), weight.data(), parts, task.d_v);
    *task.lse[lane] = top + std::log(sum);
}

void attend_some(std::span<const AttentionTask> tasks, const AttentionKernels& attention, const Kernels& rows, ThreadPool& pool,
                 Scratch& scratch) {
    struct Item {
        const AttentionTask* task;
        int64_t index;  // of the part or the lane
        float* memory;  // of the task's parts
    };
    int64_t floats = 0;
    for (const AttentionTask& task : tasks) floats += count(task) * part_floats(task);
    auto* memory = scratch.shared<float>(floats);
    std::vector<Item> parts, lanes;
    for (const AttentionTask& task : tasks) {
        for (int64_t i = 0; i < count(task); ++i) parts.push_back({&task, i, memory});
        for (int64_t i = 0; i < task.lanes; ++i) lanes.push_back({&task, i, memory});
        memory += count(task) * part_floats(task);
    }
    const int64_t own = attention_scratch_floats(tasks[0].d_q, tasks[0].d_v);
    const int64_t grain = std::max<int64_t>(1, std::ssize(parts) / (4 * pool.size()));
    pool.parallel_for(std::ssize(parts), grain, [&](int64_t begin, int64_t end, int thread) {
        auto* const space = scratch.of_thread<float>(thread, own);
        for (int64_t i = begin; i < end; ++i) {
            const auto& [task, index, first] = parts[static_cast<size_t>(i)];
            attention.forward(part(*task, index, first + index * part_floats(*task)), space);
        }
    });
    pool.parallel_for(std::ssize(lanes), 4, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const auto& [task, lane, first] = lanes[static_cast<size_t>(i)];
            join(*task, lane, first, rows);
        }
    });
}

}  // namespace

bool goes_in_parts(const AttentionTask& task) {
    return count(task) > 1 && (task.keys.pages == nullptr || kKeys % task.keys.block == 0);
}

void attend_in_parts(std::span<const AttentionTask> tasks, const AttentionKernels& attention, const Kernels& rows,
                     ThreadPool& pool, Scratch& scratch) {
    for (size_t begin = 0, end = 0; begin < tasks.size(); begin = end) {
        for (int64_t floats = 0; end < tasks.size() && (end == begin || floats < kMostFloats); ++end)
            floats += count(tasks[end]) * part_floats(tasks[end]);
        attend_some(tasks.subspan(begin, end - begin), attention, rows, pool, scratch);
    }
}

}  // namespace fathom
