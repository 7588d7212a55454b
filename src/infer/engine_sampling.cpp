// What a batch says: which numbers come back from the device, and how they become tokens.
#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "base/threads.h"
#include "infer/engine.h"
#include "ops/step_recorder.h"

namespace fathom {

// [rows, vocab] of some rows of `hidden`.
std::span<const float> Engine::read_logits(Context& cx, const Tensor& hidden, std::span<const int32_t> rows) {
    const ArenaScope scratch(scratch_);
    const Tensor last = cx.empty({std::ssize(rows), hidden.dim(1)});
    ops_.gather_rows(last, hidden, cx.ints(rows));
    return read_back(model_.logits(cx, last));
}

// Valid until the next call: the memory is kept, because new pages for 50 MB of logits take longer than to copy them.
std::span<const float> Engine::read_back(const Tensor& logits) {
    const auto size = static_cast<size_t>(logits.size());
    if (logits_.size() < size) logits_.resize(size);
    before_waiting();
    ops_.read_back(logits_.data(), logits);
    return std::span(logits_).first(size);
}

// Runs the batch; what it says to every sequence whose last token is in it.
std::vector<TokenEvent> Engine::sample_all(Context& cx, const Batch& built, std::span<Sequence* const> batch, Tensor& hidden) {
    std::vector<Sequence*> sampled;
    std::vector<int32_t> rows;
    for (const auto& s : running_) {
        if (s->rows == 0 || !s->samples()) continue;
        sampled.push_back(s.get());
        for (int64_t row = s->rows - s->checked() - 1; row < s->rows; ++row) {
            rows.push_back(static_cast<int32_t>(s->first_row + row));
        }
    }
    Answers answers;
    if (stays_on_device(batch, sampled)) {
        answers = read_tokens(cx, built, batch, sampled, rows);
    } else {
        hidden = forward(cx, built, batch);
        score_prompts(cx, hidden, batch);
        if (!sampled.empty()) answers.logits = read_logits(cx, hidden, rows);
    }
    return sample_sequences(sampled, answers);
}

// Several sequences at a time where nothing but their own state decides: callbacks and grammars, which may share some, come
// afterwards.
std::vector<TokenEvent> Engine::sample_sequences(std::span<Sequence* const> sampled, const Answers& answers) {
    std::vector<size_t> first_answer, alone, together;
    size_t answer = 0;
    for (size_t i = 0; i < sampled.size(); ++i) {
        const Sequence& s = *sampled[i];
        first_answer.push_back(std::exchange(answer, answer + static_cast<size_t>(s.checked()) + 1));
        (s.request.on_logits || s.request.constraint ? alone : together).push_back(i);
        counters_.draft_steps += s.checked() > 0 ? 1 : 0;
        counters_.drafted -= s.drafted, counters_.accepted -= s.accepted;
    }
    std::vector<std::vector<TokenEvent>> said(sampled.size());
    const auto say = [&](size_t i) { said[i] = sample_rows(*sampled[i], answers, first_answer[i]); };
    if (options_.threads != nullptr && answers.tokens.empty()) {
        options_.threads->parallel_for(std::ssize(together), 1, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) say(together[static_cast<size_t>(i)]);
        });
    } else {
        std::ranges::for_each(together, say);
    }
    std::ranges::for_each(alone, say);
    std::vector<TokenEvent> events;
    for (size_t i = 0; i < sampled.size(); ++i) {
        counters_.drafted += sampled[i]->drafted, counters_.accepted += sampled[i]->accepted;
        std::ranges::move(said[i], std::back_inserter(events));
    }
    return events;
}

// The next token, and one more behind every draft that came true. Rows behind a draft that did not are taken off the sequence:
// its cache never learns of them.
std::vector<TokenEvent> Engine::sample_rows(Sequence& sequence, const Answers& answers, size_t first) const {
    std::vector<TokenEvent> events;
    const std::vector<int32_t> drafts = std::exchange(sequence.drafts, {});
    const int64_t checked = sequence.checked();
    sequence.rows -= checked;
    for (size_t row = 0;; ++row) {
        TokenEvent event = next_event(sequence, answers, first + row);
        sequence.done = event.finish.has_value();
        const int64_t compared = !sequence.done && static_cast<int64_t>(row) < checked ? 1 : 0,
                      right = compared > 0 && event.token == drafts[row] ? 1 : 0;
        event.drafted = sequence.drafted += compared;
        event.accepted = sequence.accepted += right;
        event.reduced = sequence.reduced += experts_per_token_ > 0 ? right : 0;
        events.push_back(std::move(event));
        if (right == 0) return events;
        ++sequence.rows;
    }
}

// Whether a device that can sample need not hand out this sequence's logits.
bool Engine::stays_on_device(const Sequence& sequence) const {
    const Request& request = sequence.request;
    return dynamic_cast<StepRecorder*>(&ops_) != nullptr && request.top_logprobs <= 0 && !request.on_logits &&
           request.max_new_tokens > 0;
}

bool Engine::stays_on_device(std::span<Sequence* const> batch, std::span<Sequence* const> sampled) const {
    const bool scored = std::ranges::any_of(batch, [](const Sequence* s) { return s->request.prompt_logprobs; });
    return options_.draft_tokens == 0 && !scored && !sampled.empty() &&
           std::ranges::all_of(sampled, [&](const Sequence* s) { return stays_on_device(*s); });
}

// How often the last row of a step that is recorded is computed once more: requests come and go, and a recording for each of
// their numbers would hardly be made before the next is needed. The repeated row writes what the row itself writes.
int64_t Engine::padding(std::span<Sequence* const> batch) const {
    constexpr int64_t kExact = 8, kMultiple = 8;  // few rows are multiplied by kernels of their own
    const auto decodes = [](const Sequence* s) { return s->rows == 1 && s->samples() && s->form == AttentionForm::kAbsorbed; };
    const int64_t rows = std::ssize(batch);
    if (rows <= kExact || !cache_ || watched() || !std::ranges::all_of(batch, decodes) || !stays_on_device(batch, batch))
        return 0;
    return (rows + kMultiple - 1) / kMultiple * kMultiple - rows;
}

// The whole step in the device's hands; only a token per sequence comes back. Steps that only decode are alike but for what
// lies in the memory they read, and under load so are steps that read as much of a prompt besides: they are recorded, unless
// somebody looks at the experts of this one.
Engine::Answers Engine::read_tokens(Context& cx, const Batch& built, std::span<Sequence* const> batch,
                                    std::span<Sequence* const> sampled, std::span<const int32_t> last_rows) {
    auto& recorder = dynamic_cast<StepRecorder&>(ops_);
    std::vector<int32_t> wanted(last_rows.begin(), last_rows.end());
    int64_t told = 0;  // rows of the sequences; those behind them pad the step
    for (const Sequence* s : batch) told += s->rows;
    for (; told < built.rows; ++told) wanted.push_back(static_cast<int32_t>(told));
    const auto n = std::ssize(wanted);
    const Tensor rows = cx.ints(wanted), index = cx.empty_ints({n}),
                 all_logits = cx.empty_precise({n, model_.config().vocab_size}),
                 known_logits = all_logits.slice(1, 0, options_.vocab_limit);
    const bool best_only = std::ranges::all_of(sampled, [&](const Sequence* s) { return wants_best(*s); });
    const auto ops = [&] {
        const ArenaScope scratch(scratch_);
        const Tensor hidden = forward(cx, built, batch);
        const Tensor last = cx.empty({n, hidden.dim(1)});
        ops_.gather_rows(last, hidden, rows);
        model_.logits_to(cx, all_logits, last);
        if (best_only) recorder.argmax(index, known_logits);
    };
    if (const std::vector<int64_t> key = recording_key(built, index, best_only); !key.empty()) {
        constexpr int64_t kOften = 8;  // prompts' pieces are of many lengths
        recorder.repeat(key, built.expanded.rows == 0 ? 1 : kOften, ops);
    } else {
        ops();
    }
    if (!best_only) choose_tokens(recorder, index, known_logits, sampled);
    before_waiting();
    Answers answers;
    if (std::ranges::any_of(sampled, [](const Sequence* s) { return s->request.top_logprobs == 0; })) {
        const Tensor logprob = cx.empty_precise({n});
        ops_.token_logprob(logprob, {}, all_logits, index, {}, 1);
        answers.logprobs.resize(wanted.size());
        ops_.read_back(answers.logprobs.data(), logprob);
    }
    answers.tokens.resize(wanted.size());
    ops_.read_back(answers.tokens.data(), index);
    if (std::ranges::find(answers.tokens, -1) == answers.tokens.end()) return answers;
    return {read_back(all_logits), {}, {}};  // numbers that are none: the sampler says what is wrong with which request
}

// All that a step's ops depend on but what their memory holds; empty for a step that is not recorded: of prompts alone, which
// keep the device busy as they are told, or with several queries of a sequence in the absorbed form.
std::vector<int64_t> Engine::recording_key(const Batch& built, const Tensor& index, bool best_only) const {
    const SequenceGroup &prompts = built.expanded, &answers = built.absorbed;
    if (!cache_ || watched() || answers.rows == 0 || answers.spans.max_q != 1) return {};
    const auto address = [](const void* p) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(p)); };
    std::vector<int64_t> key{address(this),
                             address(&model_),
                             address(&cache_->view()),
                             address(built.tokens.data),
                             address(index.data),
                             int64_t{options_.deterministic},
                             int64_t{best_only},
                             experts_per_token_,
                             index.dim(0),
                             answers.rows,
                             answers.spans.block_table.dim(1)};
    if (prompts.rows > 0) {
        for (const int64_t length :
             {prompts.rows, prompts.keys, prompts.spans.cu_q.dim(0), prompts.spans.max_q, prompts.spans.max_k})
            key.push_back(length);
    }
    return key;
}

// Tells the device how each sequence's token is drawn, while it still computes the logits.
void Engine::choose_tokens(StepRecorder& recorder, const Tensor& index, const Tensor& logits,
                           std::span<Sequence* const> sampled) const {
    static const SamplingParams kBest{.temperature = 0};
    std::vector<TokenMask> masks;
    masks.reserve(sampled.size());
    std::vector<TokenQuery> queries(static_cast<size_t>(index.size()), TokenQuery{&kBest, {}, 0, 0, {}});  // of rows that pad
    for (size_t i = 0; i < sampled.size(); ++i) {
        const Sequence& s = *sampled[i];
        masks.push_back(mask_of(s));
        queries[i] = {&s.request.sampling,
                      {s.tokens, s.prompt_length()},
                      s.request.stream,
                      static_cast<uint64_t>(s.length() - s.prompt_length()),
                      masks.back().words()};
    }
    recorder.sample(index, logits, queries);
}

// Log-probabilities of the prompts whose requests want them. The head is run over a few rows at a time: the logits of a whole
// chunk would not fit for a large vocabulary.
void Engine::score_prompts(Context& cx, const Tensor& hidden, std::span<Sequence* const> batch) {
    constexpr int64_t kRows = 64;
    const auto vocab = static_cast<size_t>(model_.config().vocab_size);
    int64_t first_row = 0;
    for (Sequence* s : batch) {
        const int64_t past = s->past(), scored = std::ssize(s->prompt), rows = s->rows;
        // The row at position p tells the token at p + 1; what was scored before a preemption is not scored again.
        const int64_t end = std::min(rows, s->prompt_length() - 1 - past);
        for (int64_t row = s->request.prompt_logprobs ? std::max<int64_t>(scored - past, 0) : end; row < end; row += kRows) {
            const ArenaScope scratch(scratch_);
            const int64_t count = std::min(kRows, end - row);
            const Tensor logits =
                model_.logits(cx, hidden.slice(0, first_row + row, first_row + row + count));  // [count, vocab]
            const std::span<const float> host = read_back(logits);
            for (int64_t i = 0; i < count; ++i) {
                s->prompt.push_back(token_logprobs(host.subspan(static_cast<size_t>(i) * vocab, vocab),
                                                   s->tokens[static_cast<size_t>(past + row + i + 1)],
                                                   std::max<int64_t>(s->request.top_logprobs, 0)));
            }
        }
        first_row += rows;
    }
}

// A request whose logits are broken or whose rules leave nothing to say fails alone.
TokenEvent Engine::next_event(Sequence& sequence, const Answers& answers, size_t index) const {
    TokenEvent event;
    event.request = sequence.id;
    if (!sequence.told) {
        sequence.told = true;
        event.reused = sequence.reused;
        event.prompt = std::move(sequence.prompt);
    }
    try {
        sample_next(sequence, answers, index, event);
    } catch (const Error& error) {
        event.finish = FinishReason::kError;
        event.error = error.what();
    }
    return event;
}

void Engine::sample_next(Sequence& sequence, const Answers& answers, size_t index, TokenEvent& event) const {
    const Request& request = sequence.request;
    const auto vocab = static_cast<size_t>(model_.config().vocab_size);
    const auto logits = answers.logits.empty() ? answers.logits : answers.logits.subspan(index * vocab, vocab);
    if (request.on_logits) request.on_logits(logits);
    if (request.max_new_tokens == 0) {
        event.finish = FinishReason::kLength;
        return;
    }
    const int64_t answered = sequence.length() - sequence.prompt_length();
    const int32_t next = !answers.tokens.empty()
                             ? answers.tokens[index]
                             : sample(logits, request.sampling, {sequence.tokens, sequence.prompt_length()}, request.stream,
                                      static_cast<uint64_t>(answered), options_.vocab_limit, mask_of(sequence));
    sequence.tokens.push_back(next);
    event.token = next;
    if (request.top_logprobs == 0 && !answers.logprobs.empty()) {
        event.logprob = answers.logprobs[index];
    } else if (request.top_logprobs >= 0) {
        TokenLogprobs told = token_logprobs(logits, next, request.top_logprobs);
        event.logprob = told.logprob;
        event.top = std::move(told.top);
    }
    if (request.constraint) request.constraint->accept(next);
    if (std::ranges::find(request.stop_ids, next) != request.stop_ids.end()) {
        event.finish = FinishReason::kStop;
    } else if (answered + 1 >= request.max_new_tokens || sequence.length() > max_length()) {
        event.finish = FinishReason::kLength;  // the last token need not be read, so it may stand one behind the end
    }
}

// The most probable token whatever was said, and nothing else about it.
bool Engine::wants_best(const Sequence& sequence) {
    const SamplingParams& sampling = sequence.request.sampling;
    return sampling.temperature == 0 && sampling.as_given() && !restricted(sequence);
}

bool Engine::restricted(const Sequence& sequence) {
    const Request& request = sequence.request;
    return sequence.length() - sequence.prompt_length() < request.min_new_tokens || !request.bad_words.empty() ||
           !request.allowed.empty() || request.constraint;
}

// Empty when everything is allowed.
TokenMask Engine::mask_of(const Sequence& sequence) const {
    const Request& request = sequence.request;
    if (!restricted(sequence)) return {};
    const auto answer = std::span(sequence.tokens).subspan(request.prompt.size());
    TokenMask mask =
        request.constraint ? request.constraint->allowed(options_.vocab_limit) : TokenMask(options_.vocab_limit, true);
    if (!request.allowed.empty()) mask.intersect(request.allowed);
    if (std::ssize(answer) < request.min_new_tokens) {
        for (const int32_t id : request.stop_ids) mask.forbid(id);
    }
    for (const auto& word : request.bad_words) {
        if (word.empty() || word.size() - 1 > answer.size()) continue;
        const auto said = answer.last(word.size() - 1);
        if (std::equal(said.begin(), said.end(), word.begin())) mask.forbid(word.back());
    }
    return mask;
}

}  // namespace fathom
