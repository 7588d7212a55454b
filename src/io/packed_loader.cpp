#include "io/packed_loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/rng.h"

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

PackedLoader::PackedLoader(TokenDataset dataset, const PackedLoaderOptions& options)
    : dataset_(std::move(dataset)),
      options_(options) {
    check(options.sequence_length > 0 && options.rows_per_batch > 0, "rows of at least one token");
    check(options.sequence_length <= std::numeric_limits<int32_t>::max() / options.rows_per_batch, "cu_seqlens are 32-bit");
    begin_epoch(0);
}

// Fisher and Yates, with the epoch as the random stream.
void PackedLoader::begin_epoch(int64_t epoch) {
    epoch_ = epoch;
    position_ = place_ = offset_ = 0;
    order_.resize(static_cast<size_t>(dataset_.documents()));
    std::iota(order_.begin(), order_.end(), int64_t{0});
    if (!options_.shuffle) return;
    Rng rng(options_.seed, static_cast<uint64_t>(epoch));
    for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[rng.below(i)]);
}

std::optional<TokenBatch> PackedLoader::next() {
    if (at_end()) return std::nullopt;
    TokenBatch batch;
    batch.cu_seqlens.push_back(0);
    for (int64_t row = 0; row < options_.rows_per_batch && !at_end(); ++row) {
        const int64_t row_end = std::ssize(batch.tokens) + options_.sequence_length;
        while (std::ssize(batch.tokens) < row_end && !at_end()) append_segment(batch, row_end - std::ssize(batch.tokens));
    }
    return batch;
}

// As much of the current document as there is room for.
void PackedLoader::append_segment(TokenBatch& batch, int64_t room) {
    const int64_t document = order_[static_cast<size_t>(place_)];
    const int64_t left = dataset_.length(document) - offset_, count = std::min(left, room);
    const size_t begin = batch.tokens.size(), end = begin + static_cast<size_t>(count);
    batch.tokens.resize(end);
    batch.positions.resize(end);
    batch.targets.resize(end, kNoTarget);
    dataset_.read(std::span(batch.tokens).subspan(begin), document, offset_);
    std::iota(batch.positions.begin() + static_cast<std::ptrdiff_t>(begin), batch.positions.end(), 0);
    const auto targets = static_cast<size_t>(std::min(count, left - 1));  // the document's last token has none
    dataset_.read(std::span(batch.targets).subspan(begin, targets), document, offset_ + 1);
    batch.cu_seqlens.push_back(static_cast<int32_t>(end));
    position_ += count;
    offset_ += count;
    if (count < left) return;
    offset_ = 0;
    if (++place_ == dataset_.documents()) begin_epoch(epoch_ + 1);
}

void PackedLoader::restore(const State& state) {
    const bool ended = !options_.shuffle && state == State{1, 0};
    if (state.epoch < 0 || state.position < 0 || state.position >= dataset_.tokens() ||
        (!options_.shuffle && state.epoch > 0 && !ended))
        throw Error{
            ErrorKind::kInput,
            fmt::format("{}: no place of this data set: epoch {}, token {} of {}; resume with the data the run was begun with",
                        dataset_.folder().string(), state.epoch, state.position, dataset_.tokens())};
    begin_epoch(state.epoch);
    position_ = offset_ = state.position;
    for (; !ended && offset_ >= dataset_.length(order_[static_cast<size_t>(place_)]); ++place_)
        offset_ -= dataset_.length(order_[static_cast<size_t>(place_)]);
}

int64_t PackedLoader::batches_per_epoch() const {
    const int64_t per_batch = options_.sequence_length * options_.rows_per_batch;
    return (dataset_.tokens() + per_batch - 1) / per_batch;
}

}  // namespace fathom
