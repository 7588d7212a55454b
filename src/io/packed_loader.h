// Training batches: documents packed into rows of one length, with the boundaries that keep them from seeing each other.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "io/token_shards.h"

namespace fathom {

inline constexpr int32_t kNoTarget = -1;

// n = tokens of the batch, rows laid one behind the other. A segment is what one document has in one row: attention never
// leaves it, and positions count from its start.
struct TokenBatch {
    std::vector<int32_t> tokens;      // [n]
    std::vector<int32_t> positions;   // [n]: 0, 1, ... in each segment
    std::vector<int32_t> targets;     // [n]: the document's next token, also across a row's end; kNoTarget at its last token
    std::vector<int32_t> cu_seqlens;  // [segments + 1]: where segments begin; 0 first, n last

    bool operator==(const TokenBatch&) const = default;
};

// Targets k tokens ahead (k = 1: batch.targets itself): out[i] = the token behind position i + k - 1 of i's segment, kNoTarget
// where the segment has no such position or nothing follows there. It is what multi-token prediction at depth k - 1 learns:
// there the module reads the embedding of token i + k - 1, which must lie in the segment (DeepSeek-V3, 2.2).
[[nodiscard]] std::vector<int32_t> shifted_targets(const TokenBatch& batch, int64_t k);

struct PackedLoaderOptions {
    int64_t sequence_length = 0;
    int64_t rows_per_batch = 0;
    uint64_t seed = 0;
    bool shuffle = true;  // true: for ever, documents in a new order every epoch; false: in file order, once
};

// The documents of an epoch, in the epoch's order, are one long stream that is cut into rows: no padding, nothing dropped.
// A document that crosses the end of a row goes on in the next row as a new segment at position 0 (it cannot attend to its
// beginning there). With shuffle, a row that an epoch leaves unfilled is filled from the next; without, the last row and the
// last batch are shorter. The order is a function of (seed, epoch), so batches depend on options and data alone.
class PackedLoader {
public:
    // Where the next batch begins. Saved with a checkpoint; restored, the following batches are the same to the byte.
    struct State {
        int64_t epoch = 0;
        int64_t position = 0;  // tokens of this epoch already handed out

        bool operator==(const State&) const = default;
    };

    PackedLoader(TokenDataset dataset, const PackedLoaderOptions& options);

    // The next batch; nothing after the end, which only shuffle = false has.
    [[nodiscard]] std::optional<TokenBatch> next();

    [[nodiscard]] State state() const { return {epoch_, position_}; }
    // Throws Error{kInput} when the state cannot be one of this data set, e.g. because the data changed under a run.
    void restore(const State& state);

    [[nodiscard]] const TokenDataset& dataset() const { return dataset_; }
    [[nodiscard]] const PackedLoaderOptions& options() const { return options_; }
    // Batches of one pass without shuffle; with it, batches that begin and end in one epoch, rounded up.
    [[nodiscard]] int64_t batches_per_epoch() const;

private:
    TokenDataset dataset_;
    PackedLoaderOptions options_;
    std::vector<int64_t> order_;  // [documents]: of this epoch
    int64_t epoch_ = 0, position_ = 0;
    int64_t place_ = 0;   // in order_: the document being read
    int64_t offset_ = 0;  // tokens of it already handed out

    void begin_epoch(int64_t epoch);
    [[nodiscard]] bool at_end() const { return !options_.shuffle && epoch_ > 0; }
    void append_segment(TokenBatch& batch, int64_t room);
};

}  // namespace fathom
