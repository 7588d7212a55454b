// The engine: many requests at a time through one model, one batch per step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "infer/paged_cache.h"
#include "infer/sampler.h"
#include "model/deepseek.h"

namespace fathom {

class StepRecorder;
class ThreadPool;

// Consecutive rows of a batch: tokens [position, position + rows) of one request.
struct RequestRows {
    int64_t request = 0, position = 0, rows = 0;
};

struct EngineOptions {
    int64_t cache_tokens = 4096;  // room in the cache, over all sequences
    int64_t block_size = 64;      // tokens per page
    CacheType cache_type;
    int64_t max_batch_rows = 512;  // of one step: memory and the latency of running requests grow with it
    int64_t prefill_chunk = 512;   // rows of one prompt in one step
    int64_t max_sequences = 64;    // running at a time
    bool deterministic = false;    // batch-invariant (docs/decisions/001): always the absorbed form
    bool use_cache = true;         // false: recompute every sequence from its first token in every step
    int64_t max_length = 0;        // longest sequence; 0: what the model reads. The cache may allow less
    int64_t vocab_limit = 0;       // ids from here on only pad the matrix and are never sampled; 0: none
    // Tokens guessed ahead of every sequence by the model's MTP modules, one by each, and checked by the next batch
    // (infer/speculative.cpp). Changes the time that tokens take, not the tokens. Needs the cache.
    int64_t draft_tokens = 0;
    // While requests wait that a batch has no room for, its tokens are read by so many of the experts that would be chosen; 0:
    // by all. What fewer experts say is not shared through the cache.
    int64_t overload_experts = 0;
    ExpertSource* experts = nullptr;  // see Context
    ThreadPool* threads = nullptr;    // several answers are sampled at a time; null: one after the other
    // Sees the experts of every row of a batch, indexed as the model's layers (absent in dense ones), and whose rows they are,
    // in order; rows of drafts are among them, and those that did not come true are told again later. Valid during the call
    // only. Who looks makes the device wait, and keeps the step from being a recorded one.
    std::function<void(std::span<const Routing> routing, std::span<const RequestRows> rows)> on_routing;
    int64_t routing_every = 1;  // on_routing sees one batch of so many
};

struct Request {
    std::vector<int32_t> prompt;
    SamplingParams sampling;
    uint64_t stream = 0;          // of random numbers under sampling.seed: 0, 1, ... for several answers to one prompt
    int64_t max_new_tokens = 16;  // 0: only the prompt is read
    int64_t min_new_tokens = 0;   // stop_ids are not sampled before
    std::vector<int32_t> stop_ids;
    int64_t priority = 0;                         // lower ones go first, and are the last to make room
    uint64_t cache_salt = 0;                      // pages are shared with requests of the same salt only
    int64_t top_logprobs = -1;                    // alternatives told with every token; -1: none, nor for the token itself
    bool prompt_logprobs = false;                 // told with the first event, with as many alternatives
    std::vector<std::vector<int32_t>> bad_words;  // sequences of tokens that are never completed
    TokenMask allowed;                            // empty: all
    std::shared_ptr<TokenConstraint> constraint;  // may be absent
    // Sees each new token's logits [vocab] before anything acts on them. Valid during the call only.
    std::function<void(std::span<const float> logits)> on_logits;
};

enum class FinishReason : uint8_t {
    kStop,    // one of stop_ids
    kLength,  // max_new_tokens, or the context or the cache is full
    kError,   // see TokenEvent::error
};

// What a step said to one request.
struct TokenEvent {
    int64_t request = 0;
    int32_t token = -1;                  // a stop id too; -1: none
    float logprob = 0;                   // where top_logprobs wants it
    std::optional<FinishReason> finish;  // set with the last event
    std::vector<Sample> top;             // best first
    std::vector<TokenLogprobs> prompt;   // of the prompt's tokens but the first, in the first event
    std::optional<int64_t> reused;       // prompt tokens that were found in the cache, in the first event
    std::string error;                   // why this request failed (NaN logits, rules that exclude every token)
    int64_t drafted = 0, accepted = 0;   // this request's drafts so far that were checked, and that came true
    int64_t reduced = 0;                 // this request's tokens so far, of prompt and answer, that fewer experts read
};

// Rows of a batch that keep a back end busy: a GPU wants more than a CPU.
[[nodiscard]] inline int64_t usual_batch_rows(const Ops& ops) { return ops.sees_host_memory() ? 512 : 8192; }
// The same where no answers wait for the batch: every piece of a prompt expands the keys of those before it once more.
[[nodiscard]] inline int64_t prompt_batch_rows(const Ops& ops) { return ops.sees_host_memory() ? 1024 : 8192; }

// Continuous batching by priority, then first come first served: a step runs one row of every sequence that decodes and chunks
// of the prompts that wait. When the cache is full, the least important and youngest sequence gives up its pages and is
// computed again later. What was computed stays in the cache until its room is needed: a request that begins like an earlier
// one computes only what is new.
class Engine {
public:
    // All three must outlive the engine. Throws Error{kUsage} for more draft_tokens than the model has MTP modules, or without
    // the cache; for overload_experts that are no fewer than the model's.
    Engine(const DeepSeek& model, Ops& ops, const EngineOptions& options);

    // Throws Error{kUsage} for bad sampling values, Error{kInput} for a prompt that is empty, has ids outside the vocabulary or
    // is too long. From any thread.
    void validate(const Request& request) const;
    // Returns the request's number. Throws what validate throws.
    int64_t add(Request request);
    void cancel(int64_t request);
    // Runs one batch. Tokens come in the order of the requests, and those of one request in theirs: several where drafts came
    // true. Empty when a step only worked on prompts. `meanwhile` is called once, unless the step throws before: while a
    // device works that needs no host for it, else before anything else. It must not call the engine.
    [[nodiscard]] std::vector<TokenEvent> step(const std::function<void()>& meanwhile = {});
    [[nodiscard]] bool idle() const { return waiting_.empty() && running_.empty(); }
    // Between steps: how large the next batches may be, and how many sequences may run. More that run already go on.
    void set_batch_limits(int64_t max_batch_rows, int64_t prefill_chunk, int64_t max_sequences);
    // Forgets what finished requests left in the cache.
    void forget_prefixes();

    // Longest sequence, prompt and answer: what the model's positions and the cache allow. From any thread.
    [[nodiscard]] int64_t max_length() const;
    [[nodiscard]] const EngineOptions& options() const { return options_; }
    // Counted since the engine was built.
    struct Counters {
        int64_t prompt_tokens = 0;  // computed
        int64_t reused_tokens = 0;  // prompt tokens found in the cache
        int64_t preemptions = 0;
        int64_t steps = 0, rows = 0;        // batches, and their rows
        int64_t draft_steps = 0;            // how often drafts of a sequence were checked
        int64_t drafted = 0, accepted = 0;  // drafts that were checked, and that came true
        int64_t reduced_steps = 0;          // batches with fewer experts, see EngineOptions::overload_experts
        int64_t reduced_rows = 0;           // and their rows
    };
    [[nodiscard]] const Counters& counters() const { return counters_; }
    struct Load {
        int64_t running = 0, waiting = 0;
        int64_t decoding = 0;                                   // of the running: their prompts are read
        int64_t unread_tokens = 0;                              // of all others
        int64_t blocks = 0, used_blocks = 0, known_blocks = 0;  // known: can be found by their content
    };
    [[nodiscard]] Load load() const;

private:
    struct Sequence {
        int64_t id = 0;
        Request request;
        std::vector<int32_t> tokens;          // prompt and answer
        std::optional<CachedSequence> cache;  // absent without a cache, and while it waits
        int64_t rows = 0, first_row = 0;      // in the batch being built
        AttentionForm form{};                 // in it
        std::vector<int32_t> drafts;          // guesses of what follows `tokens`
        int64_t drafted = 0, accepted = 0;    // so far
        int64_t reduced = 0;                  // rows with fewer experts so far
        int64_t reused = 0;                   // by its first admission
        uint64_t opening = 0;                 // hash of how its prompt begins
        bool begun = false;                   // has been admitted before
        bool told = false;                    // has had its first event
        bool done = false;                    // has had its last
        std::vector<TokenLogprobs> prompt;    // so far

        [[nodiscard]] int64_t length() const { return static_cast<int64_t>(tokens.size()); }
        [[nodiscard]] int64_t past() const { return cache ? cache->length() : 0; }
        [[nodiscard]] int64_t remaining() const { return length() - past(); }  // 1 when decoding
        [[nodiscard]] int64_t prompt_length() const { return static_cast<int64_t>(request.prompt.size()); }
        // Of the batch being built:
        [[nodiscard]] bool samples() const { return past() + rows >= length(); }
        [[nodiscard]] int64_t checked() const { return std::max<int64_t>(past() + rows - length(), 0); }  // rows of drafts
    };
    using Sequences = std::vector<std::unique_ptr<Sequence>>;

    const DeepSeek& model_;
    Ops& ops_;
    EngineOptions options_;
    Arena scratch_, saved_;
    std::optional<PagedCache> cache_;
    Sequences waiting_, running_;  // most important first, then oldest first
    int64_t next_id_ = 0, experts_per_token_ = 0;
    int64_t rows_for_prompts_ = 0;  // of the batch being built: what those that decode leave
    Counters counters_;
    std::vector<float> logits_;        // on the host, until the next are read
    std::function<void()> meanwhile_;  // of this step, until it was called

    [[nodiscard]] std::vector<TokenEvent> run_step();
    void before_waiting();
    static void insert(Sequences& sequences, std::unique_ptr<Sequence> sequence);
    void schedule();
    void drop_drafts(int64_t rows);
    int64_t schedule_running(int64_t rows, bool decoding);
    void admit(int64_t rows);
    void admitted(Sequence& sequence);
    void begin(Sequence& sequence);
    [[nodiscard]] int64_t rows_of(const Sequence& sequence, int64_t rows) const;
    [[nodiscard]] bool make_room(Sequence& sequence, int64_t rows, bool may_preempt);
    void preempt_last();
    [[nodiscard]] AttentionForm form_of(const Sequence& sequence) const;
    [[nodiscard]] std::vector<Sequence*> next_batch();
    [[nodiscard]] Batch build(Context& cx, std::span<Sequence* const> batch);
    void note_fewer_experts(std::span<Sequence* const> batch);
    [[nodiscard]] bool watched() const { return options_.on_routing && counters_.steps % options_.routing_every == 0; }
    [[nodiscard]] Tensor forward(Context& cx, Batch built, std::span<Sequence* const> batch);
    void tell_experts(std::span<const Routing> routing, std::span<Sequence* const> batch);
    [[nodiscard]] std::vector<TokenEvent> sample_all(Context& cx, const Batch& built, std::span<Sequence* const> batch,
                                                     Tensor& hidden);
    // What a batch says: logits [answers, vocab], or, where the device has sampled, the tokens, and their log-probabilities if
    // somebody wants them.
    struct Answers {
        std::span<const float> logits;
        std::vector<int32_t> tokens;
        std::vector<float> logprobs;
    };
    [[nodiscard]] std::span<const float> read_logits(Context& cx, const Tensor& hidden, std::span<const int32_t> rows);
    [[nodiscard]] std::span<const float> read_back(const Tensor& logits);
    [[nodiscard]] bool stays_on_device(std::span<Sequence* const> batch, std::span<Sequence* const> sampled) const;
    [[nodiscard]] bool stays_on_device(const Sequence& sequence) const;
    [[nodiscard]] static bool wants_best(const Sequence& sequence);
    [[nodiscard]] static bool restricted(const Sequence& sequence);
    [[nodiscard]] int64_t padding(std::span<Sequence* const> batch) const;
    [[nodiscard]] Answers read_tokens(Context& cx, const Batch& built, std::span<Sequence* const> batch,
                                      std::span<Sequence* const> sampled, std::span<const int32_t> last_rows);
    [[nodiscard]] std::vector<int64_t> recording_key(const Batch& built, const Tensor& index, bool best_only) const;
    void choose_tokens(StepRecorder& recorder, const Tensor& index, const Tensor& logits,
                       std::span<Sequence* const> sampled) const;
    void score_prompts(Context& cx, const Tensor& hidden, std::span<Sequence* const> batch);
    [[nodiscard]] std::vector<TokenEvent> sample_sequences(std::span<Sequence* const> sampled, const Answers& answers);
    [[nodiscard]] std::vector<TokenEvent> sample_rows(Sequence& sequence, const Answers& answers, size_t first) const;
    [[nodiscard]] TokenEvent next_event(Sequence& sequence, const Answers& answers, size_t index) const;
    void sample_next(Sequence& sequence, const Answers& answers, size_t index, TokenEvent& event) const;
    [[nodiscard]] TokenMask mask_of(const Sequence& sequence) const;
    // infer/speculative.cpp
    [[nodiscard]] int64_t useful_drafts(const Sequence& sequence) const;
    void draft(Context& cx, const Tensor& hidden, std::span<Sequence* const> batch);
    void draft_next(Context& cx, int64_t depth, const Tensor& y, std::span<Sequence* const> drafting,
                    std::span<const int32_t> last_rows);
    void add_draft(Sequence& sequence, std::span<const float> logits) const;
};

// The cheaper form of MLA for `queries` new tokens behind `past` cached ones, by multiply-adds (V2 2.1.2; the figures count
// what the forms do not share):
//   expanded  2 (d_qk + d_v) h per query-key pair, and 2 c (d_n + d_v) h per key to project it up
//   absorbed  2 (2 c + d_r)  h per query-key pair, and 2 c (d_n + d_v) h per query to project it down
// V1's attention has the expanded form only.
[[nodiscard]] AttentionForm cheaper_form(const ModelConfig& config, int64_t queries, int64_t past);

}  // namespace fathom
