// The engine: many requests at a time through one model, one batch per step.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "infer/paged_cache.h"
#include "infer/sampler.h"
#include "model/deepseek.h"

namespace fathom {

// Consecutive rows of a batch: tokens [position, position + rows) of one request.
struct RequestRows {
    int64_t request = 0, position = 0, rows = 0;
};

struct EngineOptions {
    int64_t cache_tokens = 4096;  // room in the cache, over all sequences
    int64_t block_size = 64;      // tokens per page
    DType cache_dtype = DType::kF32;
    int64_t max_batch_rows = 512;  // of one step: memory and the latency of running requests grow with it
    int64_t prefill_chunk = 512;   // rows of one prompt in one step
    int64_t max_sequences = 64;    // running at a time
    bool deterministic = false;    // batch-invariant (docs/decisions/001): always the absorbed form
    bool use_cache = true;         // false: recompute every sequence from its first token in every step
    int64_t vocab_limit = 0;       // ids from here on only pad the matrix and are never sampled; 0: none
    // Sees the experts of every row of a batch, indexed as the model's layers (absent in dense ones), and whose rows they are,
    // in order. Valid during the call only.
    std::function<void(std::span<const Routing> routing, std::span<const RequestRows> rows)> on_routing;
};

struct Request {
    std::vector<int32_t> prompt;
    SamplingParams sampling;
    uint64_t stream = 0;  // of random numbers under sampling.seed: 0, 1, ... for several answers to one prompt
    int64_t max_new_tokens = 16;
    std::vector<int32_t> stop_ids;
    // Sees each new token's logits [vocab] before anything acts on them. Valid during the call only.
    std::function<void(std::span<const float> logits)> on_logits;
};

enum class FinishReason : uint8_t {
    kStop,    // one of stop_ids
    kLength,  // max_new_tokens, or the context or the cache is full
};

// What a step said to one request.
struct TokenEvent {
    int64_t request = 0;
    int32_t token = 0;  // a stop id too
    float logprob = 0;
    std::optional<FinishReason> finish;  // set with the last token
};

// Continuous batching, first come first served: a step runs one row of every sequence that decodes and chunks of the prompts
// that wait. When the cache is full, the youngest sequence gives up its pages and is computed again later. Finished sequences
// stay in the cache until their room is needed: a request that begins like one of them computes only what is new.
class Engine {
public:
    // All three must outlive the engine.
    Engine(const DeepSeek& model, Ops& ops, const EngineOptions& options);

    // Returns the request's number. Throws Error{kUsage} for bad sampling values, Error{kInput} for a prompt that is empty, has
    // ids outside the vocabulary or is too long.
    int64_t add(Request request);
    void cancel(int64_t request);
    // Runs one batch. Tokens come in the order of the requests. Empty when a step only worked on prompts.
    [[nodiscard]] std::vector<TokenEvent> step();
    [[nodiscard]] bool idle() const { return waiting_.empty() && running_.empty(); }

    // Longest sequence, prompt and answer: what the model's positions and the cache allow.
    [[nodiscard]] int64_t max_length() const;
    // Counted since the engine was built.
    struct Counters {
        int64_t prompt_tokens = 0;  // computed
        int64_t reused_tokens = 0;  // prompt tokens found in the cache
        int64_t preemptions = 0;
    };
    [[nodiscard]] const Counters& counters() const { return counters_; }

private:
    struct Sequence {
        int64_t id = 0;
        Request request;
        std::vector<int32_t> tokens;          // prompt and answer
        std::optional<CachedSequence> cache;  // absent without a cache
        int64_t rows = 0;                     // in the batch being built

        [[nodiscard]] int64_t length() const { return static_cast<int64_t>(tokens.size()); }
        [[nodiscard]] int64_t past() const { return cache ? cache->length() : 0; }
        [[nodiscard]] int64_t remaining() const { return length() - past(); }  // 1 when decoding
    };
    using Sequences = std::vector<std::unique_ptr<Sequence>>;

    const DeepSeek& model_;
    Ops& ops_;
    EngineOptions options_;
    Arena scratch_, saved_;
    std::optional<PagedCache> cache_;
    Sequences waiting_, running_;  // by age, oldest first
    Sequences parked_;             // finished, still in the cache, oldest first
    int64_t next_id_ = 0;
    Counters counters_;

    void schedule();
    int64_t schedule_running(int64_t rows, bool decoding);
    void admit(int64_t rows);
    [[nodiscard]] int64_t rows_of(const Sequence& sequence, int64_t rows) const;
    [[nodiscard]] bool make_room(Sequence& sequence, int64_t rows, bool may_preempt);
    void preempt_youngest();
    void reuse_parked(Sequence& sequence);
    [[nodiscard]] AttentionForm form_of(const Sequence& sequence) const;
    [[nodiscard]] std::vector<float> run(std::span<Sequence* const> batch, std::span<Sequence* const> sampled);
    [[nodiscard]] TokenEvent sample_next(Sequence& sequence, std::span<const float> logits);
    void retire(int64_t request);
};

// The cheaper form of MLA for `queries` new tokens behind `past` cached ones, by multiply-adds (V2 2.1.2; the figures count
// what the forms do not share):
//   expanded  2 (d_qk + d_v) h per query-key pair, and 2 c (d_n + d_v) h per key to project it up
//   absorbed  2 (2 c + d_r)  h per query-key pair, and 2 c (d_n + d_v) h per query to project it down
// V1's attention has the expanded form only.
[[nodiscard]] AttentionForm cheaper_form(const ModelConfig& config, int64_t queries, int64_t past);

}  // namespace fathom
