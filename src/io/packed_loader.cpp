#include "io/packed_loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/shuffle.h"

namespace fathom {

std::vector<int32_t> shifted_targets(const TokenBatch& batch, int64_t k) {
    check(k >= 1, "targets lie ahead");
    std::vector<int32_t> shifted(batch.targets.size(), kNoTarget);
    for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
        const int64_t begin = batch.cu_seqlens[s], end = batch.cu_seqlens[s + 1];
        if (end - begin >= k)
            std::copy(batch.targets.begin() + begin + k - 1, batch.targets.begin() + end, shifted.begin() + begin);
    }
    return shifted;
}

std::vector<int32_t> shifted_tokens(const TokenBatch& batch, int64_t k) {
    std::vector<int32_t> shifted = shifted_targets(batch, k);  // knows what stands behind a segment
    for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
        const int64_t begin = batch.cu_seqlens[s], end = batch.cu_seqlens[s + 1];
        if (end - begin > k) std::copy(batch.tokens.begin() + begin + k, batch.tokens.begin() + end, shifted.begin() + begin);
    }
    return shifted;
}

PackedLoader::PackedLoader(TokenDataset dataset, const PackedLoaderOptions& options)
    : dataset_(std::move(dataset)),
      options_(options) {
    check(options.sequence_length > 0 && options.rows_per_batch > 0, "rows of at least one token");
    check(options.sequence_length <= std::numeric_limits<int32_t>::max() / options.rows_per_batch, "cu_seqlens are 32-bit");
    begin_epoch(0);
}

void PackedLoader::begin_epoch(int64_t epoch) {
    epoch_ = epoch;
    position_ = 0;
    rows_.clear();
    if (options_.shuffle)
        plan_shuffled();
    else
        plan_in_order();
}

// Fills the last row, which has room for `room` more tokens, and opens new ones as needed.
void PackedLoader::append_to_rows(Piece piece, int64_t& room) {
    while (piece.length > 0) {
        if (room == 0) {
            rows_.emplace_back();
            room = options_.sequence_length;
        }
        const int64_t length = std::min(room, piece.length);
        rows_.back().push_back({piece.document, piece.offset, length});
        piece.offset += length;
        piece.length -= length;
        room -= length;
    }
}

void PackedLoader::plan_in_order() {
    int64_t room = 0;
    for (int64_t d = 0; d < dataset_.documents(); ++d) append_to_rows({d, 0, dataset_.length(d)}, room);
}

void PackedLoader::plan_shuffled() {
    Rng rng(options_.seed, static_cast<uint64_t>(epoch_));
    const int64_t full = options_.sequence_length;
    std::vector<Piece> parts;  // pieces that do not fill a row
    for (int64_t d = 0; d < dataset_.documents(); ++d) {
        const int64_t length = dataset_.length(d);
        int64_t offset = length > full ? static_cast<int64_t>(rng.below(static_cast<uint64_t>(full))) : 0;
        if (offset > 0) parts.push_back({d, 0, offset});
        for (; length - offset >= full; offset += full) rows_.push_back({{d, offset, full}});
        if (offset < length) parts.push_back({d, offset, length - offset});
    }
    shuffle(parts, rng);
    int64_t room = 0;
    for (const Piece& part : parts) append_to_rows(part, room);
    for (size_t i = 0; room > 0; i = (i + 1) % parts.size())
        append_to_rows({parts[i].document, parts[i].offset, std::min(room, parts[i].length)}, room);
    shuffle(rows_, rng);
}

std::optional<TokenBatch> PackedLoader::next() {
    TokenBatch batch;
    batch.cu_seqlens.push_back(0);
    for (int64_t row = 0; row < options_.rows_per_batch; ++row) {
        if (position_ == rows_per_epoch()) {
            if (!options_.shuffle) break;
            begin_epoch(epoch_ + 1);
        }
        for (const Piece& piece : rows_[static_cast<size_t>(position_)]) append_segment(batch, piece);
        ++position_;
    }
    return batch.tokens.empty() ? std::nullopt : std::optional(std::move(batch));
}

void PackedLoader::append_segment(TokenBatch& batch, const Piece& piece) const {
    const size_t begin = batch.tokens.size(), end = begin + static_cast<size_t>(piece.length);
    batch.tokens.resize(end);
    batch.positions.resize(end);
    batch.targets.resize(end, kNoTarget);
    dataset_.read(std::span(batch.tokens).subspan(begin), piece.document, piece.offset);
    std::iota(batch.positions.begin() + static_cast<std::ptrdiff_t>(begin), batch.positions.end(), 0);
    // The document's last token has no target.
    const int64_t behind = dataset_.length(piece.document) - piece.offset - 1;
    const auto targets = static_cast<size_t>(std::min(piece.length, behind));
    dataset_.read(std::span(batch.targets).subspan(begin, targets), piece.document, piece.offset + 1);
    batch.cu_seqlens.push_back(static_cast<int32_t>(end));
}

void PackedLoader::restore(const State& state) {
    // Every epoch has as many rows.
    if (state.epoch < 0 || (state.epoch > 0 && !options_.shuffle) || state.position < 0 || state.position > rows_per_epoch())
        throw Error{
            ErrorKind::kInput,
            fmt::format(
                "{}: no place of this data set: epoch {}, row {} of {}; resume with the data and the sequence length the "
                "run was begun with",
                dataset_.folder().string(), state.epoch, state.position, rows_per_epoch())};
    if (state.epoch != epoch_) begin_epoch(state.epoch);
    position_ = state.position;
}

int64_t PackedLoader::batches_per_epoch() const {
    return (rows_per_epoch() + options_.rows_per_batch - 1) / options_.rows_per_batch;
}

}  // namespace fathom
