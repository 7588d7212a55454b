#include "nn/batch.h"

#include <algorithm>

namespace fathom {
namespace {

// Host side of a SequenceGroup.
struct GroupBuilder {
    std::vector<int32_t> cu_q{0}, cu_k{0}, key_rows;
    std::vector<std::span<const int32_t>> tables;
    int64_t rows = 0, keys = 0, max_q = 0, max_k = 0;

    void add(const SequenceChunk& chunk, int64_t block_size) {
        const auto queries = static_cast<int64_t>(chunk.tokens.size()), length = chunk.past + queries;
        rows += queries;
        keys += length;
        max_q = std::max(max_q, queries);
        max_k = std::max(max_k, length);
        cu_q.push_back(static_cast<int32_t>(rows));
        cu_k.push_back(static_cast<int32_t>(keys));
        tables.push_back(chunk.block_table);
        if (block_size == 0 || chunk.form == AttentionForm::kAbsorbed) return;
        for (int64_t t = 0; t < length; ++t) {
            key_rows.push_back(
                static_cast<int32_t>(chunk.block_table[static_cast<size_t>(t / block_size)] * block_size + t % block_size));
        }
    }

    [[nodiscard]] Tensor block_table(Context& cx, int64_t block_size, bool keep) const {
        constexpr int64_t kStep = 16;  // so that the batches of sequences that grow are of one shape for a while
        const int64_t columns = std::max<int64_t>(1, (max_k + block_size * kStep - 1) / (block_size * kStep)) * kStep,
                      count = static_cast<int64_t>(tables.size());
        std::vector<int32_t> table(static_cast<size_t>(count * columns), 0);
        for (int64_t i = 0; i < count; ++i) {
            const auto row = tables[static_cast<size_t>(i)];
            std::copy_n(row.begin(), std::min<size_t>(row.size(), static_cast<size_t>(columns)), table.begin() + i * columns);
        }
        return cx.ints(table, keep).view({count, columns});
    }

    [[nodiscard]] SequenceGroup build(Context& cx, int64_t row_begin, int64_t block_size, AttentionForm form, bool keep) const {
        SequenceGroup group{row_begin, rows, keys, {}, {}};
        if (rows == 0) return group;
        group.spans = {cx.ints(cu_q, keep), cx.ints(cu_k, keep), {}, max_q, max_k};
        if (block_size == 0) return group;
        if (form == AttentionForm::kExpanded) group.key_rows = cx.ints(key_rows, keep);
        if (form == AttentionForm::kAbsorbed) group.spans.block_table = block_table(cx, block_size, keep);
        return group;
    }
};

}  // namespace

Batch make_batch(Context& cx, std::span<const SequenceChunk> chunks, int64_t block_size, bool keep) {
    std::vector<int32_t> tokens, positions, slots, cu_seqlens{0};
    GroupBuilder expanded, absorbed;
    for (const SequenceChunk& chunk : chunks) {
        check(block_size > 0 || chunk.past == 0, "make_batch: past tokens need a cache");
        check(chunk.form == AttentionForm::kAbsorbed || absorbed.rows == 0, "make_batch: expanded chunks come first");
        (chunk.form == AttentionForm::kExpanded ? expanded : absorbed).add(chunk, block_size);
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
    batch.tokens = cx.ints(tokens, keep);
    batch.positions = cx.ints(positions, keep);
    if (block_size > 0) batch.slots = cx.ints(slots, keep);
    batch.cu_seqlens = cx.ints(cu_seqlens, keep);
    batch.expanded = expanded.build(cx, 0, block_size, AttentionForm::kExpanded, keep);
    batch.absorbed = absorbed.build(cx, expanded.rows, block_size, AttentionForm::kAbsorbed, keep);
    return batch;
}

}  // namespace fathom
