#include "cpu/latent_parts.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/attention_vnni_spans.h"

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

// ---- spans ---------------------------------------------------------------------------------------------------------------

int64_t spans_of(const AttentionTask& task) { return span_count(task.visible[task.lanes - 1]); }

int64_t sums_floats(const AttentionTask& task) { return kLastFloats + span_lanes(task) * task.d_v; }

SpanSums sums_at(float* memory) { return {memory, memory + kLastFloats}; }

// Enough tasks for all threads: each by one.
void attend_to_whole(std::span<const AttentionTask> tasks, ThreadPool& pool, Scratch& scratch) {
    const AttentionTask& widest = *std::ranges::max_element(tasks, {}, &AttentionTask::lanes);
    const int64_t sums = sums_floats(widest), queries = packed_queries_floats(widest);
    const auto count = std::ssize(tasks);
    pool.parallel_for(count, 1, [&](int64_t begin, int64_t end, int thread) {
        auto* const memory = scratch.of_thread<float>(thread, 2 * sums + queries + span_scratch_floats());
        const SpanSums total = sums_at(memory), next = sums_at(memory + sums);
        float* const packed = memory + 2 * sums;
        for (int64_t i = count - end; i < count - begin; ++i) {  // the long ones first
            const AttentionTask& task = tasks[static_cast<size_t>(i)];
            const int64_t blocks = task.d_v / kCacheBlock;
            pack_queries_vnni(task, packed);
            for (int64_t span = 0; span < spans_of(task); ++span) {
                attend_to_span_vnni(task, packed, span_begin(span), span_begin(span + 1), span == 0 ? total : next,
                                    packed + queries);
                if (span > 0) join_span_vnni(task, total, next, 0, blocks);
            }
            finish_spans_vnni(task, total, 0, blocks);
        }
    });
}

// Few tasks: threads share their spans, then their channels.
void attend_to_shared(std::span<const AttentionTask> tasks, ThreadPool& pool, Scratch& scratch) {
    struct Item {
        const AttentionTask* task;
        int64_t index;  // of the span or the block of channels
        float* queries;
        float* sums;
    };
    int64_t floats = 0;
    for (const AttentionTask& task : tasks) floats += packed_queries_floats(task) + spans_of(task) * sums_floats(task);
    auto* memory = scratch.shared<float>(floats);
    std::vector<Item> spans, blocks;
    for (const AttentionTask& task : tasks) {
        float* const sums = memory + packed_queries_floats(task);
        for (int64_t i = spans_of(task) - 1; i >= 0; --i) spans.push_back({&task, i, memory, sums});  // short ones last
        for (int64_t i = 0; i < task.d_v / kCacheBlock; ++i) blocks.push_back({&task, i, memory, sums});
        pack_queries_vnni(task, memory);
        memory = sums + spans_of(task) * sums_floats(task);
    }
    pool.parallel_for(std::ssize(spans), 1, [&](int64_t begin, int64_t end, int thread) {
        auto* const space = scratch.of_thread<float>(thread, span_scratch_floats());
        for (int64_t i = begin; i < end; ++i) {
            const auto& [task, index, queries, sums] = spans[static_cast<size_t>(i)];
            attend_to_span_vnni(*task, queries, span_begin(index), span_begin(index + 1),
                                sums_at(sums + index * sums_floats(*task)), space);
        }
    });
    pool.parallel_for(std::ssize(blocks), 4, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const auto& [task, index, queries, sums] = blocks[static_cast<size_t>(i)];
            float last[kLastFloats];
            std::copy_n(sums, kLastFloats, last);
            const SpanSums total{last, sums_at(sums).o};
            for (int64_t span = 1; span < spans_of(*task); ++span)
                join_span_vnni(*task, total, sums_at(sums + span * sums_floats(*task)), index, index + 1);
            finish_spans_vnni(*task, total, index, index + 1);
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

void attend_in_spans(std::span<const AttentionTask> tasks, ThreadPool& pool, Scratch& scratch) {
    if (std::ssize(tasks) >= 4 * pool.size()) return attend_to_whole(tasks, pool, scratch);
    for (size_t begin = 0, end = 0; begin < tasks.size(); begin = end) {
        for (int64_t floats = 0; end < tasks.size() && (end == begin || floats < kMostFloats); ++end)
            floats += spans_of(tasks[end]) * sums_floats(tasks[end]);
        attend_to_shared(tasks.subspan(begin, end - begin), pool, scratch);
    }
}

}  // namespace fathom
