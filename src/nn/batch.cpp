#include "nn/batch.h"

#include <algorithm>

namespace fathom {
namespace {

// Lists of integers that go to the device together: one copy instead of one for each.
class IntLists {
public:
    // Where the list will stand.
    int64_t add(std::span<const int32_t> list) {
        constexpr size_t kAligned = 16;  // every list begins at a multiple of 64 bytes
        all_.resize((all_.size() + kAligned - 1) / kAligned * kAligned);
        const auto begin = std::ssize(all_);
        all_.insert(all_.end(), list.begin(), list.end());
        return begin;
    }
    void write(Context& cx, bool keep) { device_ = cx.ints(all_, keep); }
    [[nodiscard]] Tensor at(int64_t begin, int64_t count) const { return device_.slice(0, begin, begin + count); }

private:
    std::vector<int32_t> all_;
    Tensor device_;
};

// Host side of a SequenceGroup.
struct GroupBuilder {
    AttentionForm form;
    int64_t block_size;  // 0: no cache
    std::vector<int32_t> cu_q{0}, cu_k{0}, key_rows;
    std::vector<std::span<const int32_t>> tables;
    int64_t rows = 0, keys = 0, max_q = 0, max_k = 0;
    int64_t cu_q_at = 0, cu_k_at = 0, key_rows_at = 0, block_table_at = 0, columns = 0;  // in the lists
    struct Run {
        int64_t first = 0, row_begin = 0, max_q = 0, max_k = 0;  // first: sequence of the group
        bool many = false;
        std::vector<int32_t> cu_q{0};
        int64_t cu_q_at = 0;
    };
    std::vector<Run> runs;

    void add(const SequenceChunk& chunk) {
        const auto queries = static_cast<int64_t>(chunk.tokens.size()), length = chunk.past + queries;
        rows += queries;
        keys += length;
        max_q = std::max(max_q, queries);
        max_k = std::max(max_k, length);
        if (form == AttentionForm::kAbsorbed) add_to_run(queries, length);
        cu_q.push_back(static_cast<int32_t>(rows));
        cu_k.push_back(static_cast<int32_t>(keys));
        tables.push_back(chunk.block_table);
        if (block_size == 0 || form == AttentionForm::kAbsorbed) return;
        for (int64_t t = 0; t < length; ++t) {
            key_rows.push_back(
                static_cast<int32_t>(chunk.block_table[static_cast<size_t>(t / block_size)] * block_size + t % block_size));
        }
    }

    // Latent attention shares out its work by the most queries of a sequence: one prompt's piece beside answers would leave
    // these to a few processors (docs/decisions/017-queries-alike.md).
    void add_to_run(int64_t queries, int64_t length) {
        constexpr int64_t kFew = 8;  // an answer's token and its drafts
        const bool many = queries > kFew;
        if (runs.empty() || runs.back().many != many)
            runs.push_back({.first = std::ssize(tables), .row_begin = rows - queries, .many = many});
        Run& run = runs.back();
        run.cu_q.push_back(static_cast<int32_t>(rows - run.row_begin));
        run.max_q = std::max(run.max_q, queries);
        run.max_k = std::max(run.max_k, length);
    }

    [[nodiscard]] std::vector<int32_t> block_table() {
        constexpr int64_t kStep = 16;  // so that the batches of sequences that grow are of one shape for a while
        columns = std::max<int64_t>(1, (max_k + block_size * kStep - 1) / (block_size * kStep)) * kStep;
        std::vector<int32_t> table(tables.size() * static_cast<size_t>(columns), 0);
        for (size_t i = 0; i < tables.size(); ++i) {
            const auto row = tables[i];
            std::copy_n(row.begin(), std::min<size_t>(row.size(), static_cast<size_t>(columns)),
                        table.begin() + static_cast<ptrdiff_t>(i) * columns);
        }
        return table;
    }

    void list(IntLists& lists) {
        if (rows == 0) return;
        cu_q_at = lists.add(cu_q);
        cu_k_at = lists.add(cu_k);
        for (Run& run : runs) run.cu_q_at = runs.size() == 1 ? cu_q_at : lists.add(run.cu_q);
        if (block_size > 0 && form == AttentionForm::kExpanded) key_rows_at = lists.add(key_rows);
        if (block_size > 0 && form == AttentionForm::kAbsorbed) block_table_at = lists.add(block_table());
    }

    [[nodiscard]] SequenceGroup build(const IntLists& lists, int64_t row_begin) const {
        SequenceGroup group{row_begin, rows, keys, {}, {}, {}};
        if (rows == 0) return group;
        const auto count = std::ssize(tables);
        group.spans = {lists.at(cu_q_at, count + 1), lists.at(cu_k_at, count + 1), {}, max_q, max_k};
        if (block_size > 0 && form == AttentionForm::kExpanded) group.key_rows = lists.at(key_rows_at, keys);
        if (block_size > 0 && form == AttentionForm::kAbsorbed)
            group.spans.block_table = lists.at(block_table_at, count * columns).view({count, columns});
        for (const Run& run : runs) group.runs.push_back(build_run(run, lists, group.spans));
        return group;
    }

    [[nodiscard]] SequenceRun build_run(const Run& run, const IntLists& lists, const Spans& all) const {
        const auto count = std::ssize(run.cu_q) - 1;
        Spans spans{lists.at(run.cu_q_at, count + 1), lists.at(cu_k_at + run.first, count + 1), {}, run.max_q, run.max_k};
        if (all.block_table) spans.block_table = all.block_table.slice(0, run.first, run.first + count);
        return {run.row_begin, run.cu_q.back(), spans};
    }
};

}  // namespace

Batch make_batch(Context& cx, std::span<const SequenceChunk> chunks, int64_t block_size, bool keep) {
    std::vector<int32_t> tokens, positions, slots, cu_seqlens{0};
    GroupBuilder expanded{AttentionForm::kExpanded, block_size}, absorbed{AttentionForm::kAbsorbed, block_size};
    for (const SequenceChunk& chunk : chunks) {
        check(block_size > 0 || chunk.past == 0, "make_batch: past tokens need a cache");
        check(chunk.form == AttentionForm::kAbsorbed || absorbed.rows == 0, "make_batch: expanded chunks come first");
        (chunk.form == AttentionForm::kExpanded ? expanded : absorbed).add(chunk);
        tokens.insert(tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
        for (int64_t i = 0; i < static_cast<int64_t>(chunk.tokens.size()); ++i) {
            const int64_t position = chunk.past + i;
            positions.push_back(static_cast<int32_t>(position));
            if (block_size == 0) continue;
            const int32_t block = chunk.block_table[static_cast<size_t>(position / block_size)];
            slots.push_back(static_cast<int32_t>(block * block_size + position % block_size));
        }
        cu_seqlens.push_back(static_cast<int32_t>(tokens.size()));
    }
    Batch batch;
    batch.rows = static_cast<int64_t>(tokens.size());
    IntLists lists;
    const int64_t tokens_at = lists.add(tokens), positions_at = lists.add(positions), slots_at = lists.add(slots),
                  cu_seqlens_at = lists.add(cu_seqlens);
    expanded.list(lists);
    absorbed.list(lists);
    lists.write(cx, keep);
    batch.tokens = lists.at(tokens_at, batch.rows);
    batch.positions = lists.at(positions_at, batch.rows);
    if (block_size > 0) batch.slots = lists.at(slots_at, batch.rows);
    batch.cu_seqlens = lists.at(cu_seqlens_at, std::ssize(cu_seqlens));
    batch.expanded = expanded.build(lists, 0);
    batch.absorbed = absorbed.build(lists, expanded.rows);
    return batch;
}

}  // namespace fathom
