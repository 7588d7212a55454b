// One batch: rows of many sequences in any stage (whole documents in training, chunks of prompts, single decode steps), and the
// view of a cache that they read and write.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nn/context.h"

namespace fathom {

// The two forms of MLA (DeepSeek-V2 2.1.2): equal in real arithmetic, different in cost and in rounding.
enum class AttentionForm : uint8_t {
    kExpanded,  // keys and values of every head are projected up from the latents: cheap for many queries
    kAbsorbed,  // queries are projected down into the latent space: cheap for few queries and many keys
};

// What a layer keeps per token, e.g. {"latent", 576}. A layer may declare several states, or none.
struct CacheState {
    std::string name;
    int64_t width = 0;
};

// The pages of one layer, [blocks, block_size, width] per declared state, in the cache's type (nn/cache_type.h).
struct LayerCache {
    std::vector<Weight> states;
};

// Pages [blocks, block_size, width] as rows [blocks * block_size, width].
[[nodiscard]] inline Weight page_rows(const Weight& pages) {
    Weight rows = pages;
    rows.codes = pages.codes.view({pages.codes.dim(0) * pages.codes.dim(1), pages.codes.dim(2)});
    return rows;
}

struct CacheView {
    std::vector<LayerCache> layers;
};

// Consecutive rows of a SequenceGroup whose sequences all have few queries, or all many.
struct SequenceRun {
    int64_t row_begin = 0, rows = 0;  // in the group
    Spans spans;                      // queries counted from the run's first row, keys from the group's first

    // The run's rows of a tensor over the group.
    [[nodiscard]] Tensor of(const Tensor& group) const { return group.slice(0, row_begin, row_begin + rows); }
};

// Consecutive rows of the batch whose sequences use the same attention form.
struct SequenceGroup {
    int64_t row_begin = 0, rows = 0;  // in the batch
    int64_t keys = 0;                 // sum of the sequences' lengths, cached tokens included
    Spans spans;                      // query and key boundaries counted from the group's first row and key
    std::vector<SequenceRun> runs;    // absorbed form: the same by sequences alike, for latent attention to take in turn
    Tensor key_rows;                  // [keys] i32: page row (block * block_size + offset) of every key; absent without a cache

    // The group's rows of a tensor over the whole batch.
    [[nodiscard]] Tensor of(const Tensor& batch) const { return batch.slice(0, row_begin, row_begin + rows); }
};

// The experts of one layer for the batch's rows.
struct Routing {
    Tensor indices;  // [n, K] i32, best first
    Tensor weights;  // [n, K]
};

struct Batch {
    int64_t rows = 0;
    Tensor tokens;           // [n] i32
    Tensor positions;        // [n] i32
    Tensor rope;             // [n, d] table of cos and sin, filled in by the model
    Tensor slots;            // [n] i32: page row each token's state is written to; absent without a cache
    Tensor cu_seqlens;       // [sequences + 1] i32 over all rows
    SequenceGroup expanded;  // rows [0, expanded.rows)
    SequenceGroup absorbed;  // the rest
    // Indexed as the model's layers; empty unless wanted.
    std::vector<Tensor> replay;              // experts that must be used (routing replay in RL): [n, K] i32, absent = choose
    std::vector<Routing>* record = nullptr;  // receives the experts used, in cx.saved
    int64_t experts_per_token = 0;           // of those chosen; 0, or more than K: the model's own K
};

// A run of rows of one sequence: `tokens` follow `past` tokens that are in the cache already.
struct SequenceChunk {
    std::span<const int32_t> tokens;
    int64_t past = 0;
    AttentionForm form = AttentionForm::kExpanded;
    std::span<const int32_t> block_table;  // page of every `block_size` tokens, past ones included; empty without a cache
};

// Builds a batch from chunks; those in expanded form must come first. block_size 0: no cache, then every `past` is 0.
// The tensors live in cx.saved when `keep`, else in cx.scratch.
[[nodiscard]] Batch make_batch(Context& cx, std::span<const SequenceChunk> chunks, int64_t block_size, bool keep);

}  // namespace fathom
