#include "infer/engine.h"

#include <fmt/format.h>
#include <algorithm>
#include <utility>

#include "nn/expert_source.h"
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
    if (const int64_t all = model.config().num_experts_per_tok;
        options.overload_experts > 0 && options.overload_experts >= all) {
        throw Error(ErrorKind::kUsage, fmt::format("{} experts were to read each token under overload; the model's tokens are "
                                                   "read by {}{}",
                                                   options.overload_experts, all, all > 0 ? ": give fewer" : ", it is dense"));
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

std::vector<TokenEvent> Engine::step(const std::function<void()>& meanwhile) {
    meanwhile_ = meanwhile;
    if (dynamic_cast<StepRecorder*>(&ops_) == nullptr) before_waiting();
    std::vector<TokenEvent> events = run_step();
    before_waiting();
    return events;
}

// The device has been told what to do.
void Engine::before_waiting() {
    if (const auto meanwhile = std::exchange(meanwhile_, {})) meanwhile();
}

std::vector<TokenEvent> Engine::run_step() {
    schedule();
    experts_per_token_ = waiting_.empty() ? 0 : options_.overload_experts;
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

// The rows of all sequences, drafts included, which it counts, and some once more.
Batch Engine::build(Context& cx, std::span<Sequence* const> batch) {
    std::vector<int32_t> tokens;
    for (const Sequence* s : batch) {
        const auto begin = s->tokens.begin() + s->past();
        tokens.insert(tokens.end(), begin, begin + (s->rows - s->checked()));
        tokens.insert(tokens.end(), s->drafts.begin(), s->drafts.begin() + s->checked());
        counters_.rows += s->rows;
        counters_.prompt_tokens += std::clamp<int64_t>(s->prompt_length() - s->past(), 0, s->rows);
    }
    if (experts_per_token_ > 0) note_fewer_experts(batch);
    std::vector<SequenceChunk> chunks;
    for (const Sequence* s : batch) {
        const auto rows = std::span(tokens).subspan(static_cast<size_t>(s->first_row), static_cast<size_t>(s->rows));
        chunks.push_back({rows, s->past(), s->form, s->cache ? s->cache->block_table() : std::span<const int32_t>()});
    }
    chunks.insert(chunks.end(), static_cast<size_t>(padding(batch)), SequenceChunk(chunks.back()));
    Batch built = make_batch(cx, chunks, cache_ ? cache_->block_size() : 0, false);
    built.experts_per_token = experts_per_token_;
    return built;
}

// What fewer experts say is theirs alone: nobody finds it in the cache.
void Engine::note_fewer_experts(std::span<Sequence* const> batch) {
    ++counters_.reduced_steps;
    for (Sequence* s : batch) {
        counters_.reduced_rows += s->rows;
        s->reduced += s->rows - s->checked();
        if (s->cache) s->cache->keep_private();
    }
}

// After the final norm [rows, hidden].
Tensor Engine::forward(Context& cx, Batch built, std::span<Sequence* const> batch) {
    std::vector<Routing> routing(static_cast<size_t>(model_.config().num_hidden_layers));
    if (watched() || options_.experts != nullptr) built.record = &routing;
    const Tensor hidden = model_.forward(cx, built, cache_ ? &cache_->view() : nullptr, nullptr);
    if (options_.experts != nullptr) tell_experts(routing, batch);
    if (watched()) {
        std::vector<RequestRows> whose;
        for (const Sequence* s : batch) whose.push_back({s->id, s->past(), s->rows});
        options_.on_routing(routing, whose);
    }
    return hidden;
}

// Whose prompts begin alike are served by the same experts more often than by others.
void Engine::tell_experts(std::span<const Routing> routing, std::span<Sequence* const> batch) {
    for (size_t layer = 0; layer < routing.size(); ++layer) {
        const Tensor& indices = routing[layer].indices;
        if (!indices) continue;  // a dense layer
        for (const Sequence* s : batch) {
            const Tensor own = indices.slice(0, s->first_row, s->first_row + s->rows);
            options_.experts->remember(s->opening, static_cast<int64_t>(layer),
                                       {own.as<int32_t>(), static_cast<size_t>(own.size())});
        }
    }
}

}  // namespace fathom
