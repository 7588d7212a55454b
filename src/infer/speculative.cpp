// Speculative decoding with the model's own multi-token prediction modules (DeepSeek-V3 2.2 and 5.4.3).
//
// Module k sees the state of token i one depth earlier and token i + k + 1, and says what token i + k + 2 may be. That is drawn
// with the very numbers that will choose the token itself: the same sampling values, the same history, the same random number.
// The next batch computes the model's own logits behind each draft. The token is sampled from them as always, and the rows
// behind a draft count only if it came true.
//
// This is rejection sampling (Leviathan et al. 2023) with a proposal that puts all its weight on one token d: d is accepted
// with probability min(1, p(d) / 1) and else the token is drawn from p without d. Drawing x from p and comparing it with d does
// just that. So a request's tokens are a function of the model's logits and the request's random numbers, with drafts and
// without: the distribution is the model's, under one arithmetic (docs/decisions/001) the tokens are even the same. A draft
// drawn with another random number would be right only as often as two independent draws agree.
#include <algorithm>
#include <utility>

#include "infer/engine.h"

namespace fathom {

// No more than the answer, the positions and the cache have room for behind the next token.
int64_t Engine::useful_drafts(const Sequence& sequence) const {
    const int64_t answered = sequence.length() - sequence.prompt_length();
    return std::min({options_.draft_tokens, sequence.request.max_new_tokens - answered - 1, max_length() - sequence.length()});
}

// Runs the modules over the rows that stand, hidden [rows of the batch, hidden_size], and keeps what they expect next. The
// modules' states go into the cache with the model's: same pages, same slots. A sequence that is done leaves its last rows
// without; whoever takes these pages over drafts a little worse there.
void Engine::draft(Context& cx, const Tensor& hidden, std::span<Sequence* const> batch) {
    std::vector<Sequence*> going, drafting;
    std::vector<int32_t> rows, last_rows;  // of the batch; of `rows`, of those who draft
    for (Sequence* s : batch) {
        if (s->done) continue;
        going.push_back(s);
        for (int64_t i = 0; i < s->rows; ++i) rows.push_back(static_cast<int32_t>(s->first_row + i));
        if (s->past() + s->rows + 1 < s->length() || useful_drafts(*s) <= 0) continue;
        drafting.push_back(s);
        last_rows.push_back(static_cast<int32_t>(rows.size()) - 1);
    }
    if (going.empty()) return;
    const ArenaScope scratch(scratch_);
    std::vector<int32_t> ahead(rows.size());
    // The tokens `depth` + 1 behind every row, drafts included; where nothing is known yet, any will do.
    const auto look_ahead = [&](int64_t depth) {
        size_t row = 0;
        for (const Sequence* s : going) {
            for (int64_t i = s->past() + depth + 1; i < s->past() + depth + 1 + s->rows; ++i) {
                const int64_t draft = std::min(i - s->length(), std::ssize(s->drafts) - 1);
                ahead[row++] = i < s->length() ? s->tokens[static_cast<size_t>(i)]
                               : draft >= 0    ? s->drafts[static_cast<size_t>(draft)]
                                               : s->tokens.back();
            }
        }
    };
    look_ahead(0);
    std::vector<SequenceChunk> chunks;
    auto left = std::span<const int32_t>(ahead);
    for (const Sequence* s : going) {
        chunks.push_back({left.first(static_cast<size_t>(s->rows)), s->past(), s->form, s->cache->block_table()});
        left = left.subspan(static_cast<size_t>(s->rows));
    }
    const Batch built = make_batch(cx, chunks, cache_->block_size(), false);
    Tensor state = cx.empty({std::ssize(rows), hidden.dim(1)});
    ops_.gather_rows(state, hidden, cx.ints(rows));
    for (int64_t depth = 0; depth < options_.draft_tokens; ++depth) {
        if (depth > 0) look_ahead(depth);
        state = model_.mtp_forward(cx, depth, state, cx.ints(ahead), built, &cache_->view(), nullptr);
        draft_next(cx, depth, state, drafting, last_rows);
    }
}

// One more draft for those in `drafting` that want it and have all before it. y [rows, hidden_size]: module `depth`'s state.
void Engine::draft_next(Context& cx, int64_t depth, const Tensor& y, std::span<Sequence* const> drafting,
                        std::span<const int32_t> last_rows) {
    std::vector<Sequence*> wanting;
    std::vector<int32_t> rows;
    for (size_t i = 0; i < drafting.size(); ++i) {
        if (std::ssize(drafting[i]->drafts) != depth || useful_drafts(*drafting[i]) <= depth) continue;
        wanting.push_back(drafting[i]);
        rows.push_back(last_rows[i]);
    }
    if (wanting.empty()) return;
    const ArenaScope scratch(scratch_);
    const Tensor last = cx.empty({std::ssize(rows), y.dim(1)});
    ops_.gather_rows(last, y, cx.ints(rows));
    const Tensor logits = model_.mtp_logits(cx, depth, last);
    const std::span<const float> host = read_back(logits);
    const auto vocab = static_cast<size_t>(logits.dim(1));
    for (size_t i = 0; i < wanting.size(); ++i) add_draft(*wanting[i], host.subspan(i * vocab, vocab));
}

// A module whose logits are broken has nothing to say; the answer goes on without. Neither is there anything to gain behind a
// token that ends it.
void Engine::add_draft(Sequence& sequence, std::span<const float> logits) const {
    const Request& request = sequence.request;
    std::vector<int32_t> joined;
    std::span<const int32_t> said = sequence.tokens;
    if (!sequence.drafts.empty()) {
        joined = sequence.tokens;
        joined.insert(joined.end(), sequence.drafts.begin(), sequence.drafts.end());
        said = joined;
    }
    const int64_t answered = std::ssize(said) - sequence.prompt_length();
    try {
        // Rules know what was said, not what may be said: only the first draft can be held to all of them.
        const TokenMask mask = sequence.drafts.empty() ? mask_of(sequence) : request.allowed;
        const int32_t next = sample(logits, request.sampling, {said, sequence.prompt_length()}, request.stream,
                                    static_cast<uint64_t>(answered), options_.vocab_limit, mask);
        if (std::ranges::find(request.stop_ids, next) == request.stop_ids.end()) sequence.drafts.push_back(next);
    } catch (const Error&) {
        return;
    }
}

}  // namespace fathom
