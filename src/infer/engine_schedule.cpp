// Who runs in a step, and whose pages make room.
#include <algorithm>
#include <utility>

#include "infer/engine.h"
#include "nn/expert_source.h"

namespace fathom {

// Sets `rows` of every sequence that takes part. Decoding sequences come first, so that a long prompt does not hold them up.
void Engine::schedule() {
    const int64_t preempted = counters_.preemptions;
    drop_drafts(options_.max_batch_rows);
    rows_for_prompts_ = schedule_running(options_.max_batch_rows, true);
    const int64_t rows = schedule_running(rows_for_prompts_, false);
    if (counters_.preemptions == preempted) admit(rows);
}

// Everybody's next token comes before anybody's guess.
void Engine::drop_drafts(int64_t rows) {
    int64_t spare = rows;
    for (const auto& sequence : running_) spare -= sequence->remaining() == 1 ? 1 : 0;
    for (const auto& sequence : running_) {
        if (std::ssize(sequence->drafts) > spare) sequence->drafts.clear();
        spare -= std::ssize(sequence->drafts);
    }
}

// Returns how many rows of the batch are left.
int64_t Engine::schedule_running(int64_t rows, bool decoding) {
    for (size_t i = 0; i < running_.size(); ++i) {
        Sequence& sequence = *running_[i];
        int64_t count = rows_of(sequence, rows);
        if (sequence.rows > 0 || count == 0 || (cache_ && (sequence.remaining() == 1) != decoding)) continue;
        if (!sequence.drafts.empty() && !sequence.cache->reserve(count)) {  // nobody makes room for a guess
            sequence.drafts.clear();
            count = rows_of(sequence, rows);
        }
        if (!make_room(sequence, count, true)) break;  // it was the youngest and gave way itself
        sequence.rows = count;
        rows -= count;
    }
    return rows;
}

void Engine::admit(int64_t rows) {
    while (rows > 0 && !waiting_.empty() && std::ssize(running_) < options_.max_sequences) {
        Sequence& sequence = *waiting_.front();
        begin(sequence);
        const int64_t count = rows_of(sequence, rows);
        if (count == 0 || !make_room(sequence, count, false)) {
            sequence.cache.reset();  // those who wait hold no pages
            return;
        }
        if (!std::exchange(sequence.begun, true)) admitted(sequence);
        sequence.rows = count;
        rows -= count;
        insert(running_, std::move(waiting_.front()));
        waiting_.erase(waiting_.begin());
    }
}

// For the first time.
void Engine::admitted(Sequence& sequence) {
    sequence.reused = sequence.past();
    counters_.reused_tokens += sequence.reused;
    if (options_.experts == nullptr) return;
    const auto prompt = std::span<const int32_t>(sequence.request.prompt);
    const size_t page = std::min(prompt.size(), static_cast<size_t>(options_.block_size));
    sequence.opening = PrefixHash{sequence.request.cache_salt, 0}.extended(prompt.first(page)).low;
    options_.experts->expect(sequence.opening);
}

// Looks for what is in the cache already. At least one token is left to compute: it gives the logits.
void Engine::begin(Sequence& sequence) {
    if (!cache_ || sequence.cache) return;
    sequence.cache.emplace(*cache_, sequence.request.cache_salt);
    // A token whose log-probability is wanted must be computed, unless that was before a preemption.
    const int64_t scored = std::ssize(sequence.prompt);
    const bool score = sequence.request.prompt_logprobs && !sequence.told && scored < sequence.prompt_length() - 1;
    (void)sequence.cache->reuse(
        std::span(sequence.tokens).first(score ? static_cast<size_t>(scored) : sequence.tokens.size() - 1));
}

// Rows the sequence gets when the batch has room for `rows`. A prompt's piece of less than a page waits for the next batch if
// this one has others to read. Without a cache it needs all of them, however many: the first one always fits.
int64_t Engine::rows_of(const Sequence& sequence, int64_t rows) const {
    if (cache_) {
        const int64_t remaining = sequence.remaining(), count = std::min({remaining + std::ssize(sequence.drafts),
                                                                          options_.prefill_chunk, std::max<int64_t>(rows, 0)});
        const bool scrap = count < remaining && count < std::min(options_.block_size, options_.prefill_chunk);
        return scrap && rows < rows_for_prompts_ ? 0 : count;
    }
    return rows == options_.max_batch_rows || sequence.length() <= rows ? sequence.length() : 0;
}

// Pages for `rows` more tokens: free ones, then those of the last sequence. False when there are none, or when `sequence` was
// the last.
bool Engine::make_room(Sequence& sequence, int64_t rows, bool may_preempt) {
    if (!cache_) return true;
    while (!sequence.cache->reserve(rows)) {
        if (!may_preempt) {
            check(!running_.empty(), "Engine: a sequence that was admitted must fit into an empty cache");
            return false;
        }
        const bool itself = running_.back().get() == &sequence;
        preempt_last();
        if (itself) return false;
    }
    return true;
}

void Engine::preempt_last() {
    check(running_.size() > 1, "Engine: a sequence alone must fit into the cache");
    ++counters_.preemptions;
    Sequence& sequence = *running_.back();
    sequence.cache.reset();
    sequence.drafts.clear();
    sequence.rows = 0;
    insert(waiting_, std::move(running_.back()));
    running_.pop_back();
}

}  // namespace fathom
