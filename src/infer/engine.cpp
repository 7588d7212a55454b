#include "infer/engine.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <utility>

#include "ops/step_recorder.h"

namespace fathom {
AttentionForm cheaper_form(const ModelConfig& config, int64_t queries, int64_t past) {
    if (!config.mla()) return AttentionForm::kExpanded;
    const auto n = static_cast<double>(queries), keys = static_cast<double>(past) + n;
    const auto c = static_cast<double>(config.kv_lora_rank), d_r = static_cast<double>(config.qk_rope_head_dim),
               d_n = static_cast<double>(config.qk_nope_head_dim), d_v = static_cast<double>(config.v_head_dim);
    const double pairs = n * static_cast<double>(past) + n * (n + 1) / 2;
    const double expanded = pairs * (d_n + d_r + d_v) + keys * c * (d_n + d_v);
    const double absorbed = pairs * (2 * c + d_r) + n * c * (d_n + d_v);
    return absorbed <= expanded ? AttentionForm::kAbsorbed : AttentionForm::kExpanded;
}

Engine::Engine(const DeepSeek& model, Ops& ops, const EngineOptions& options)
    : model_(model),
      ops_(ops),
      options_(options),
      scratch_("scratch", [&ops](int64_t bytes) { return ops.allocate(bytes); }),
      saved_("saved", [&ops](int64_t bytes) { return ops.allocate(bytes); }) {
    check(ops.precise_dtype() == DType::kF32, "Engine: logits are read back as f32");
    check(options_.max_batch_rows > 0 && options_.prefill_chunk > 0 && options_.max_sequences > 0,
          "Engine: batch rows, prefill chunk and sequences must be positive");
    if (options_.draft_tokens > model.config().num_nextn_predict_layers) {
        throw Error(ErrorKind::kUsage,
                    fmt::format("{} tokens were to be guessed ahead; the model has {} modules that predict further tokens "
                                "(num_nextn_predict_layers), and each guesses one",
                                options_.draft_tokens, model.config().num_nextn_predict_layers));
    }
    if (options_.draft_tokens > 0 && !options_.use_cache) {
        throw Error(ErrorKind::kUsage, "guessing tokens ahead (--speculative-config) needs the cache");
    }
    if (options_.vocab_limit <= 0) options_.vocab_limit = model.config().vocab_size;
    if (options_.use_cache) {
        cache_.emplace(ops, model.cache_states(), options_.cache_tokens, options_.block_size, options_.cache_type);
    }
}

int64_t Engine::max_length() const {
    int64_t positions = model_.config().max_position_embeddings;
    if (options_.max_length > 0) positions = std::min(positions, options_.max_length);
    return cache_ ? std::min(positions, cache_->capacity()) : positions;
}

void Engine::validate(const Request& request) const {
    request.sampling.validate();
    const auto length = static_cast<int64_t>(request.prompt.size());
    const ModelConfig& config = model_.config();
    if (length == 0) throw Error(ErrorKind::kInput, "the prompt is empty: a model needs at least one token to go on from");
    if (length > config.max_position_embeddings) {
        throw Error(ErrorKind::kInput,
                    fmt::format("the prompt has {} tokens, the model reads at most {} (max_position_embeddings): shorten it",
                                length, config.max_position_embeddings));
    }
    if (length > max_length()) {
        throw Error(ErrorKind::kInput,
                    fmt::format("the prompt has {} tokens, the cache holds {}: shorten it or give the cache more room", length,
                                max_length()));
    }
    for (const int32_t token : request.prompt) {
        if (token >= 0 && token < config.vocab_size) continue;
        throw Error(ErrorKind::kInput, fmt::format("the prompt holds token {}, the model's vocabulary has ids 0 to {}", token,
                                                   config.vocab_size - 1));
    }
    check(request.max_new_tokens >= 0, "Engine::validate: max_new_tokens must not be negative");
}

int64_t Engine::add(Request request) {
    validate(request);
    auto sequence = std::make_unique<Sequence>();
    sequence->id = next_id_++;
    sequence->tokens = request.prompt;
    sequence->request = std::move(request);
    insert(waiting_, std::move(sequence));
    return next_id_ - 1;
}

void Engine::insert(Sequences& sequences, std::unique_ptr<Sequence> sequence) {
    const auto rank = [](const std::unique_ptr<Sequence>& s) { return std::pair(s->request.priority, s->id); };
    sequences.insert(std::ranges::upper_bound(sequences, rank(sequence), {}, rank), std::move(sequence));
}

void Engine::cancel(int64_t request) {
    std::erase_if(waiting_, [&](const auto& sequence) { return sequence->id == request; });
    std::erase_if(running_, [&](const auto& sequence) { return sequence->id == request; });
}

void Engine::set_batch_limits(int64_t max_batch_rows, int64_t prefill_chunk, int64_t max_sequences) {
    check(max_batch_rows > 0 && prefill_chunk > 0 && max_sequences > 0, "Engine::set_batch_limits: limits must be positive");
    options_.max_sequences = max_sequences;
    options_.max_batch_rows = max_batch_rows;
    options_.prefill_chunk = prefill_chunk;
}

void Engine::forget_prefixes() {
    if (cache_) cache_->forget();
}

Engine::Load Engine::load() const {
    Load load{.running = std::ssize(running_), .waiting = std::ssize(waiting_)};
    for (const Sequences* sequences : {&running_, &waiting_}) {
        for (const auto& sequence : *sequences) {
            const bool decoding = sequence->told && sequence->remaining() == 1;
            load.decoding += decoding ? 1 : 0;
            load.unread_tokens += decoding ? 0 : sequence->remaining();
        }
    }
    if (!cache_) return load;
    load.blocks = cache_->blocks();
    load.used_blocks = cache_->blocks() - cache_->free_blocks();
    load.known_blocks = cache_->listed_blocks();
    return load;
}

std::vector<TokenEvent> Engine::step() {
    schedule();
    const std::vector<Sequence*> batch = next_batch();
    if (batch.empty()) return {};
    const ArenaScope scratch(scratch_), saved(saved_);
    Context cx{ops_, scratch_, saved_, options_.cache_type, options_.deterministic, options_.experts};
    const Batch built = build(cx, batch);
    Tensor hidden;  // [rows, hidden]; absent where the batch's answer is all that is wanted
    std::vector<TokenEvent> events = sample_all(cx, built, batch, hidden);
    ++counters_.steps;
    if (options_.draft_tokens > 0) draft(cx, hidden, batch);
    for (Sequence* sequence : batch) {
        if (sequence->cache) {
            sequence->cache->commit(std::span(sequence->tokens)
                                        .subspan(static_cast<size_t>(sequence->past()), static_cast<size_t>(sequence->rows)));
        }
        sequence->rows = 0;
    }
    // What they computed stays in the cache for those who begin alike.
    std::erase_if(running_, [](const auto& sequence) { return sequence->done; });
    return events;
}

// Those that were given rows, expanded forms first.
std::vector<Engine::Sequence*> Engine::next_batch() {
    std::vector<Sequence*> batch;
    for (const auto& sequence : running_) {
        if (sequence->rows == 0) continue;
        sequence->form = form_of(*sequence);
        batch.push_back(sequence.get());
    }
    std::ranges::stable_partition(batch, [](const Sequence* s) { return s->form == AttentionForm::kExpanded; });
    int64_t row = 0;
    for (Sequence* sequence : batch) sequence->first_row = std::exchange(row, row + sequence->rows);
    return batch;
}

// A row with drafts behind it is computed as it would be without them, so that they change no rounding.
AttentionForm Engine::form_of(const Sequence& sequence) const {
    if (!model_.config().mla()) return AttentionForm::kExpanded;
    if (options_.deterministic) return AttentionForm::kAbsorbed;
    return cheaper_form(model_.config(), sequence.rows - sequence.checked(), sequence.past());
}

// The rows of all sequences, drafts included. Counts them.
Batch Engine::build(Context& cx, std::span<Sequence* const> batch) {
    std::vector<int32_t> tokens;
    for (const Sequence* s : batch) {
        const auto begin = s->tokens.begin() + s->past();
        tokens.insert(tokens.end(), begin, begin + (s->rows - s->checked()));
        tokens.insert(tokens.end(), s->drafts.begin(), s->drafts.begin() + s->checked());
        counters_.rows += s->rows;
        counters_.prompt_tokens += std::clamp<int64_t>(s->prompt_length() - s->past(), 0, s->rows);
    }
    std::vector<SequenceChunk> chunks;
    for (const Sequence* s : batch) {
        const auto rows = std::span(tokens).subspan(static_cast<size_t>(s->first_row), static_cast<size_t>(s->rows));
        chunks.push_back({rows, s->past(), s->form, s->cache ? s->cache->block_table() : std::span<const int32_t>()});
    }
    return make_batch(cx, chunks, cache_ ? cache_->block_size() : 0, false);
}

// After the final norm [rows, hidden].
Tensor Engine::forward(Context& cx, Batch built, std::span<Sequence* const> batch) {
    std::vector<Routing> routing(static_cast<size_t>(model_.config().num_hidden_layers));
    if (options_.on_routing) built.record = &routing;
    const Tensor hidden = model_.forward(cx, built, cache_ ? &cache_->view() : nullptr, nullptr);
    if (options_.on_routing) {
        std::vector<RequestRows> whose;
        for (const Sequence* s : batch) whose.push_back({s->id, s->past(), s->rows});
        options_.on_routing(routing, whose);
    }
    return hidden;
}

// [rows, vocab] of some rows of `hidden`.
std::vector<float> Engine::read_logits(Context& cx, const Tensor& hidden, std::span<const int32_t> rows) {
    const ArenaScope scratch(scratch_);
    const Tensor last = cx.empty({std::ssize(rows), hidden.dim(1)});
    ops_.gather_rows(last, hidden, cx.ints(rows));
    return read_back(model_.logits(cx, last));
}

std::vector<float> Engine::read_back(const Tensor& logits) {
    std::vector<float> host(static_cast<size_t>(logits.size()));
    ops_.read_back(host.data(), logits);
    return host;
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
    if (wants_best_only(batch, sampled)) {
        answers = read_best(cx, built, rows);
    } else {
        hidden = forward(cx, built, batch);
        score_prompts(cx, hidden, batch);
        if (!sampled.empty()) answers.logits = read_logits(cx, hidden, rows);
    }
    std::vector<TokenEvent> events;
    size_t answer = 0;
    for (Sequence* sequence : sampled) {
        const int64_t count = sequence->checked() + 1;
        sample_rows(*sequence, answers, answer, events);
        answer += static_cast<size_t>(count);
    }
    return events;
}

// The next token, and one more behind every draft that came true. Rows behind a draft that did not are taken off the sequence:
// its cache never learns of them.
void Engine::sample_rows(Sequence& sequence, const Answers& answers, size_t first, std::vector<TokenEvent>& events) {
    const std::vector<int32_t> drafts = std::exchange(sequence.drafts, {});
    const int64_t checked = sequence.checked();
    sequence.rows -= checked;
    counters_.draft_steps += checked > 0 ? 1 : 0;
    for (size_t row = 0;; ++row) {
        TokenEvent event = next_event(sequence, answers, first + row);
        sequence.done = event.finish.has_value();
        const int64_t compared = !sequence.done && static_cast<int64_t>(row) < checked ? 1 : 0,
                      right = compared > 0 && event.token == drafts[row] ? 1 : 0;
        counters_.drafted += compared, counters_.accepted += right;
        event.drafted = sequence.drafted += compared;
        event.accepted = sequence.accepted += right;
        events.push_back(std::move(event));
        if (right == 0) return;
        ++sequence.rows;
    }
}

// Whether a device that can find the largest logit itself need not hand out the others.
bool Engine::wants_best_only(const Sequence& sequence) const {
    const Request& request = sequence.request;
    const SamplingParams& s = request.sampling;
    const bool penalties = s.repetition_penalty != 1 || s.frequency_penalty != 0 || s.presence_penalty != 0;
    return dynamic_cast<StepRecorder*>(&ops_) != nullptr && s.temperature == 0 && !penalties && s.logit_bias.empty() &&
           request.top_logprobs < 0 && !request.on_logits && request.max_new_tokens > 0 && mask_of(sequence).empty();
}

bool Engine::wants_best_only(std::span<Sequence* const> batch, std::span<Sequence* const> sampled) const {
    const bool scored = std::ranges::any_of(batch, [](const Sequence* s) { return s->request.prompt_logprobs; });
    return !options_.on_routing && options_.draft_tokens == 0 && !scored && !sampled.empty() &&
           std::ranges::all_of(sampled, [&](const Sequence* s) { return wants_best_only(*s); });
}

// The whole step in the device's hands; only a token and its log-probability per sequence come back. Steps that only decode are
// alike but for what lies in the memory they read, so they are recorded.
Engine::Answers Engine::read_best(Context& cx, const Batch& batch, std::span<const int32_t> last_rows) {
    auto& recorder = dynamic_cast<StepRecorder&>(ops_);
    const auto n = static_cast<int64_t>(last_rows.size());
    const Tensor rows = cx.ints(last_rows), index = cx.empty_ints({n}), logprob = cx.empty_precise({n}),
                 all_logits = cx.empty_precise({n, model_.config().vocab_size});
    const auto forward = [&] {
        const ArenaScope scratch(scratch_);
        const Tensor hidden = model_.forward(cx, batch, cache_ ? &cache_->view() : nullptr, nullptr);
        const Tensor last = cx.empty({n, hidden.dim(1)});
        ops_.gather_rows(last, hidden, rows);
        ops_.copy(all_logits, model_.logits(cx, last));
        recorder.argmax(index, all_logits.slice(1, 0, options_.vocab_limit));
        ops_.token_logprob(logprob, {}, all_logits, index, {}, 1);
    };
    const Tensor& table = batch.absorbed.spans.block_table;
    if (cache_ && batch.expanded.rows == 0 && batch.rows == n && batch.absorbed.spans.max_q == 1) {
        const auto address = [](const void* p) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(p)); };
        recorder.repeat(std::array{address(this), address(&model_), address(&cache_->view()), n, table.dim(1),
                                   address(batch.tokens.data), address(index.data), int64_t{options_.deterministic}},
                        forward);
    } else {
        forward();
    }
    std::vector<int32_t> tokens(last_rows.size());
    std::vector<float> logprobs(last_rows.size());
    ops_.read_back(tokens.data(), index);
    ops_.read_back(logprobs.data(), logprob);
    Answers answers;
    for (size_t i = 0; i < tokens.size(); ++i) answers.best.push_back({tokens[i], logprobs[i]});
    if (std::ranges::find(tokens, -1) == tokens.end()) return answers;
    answers.best.clear();  // numbers that are none: the sampler says what is wrong with which request
    answers.logits.resize(static_cast<size_t>(all_logits.size()));
    ops_.read_back(answers.logits.data(), all_logits);
    return answers;
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
            const std::vector<float> host = read_back(logits);
            for (int64_t i = 0; i < count; ++i) {
                s->prompt.push_back(token_logprobs(std::span(host).subspan(static_cast<size_t>(i) * vocab, vocab),
                                                   s->tokens[static_cast<size_t>(past + row + i + 1)],
                                                   std::max<int64_t>(s->request.top_logprobs, 0)));
            }
        }
        first_row += rows;
    }
}

// A request whose logits are broken or whose rules leave nothing to say fails alone.
TokenEvent Engine::next_event(Sequence& sequence, const Answers& answers, size_t index) {
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

void Engine::sample_next(Sequence& sequence, const Answers& answers, size_t index, TokenEvent& event) {
    const Request& request = sequence.request;
    const auto vocab = static_cast<size_t>(model_.config().vocab_size);
    const auto logits =
        answers.logits.empty() ? std::span<const float>() : std::span(answers.logits).subspan(index * vocab, vocab);
    if (request.on_logits) request.on_logits(logits);
    if (request.max_new_tokens == 0) {
        event.finish = FinishReason::kLength;
        return;
    }
    const int64_t answered = sequence.length() - sequence.prompt_length();
    const Sample next = !answers.best.empty()
                            ? answers.best[index]
                            : sample(logits, request.sampling, {sequence.tokens, sequence.prompt_length()}, request.stream,
                                     static_cast<uint64_t>(answered), options_.vocab_limit, mask_of(sequence));
    sequence.tokens.push_back(next.token);
    event.token = next.token;
    event.logprob = next.logprob;
    if (request.top_logprobs >= 0) event.top = token_logprobs(logits, next.token, request.top_logprobs).top;
    if (request.constraint) request.constraint->accept(next.token);
    if (std::ranges::find(request.stop_ids, next.token) != request.stop_ids.end()) {
        event.finish = FinishReason::kStop;
    } else if (answered + 1 >= request.max_new_tokens || sequence.length() > max_length()) {
        event.finish = FinishReason::kLength;  // the last token need not be read, so it may stand one behind the end
    }
}

// Empty when everything is allowed.
TokenMask Engine::mask_of(const Sequence& sequence) const {
    const Request& request = sequence.request;
    const auto answer = std::span(sequence.tokens).subspan(request.prompt.size());
    const bool too_short = std::ssize(answer) < request.min_new_tokens;
    if (!too_short && request.bad_words.empty() && request.allowed.empty() && !request.constraint) return {};
    TokenMask mask =
        request.constraint ? request.constraint->allowed(options_.vocab_limit) : TokenMask(options_.vocab_limit, true);
    if (!request.allowed.empty()) mask.intersect(request.allowed);
    if (too_short) {
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
