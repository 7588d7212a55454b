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

// The token k further on: out[i] = the token at i + k of i's segment, or behind its end the document's next one where that is
// known; kNoTarget elsewhere. Unlike targets it is there for tokens that no loss counts.
[[nodiscard]] std::vector<int32_t> shifted_tokens(const TokenBatch& batch, int64_t k);

// Where training batches come from.
class BatchSource {
public:
    // Where the next batch begins. Saved with a checkpoint; restored, the following batches are the same to the byte.
    struct State {
        int64_t epoch = 0;
        int64_t position = 0;  // of this epoch, in the source's own units

        bool operator==(const State&) const = default;
    };

    virtual ~BatchSource() = default;
    // The next batch; nothing after the end, which a source for training does not have.
    [[nodiscard]] virtual std::optional<TokenBatch> next() = 0;
    [[nodiscard]] virtual State state() const = 0;
    // Throws Error{kInput} when the state cannot be one of this data, e.g. because the data changed under a run.
    virtual void restore(const State& state) = 0;
};

struct PackedLoaderOptions {
    int64_t sequence_length = 0;
    int64_t rows_per_batch = 0;
    uint64_t seed = 0;
    bool shuffle = true;  // true: for ever, in a new order every epoch; false: in file order, once
};

// Cuts documents into pieces of at most sequence_length tokens and packs these into rows, without padding or loss. A piece is a
// segment of its own: what continues a document starts at position 0 and cannot attend to its beginning.
//
// shuffle = false: the documents in order are one stream, cut every sequence_length tokens; the last row may be shorter.
// shuffle = true: rows are shuffled, not only documents, so that a book does not fill one batch after the other.
//   Documents longer than a row: a head of random length (the cuts fall elsewhere every epoch), then pieces that fill a row
//   each. Heads, tails and short documents: shuffled into one stream, cut every sequence_length tokens; its last row is filled
//   up from its beginning, so that every batch has rows_per_batch * sequence_length tokens.
// The rows of an epoch are a function of (options, epoch), so batches depend on options and data alone.
class PackedLoader : public BatchSource {
public:
    PackedLoader(TokenDataset dataset, const PackedLoaderOptions& options);

    // The next batch; nothing after the end, which only shuffle = false has. Its last batch may have fewer rows.
    [[nodiscard]] std::optional<TokenBatch> next() override;

    [[nodiscard]] State state() const override { return {epoch_, position_}; }  // position: rows already handed out
    void restore(const State& state) override;

    [[nodiscard]] const TokenDataset& dataset() const { return dataset_; }
    [[nodiscard]] const PackedLoaderOptions& options() const { return options_; }
    [[nodiscard]] int64_t rows_per_epoch() const { return std::ssize(rows_); }
    [[nodiscard]] int64_t batches_per_epoch() const;  // rounded up

private:
    struct Piece {
        int64_t document, offset, length;
    };
    using Row = std::vector<Piece>;

    TokenDataset dataset_;
    PackedLoaderOptions options_;
    std::vector<Row> rows_;  // of this epoch
    int64_t epoch_ = 0, position_ = 0;

    void begin_epoch(int64_t epoch);
    void append_to_rows(Piece piece, int64_t& room);
    void plan_in_order();
    void plan_shuffled();
    void append_segment(TokenBatch& batch, const Piece& piece) const;
};

}  // namespace fathom
