// Who runs in a step, and whose pages make room.
#include <algorithm>

#include "infer/engine.h"

namespace fathom {

// Sets `rows` of every sequence that takes part. Decoding sequences come first, so that a long prompt does not hold them up.
void Engine::schedule() {
    const int64_t preempted = counters_.preemptions;
    int64_t rows = options_.max_batch_rows;
    rows = schedule_running(rows, true);
    rows = schedule_running(rows, false);
    if (counters_.preemptions == preempted) admit(rows);
}

// Returns how many rows of the batch are left.
int64_t Engine::schedule_running(int64_t rows, bool decoding) {
    for (size_t i = 0; i < running_.size(); ++i) {
        Sequence& sequence = *running_[i];
        const int64_t count = rows_of(sequence, rows);
        if (sequence.rows > 0 || count == 0 || (cache_ && (sequence.remaining() == 1) != decoding)) continue;
        if (!make_room(sequence, count, true)) break;  // it was the youngest and gave way itself
        sequence.rows = count;
        rows -= count;
    }
    return rows;
}

void Engine::admit(int64_t rows) {
    while (rows > 0 && !waiting_.empty() && static_cast<int64_t>(running_.size()) < options_.max_sequences) {
        Sequence& sequence = *waiting_.front();
        if (cache_ && !sequence.cache) {
            sequence.cache.emplace(*cache_);
            reuse_parked(sequence);
        }
        const int64_t count = rows_of(sequence, rows);
        if (count == 0 || !make_room(sequence, count, false)) {
            sequence.cache.reset();  // those who wait hold no pages
            return;
        }
        sequence.rows = count;
        rows -= count;
        running_.push_back(std::move(waiting_.front()));
        waiting_.erase(waiting_.begin());
    }
}

// Rows the sequence gets when the batch has room for `rows`. Without a cache it needs all of them, however many: the first one
// always fits.
int64_t Engine::rows_of(const Sequence& sequence, int64_t rows) const {
    if (cache_) return std::min({sequence.remaining(), options_.prefill_chunk, std::max<int64_t>(rows, 0)});
    return rows == options_.max_batch_rows || sequence.length() <= rows ? sequence.length() : 0;
}

// Pages for `rows` more tokens: first free ones, then those of finished sequences, then those of the youngest sequence. False
// when there are none, or when `sequence` was the youngest.
bool Engine::make_room(Sequence& sequence, int64_t rows, bool may_preempt) {
    if (!cache_) return true;
    while (!sequence.cache->reserve(rows)) {
        if (!parked_.empty()) {
            parked_.erase(parked_.begin());
            continue;
        }
        if (!may_preempt) {
            check(!running_.empty(), "Engine: a sequence that was admitted must fit into an empty cache");
            return false;
        }
        const bool itself = running_.back().get() == &sequence;
        preempt_youngest();
        if (itself) return false;
    }
    return true;
}

void Engine::preempt_youngest() {
    check(running_.size() > 1, "Engine: a sequence alone must fit into the cache");
    ++counters_.preemptions;
    Sequence& sequence = *running_.back();
    sequence.cache.reset();
    sequence.rows = 0;
    waiting_.insert(waiting_.begin(), std::move(running_.back()));
    running_.pop_back();
}

// Takes over the pages of the finished sequence that begins most like this one. At least one token is left to compute: it gives
// the logits.
void Engine::reuse_parked(Sequence& sequence) {
    const auto limit = sequence.tokens.size() - 1;
    const auto shared = [&](const Sequence& other) {
        const auto [end, unused] =
            std::mismatch(sequence.tokens.begin(), sequence.tokens.end() - 1, other.tokens.begin(), other.tokens.end());
        return end - sequence.tokens.begin();
    };
    const auto best = std::ranges::max_element(parked_, {}, [&](const auto& other) { return shared(*other); });
    if (limit == 0 || best == parked_.end() || shared(**best) == 0) return;
    const int64_t length = shared(**best);
    *sequence.cache = std::move(*(*best)->cache);
    sequence.cache->rollback(length);
    counters_.reused_tokens += length;
    parked_.erase(best);
}

}  // namespace fathom
