#include "nn/batch.h"

#include <gtest/gtest.h>

#include <numeric>

#include "cpu/cpu_ops.h"

namespace fathom {
namespace {

std::vector<int32_t> ints(const Tensor& t) { return {t.as<int32_t>(), t.as<int32_t>() + t.size()}; }

// Sequences of 1, 3, 20 and 2 queries behind cached tokens, in the absorbed form, after one in the expanded form.
TEST(Batch, RunsOfSequencesAlikeCoverTheAbsorbedRows) {
    ThreadPool pool(1);
    CpuOps ops(pool);
    Arena scratch("batch", Buffer::host, int64_t{1} << 20), saved("saved", Buffer::host, int64_t{1} << 20);
    Context cx{ops, scratch, saved};
    std::vector<int32_t> tokens(64), table(4);
    std::iota(tokens.begin(), tokens.end(), 0);
    std::iota(table.begin(), table.end(), 0);
    const auto chunk = [&](size_t queries, int64_t past, AttentionForm form) {
        return SequenceChunk{std::span(tokens).first(queries), past, form, table};
    };
    const std::vector<SequenceChunk> chunks{chunk(12, 0, AttentionForm::kExpanded), chunk(1, 30, AttentionForm::kAbsorbed),
                                            chunk(3, 5, AttentionForm::kAbsorbed), chunk(20, 7, AttentionForm::kAbsorbed),
                                            chunk(2, 9, AttentionForm::kAbsorbed)};
    const Batch batch = make_batch(cx, chunks, 16, false);
    EXPECT_TRUE(batch.expanded.runs.empty());
    const std::vector<SequenceRun>& runs = batch.absorbed.runs;
    ASSERT_EQ(runs.size(), 3u);
    const std::vector<std::vector<int32_t>> cu_q{{0, 1, 4}, {0, 20}, {0, 2}}, cu_k{{0, 31, 39}, {39, 66}, {66, 77}};
    const std::vector<int64_t> begins{0, 4, 24}, rows{4, 20, 2}, max_q{3, 20, 2}, max_k{31, 27, 11};
    for (size_t i = 0; i < runs.size(); ++i) {
        EXPECT_EQ(runs[i].row_begin, begins[i]);
        EXPECT_EQ(runs[i].rows, rows[i]);
        EXPECT_EQ(ints(runs[i].spans.cu_q), cu_q[i]);
        EXPECT_EQ(ints(runs[i].spans.cu_k), cu_k[i]);
        EXPECT_EQ(runs[i].spans.max_q, max_q[i]);
        EXPECT_EQ(runs[i].spans.max_k, max_k[i]);
        EXPECT_EQ(runs[i].spans.block_table.dim(0), std::ssize(cu_q[i]) - 1);
    }
}

}  // namespace
}  // namespace fathom
