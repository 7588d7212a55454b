#include "infer/engine.h"

#include <fmt/format.h>
#include <algorithm>
#include <utility>

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
    if (options_.vocab_limit <= 0) options_.vocab_limit = model.config().vocab_size;
    if (options_.use_cache) {
        cache_.emplace(ops, model.cache_states(), options_.cache_tokens, options_.block_size, options_.cache_dtype);
    }
}

int64_t Engine::max_length() const {
    const int64_t positions = model_.config().max_position_embeddings;
    return cache_ ? std::min(positions, cache_->capacity()) : positions;
}

int64_t Engine::add(Request request) {
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
    check(request.max_new_tokens > 0, "Engine::add: max_new_tokens must be positive");
    auto sequence = std::make_unique<Sequence>();
    sequence->id = next_id_++;
    sequence->tokens = request.prompt;
    sequence->request = std::move(request);
    waiting_.push_back(std::move(sequence));
    return next_id_ - 1;
}

void Engine::cancel(int64_t request) {
    std::erase_if(waiting_, [&](const auto& sequence) { return sequence->id == request; });
    retire(request);
}

// A sequence that is done leaves the batch; with a cache, what it computed stays for those who begin alike.
void Engine::retire(int64_t request) {
    const auto found = std::ranges::find_if(running_, [&](const auto& sequence) { return sequence->id == request; });
    if (found == running_.end()) return;
    Sequence& sequence = **found;
    if (sequence.past() > 0) {
        sequence.cache->rollback(sequence.past());  // room that was reserved
        sequence.tokens.resize(static_cast<size_t>(sequence.past()));
        sequence.request = {};
        parked_.push_back(std::move(*found));
    }
    running_.erase(found);
}

std::vector<TokenEvent> Engine::step() {
    schedule();
    std::vector<Sequence*> batch, sampled;
    for (const auto& sequence : running_) {
        if (sequence->rows == 0) continue;
        batch.push_back(sequence.get());
        if (sequence->past() + sequence->rows == sequence->length()) sampled.push_back(sequence.get());
    }
    std::vector<TokenEvent> events;
    if (batch.empty()) return events;
    std::ranges::stable_partition(batch, [&](const Sequence* s) { return form_of(*s) == AttentionForm::kExpanded; });
    const std::vector<float> logits = run(batch, sampled);
    for (Sequence* sequence : batch) {
        counters_.prompt_tokens +=
            std::clamp<int64_t>(static_cast<int64_t>(sequence->request.prompt.size()) - sequence->past(), 0, sequence->rows);
        if (sequence->cache) sequence->cache->commit(sequence->rows);
        sequence->rows = 0;
    }
    const auto vocab = static_cast<size_t>(model_.config().vocab_size);
    for (size_t i = 0; i < sampled.size(); ++i) {
        events.push_back(sample_next(*sampled[i], std::span(logits).subspan(i * vocab, vocab)));
    }
    for (const TokenEvent& event : events) {
        if (event.finish) retire(event.request);
    }
    return events;
}

AttentionForm Engine::form_of(const Sequence& sequence) const {
    if (!model_.config().mla()) return AttentionForm::kExpanded;
    if (options_.deterministic) return AttentionForm::kAbsorbed;
    return cheaper_form(model_.config(), sequence.rows, sequence.past());
}

// Logits [sampled, vocab] after the last row of each sequence in `sampled`.
std::vector<float> Engine::run(std::span<Sequence* const> batch, std::span<Sequence* const> sampled) {
    const ArenaScope scratch(scratch_), saved(saved_);
    Context cx{ops_, scratch_, saved_, options_.cache_dtype, options_.deterministic};
    std::vector<SequenceChunk> chunks;
    std::vector<int32_t> last_rows(sampled.size());
    int32_t rows = 0;
    for (const Sequence* s : batch) {
        const auto tokens =
            std::span<const int32_t>(s->tokens).subspan(static_cast<size_t>(s->past()), static_cast<size_t>(s->rows));
        chunks.push_back({tokens, s->past(), form_of(*s), s->cache ? s->cache->block_table() : std::span<const int32_t>()});
        rows += static_cast<int32_t>(s->rows);
        const auto found = std::ranges::find(sampled, s);
        if (found != sampled.end()) last_rows[static_cast<size_t>(found - sampled.begin())] = rows - 1;
    }
    Batch built = make_batch(cx, chunks, cache_ ? cache_->block_size() : 0, false);
    std::vector<Routing> routing(static_cast<size_t>(model_.config().num_hidden_layers));
    if (options_.on_routing) built.record = &routing;
    const Tensor hidden = model_.forward(cx, built, cache_ ? &cache_->view() : nullptr, nullptr);
    if (options_.on_routing) {
        std::vector<RequestRows> whose;
        for (const Sequence* s : batch) whose.push_back({s->id, s->past(), s->rows});
        options_.on_routing(routing, whose);
    }
    if (sampled.empty()) return {};
    const Tensor last = cx.empty({static_cast<int64_t>(sampled.size()), hidden.dim(1)});
    ops_.gather_rows(last, hidden, cx.ints(last_rows));
    const Tensor logits = model_.logits(cx, last);
    std::vector<float> host(static_cast<size_t>(logits.size()));
    ops_.read_back(host.data(), logits);
    return host;
}

TokenEvent Engine::sample_next(Sequence& sequence, std::span<const float> logits) {
    const Request& request = sequence.request;
    if (request.on_logits) request.on_logits(logits);
    const auto prompt_length = static_cast<int64_t>(request.prompt.size());
    const int64_t answered = sequence.length() - prompt_length;
    const Sample next = sample(logits, request.sampling, {sequence.tokens, prompt_length}, request.stream,
                               static_cast<uint64_t>(answered), options_.vocab_limit);
    sequence.tokens.push_back(next.token);
    TokenEvent event{sequence.id, next.token, next.logprob, std::nullopt};
    if (std::ranges::find(request.stop_ids, next.token) != request.stop_ids.end()) {
        event.finish = FinishReason::kStop;
    } else if (answered + 1 >= request.max_new_tokens || sequence.length() > max_length()) {
        event.finish = FinishReason::kLength;  // the last token need not be read, so it may stand one behind the end
    }
    return event;
}

}  // namespace fathom
