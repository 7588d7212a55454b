// Decoding and prefilling through the engine.
#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "app/bench_model.h"
#include "app/bench_runs.h"
#include "base/error.h"
#include "model/flop_count.h"
#include "model/memory_plan.h"

namespace fathom {
namespace {

constexpr int64_t kSlack = 64;  // tokens of the page that a sequence begins but does not fill

CacheType cache_type(const BenchOptions& options) { return *cache_type_from_name(options.cache_type); }

// A model in an engine with room for `batch` sequences of `length` tokens, whose experts are counted.
class BenchEngine {
public:
    BenchEngine(const BenchOptions& options, Device& device, int64_t length)
        : model(options, device.ops()),
          batch(sequences(options)),
          counts_(device.ops().sees_host_memory()),
          counter(device.ops()),
          engine(model.model(), device.ops(), engine_options(options, device, length)) {
        if (length <= engine.max_length()) return;
        throw Error(ErrorKind::kUsage, fmt::format("the run needs {} tokens a sequence, the model reads at most {} "
                                                   "(max_position_embeddings): give a smaller --depth, --prompt-tokens, "
                                                   "--max-new-tokens or --repetitions",
                                                   length, engine.max_length()));
    }

    static int64_t sequences(const BenchOptions& options) { return std::max<int64_t>(options.batch, 1); }

    void add(std::vector<int32_t> prompt, int64_t max_new_tokens) {
        Request request;
        request.prompt = std::move(prompt);
        request.sampling.temperature = 0;
        request.max_new_tokens = max_new_tokens;
        (void)engine.add(std::move(request));
    }
    // Steps until each of the `batch` sequences added last has said its first token. Returns the number of steps.
    int64_t run_prompts() {
        std::set<int64_t> begun;
        int64_t steps = 0;
        for (; std::ssize(begun) < batch; ++steps) {
            for (const TokenEvent& event : engine.step()) begun.insert(event.request);
        }
        return steps;
    }
    // Read by the last `forwards` batches of `rows` rows. What was chosen is not asked of a GPU, which would have to wait:
    // there it is what even choices would be.
    [[nodiscard]] double weight_bytes(int64_t forwards, int64_t rows) {
        const double expected = static_cast<double>(forwards) * expected_experts(rows);
        const double experts = counts_ ? static_cast<double>(counter.take()) : expected;
        return static_cast<double>(forwards * model.dense_bytes()) + experts * static_cast<double>(model.expert_bytes());
    }
    // From now on, and what was counted since: for a measurement.
    void count_paging() {
        if (paged_ != nullptr) before_ = paged_->cache().counters();
    }
    [[nodiscard]] std::optional<PagingFigures> paging() const {
        return paged_ == nullptr ? std::nullopt : std::optional(paged_->figures(before_));
    }
    [[nodiscard]] int64_t max_batch_rows() const { return engine.options().max_batch_rows; }

    BenchModel model;
    int64_t batch;

private:
    bool counts_;
    PagedExperts* paged_ = nullptr;
    ExpertCache::Counters before_;

public:
    ExpertCounter counter;
    Engine engine;

private:
    [[nodiscard]] EngineOptions engine_options(const BenchOptions& options, Device& device, int64_t length) {
        EngineOptions result;
        result.threads = &device.threads();
        result.cache_tokens = batch * (length + kSlack) + 2 * (options.reading + kSlack);
        result.cache_type = cache_type(options);
        paged_ = model.page_experts(options, device.ops(), result.cache_tokens);
        if (paged_ != nullptr) result.experts = &paged_->cache();
        result.prefill_chunk = prompt_batch_rows(device.ops());
        result.max_batch_rows = std::max(result.prefill_chunk, batch + options.reading);
        result.max_sequences = batch + (options.reading > 0 ? 1 : 0);
        if (counts_)
            result.on_routing = [this](std::span<const Routing> routing, std::span<const RequestRows>) { counter(routing); };
        return result;
    }
    // Distinct experts that `rows` tokens choose evenly, all layers together.
    [[nodiscard]] double expected_experts(int64_t rows) const {
        const ModelConfig& c = model.config();
        const auto experts = static_cast<double>(c.n_routed_experts);
        if (c.n_routed_experts == 0) return 0;
        const double missed = std::pow(1 - static_cast<double>(c.num_experts_per_tok) / experts, static_cast<double>(rows));
        int64_t layers = 0;
        for (int64_t i = 0; i < c.num_hidden_layers; ++i) layers += c.moe_layer(i) ? 1 : 0;
        return static_cast<double>(layers) * experts * (1 - missed);
    }
};

}  // namespace

Measurement bench_decode(const BenchOptions& options, Device& device, const Between& between) {
    const int64_t prompt = std::max<int64_t>(options.depth + options.prompt_tokens, 1),
                  steps = options.max_new_tokens > 0 ? options.max_new_tokens : 32;
    // Sequences whose prompts are read early decode while the others are read.
    const int64_t reading = BenchEngine::sequences(options) * prompt / prompt_batch_rows(device.ops()) + 1;
    const int64_t answer = 1 + reading + options.repetitions * (steps + 1);
    BenchEngine run(options, device, prompt + answer);
    std::mt19937_64 random(1);
    for (int64_t i = 0; i < run.batch; ++i) {
        run.add(random_tokens(random, prompt, run.model.config().vocab_size), answer + 1);
    }
    (void)run.run_prompts();
    run.count_paging();
    const auto step = [&] {
        if (options.reading > 0) run.add(random_tokens(random, options.reading, run.model.config().vocab_size), 1);
        (void)run.engine.step();
    };

    Measurement result{run.batch * steps, {}, {}, 0, 0, run.model.dtype(), run.model.parameters(), {}};
    double bytes = 0, keys = 0;
    const double cached = static_cast<double>(cache_bytes_per_token(run.model.config(), cache_type(options)));
    for (int64_t i = 0; i < options.repetitions; ++i) {
        between();
        step();  // wakes the threads up and fills the caches again
        (void)run.counter.take();
        const Stopwatch watch;
        for (int64_t done = 0; done < steps; ++done) step();
        watch.stop(result);
        const double length = static_cast<double>(prompt + 1 + i * (steps + 1)) + mean_keys(steps);
        keys += length / static_cast<double>(options.repetitions);
        bytes += run.weight_bytes(steps, run.batch + options.reading) + cached * length * static_cast<double>(result.tokens);
    }
    result.paging = run.paging();
    result.bytes_per_token = bytes / static_cast<double>(options.repetitions * result.tokens);
    result.flops_per_token = count_flops(run.model.config(), keys, AttentionForm::kAbsorbed).forward();
    return result;
}

Measurement bench_prefill(const BenchOptions& options, Device& device, const Between& between) {
    const int64_t fresh = options.prompt_tokens > 0 ? options.prompt_tokens : 512;
    BenchEngine run(options, device, options.depth + fresh + 1);
    std::mt19937_64 random(1);
    const ModelConfig& config = run.model.config();
    std::vector<std::vector<int32_t>> prefixes(static_cast<size_t>(run.batch));
    for (auto& prefix : prefixes) prefix = random_tokens(random, options.depth, config.vocab_size);
    if (options.depth > 0) {  // finished sequences stay in the cache, and prompts that begin alike take their pages over
        for (const auto& prefix : prefixes) run.add(prefix, 1);
        (void)run.run_prompts();
    }

    run.count_paging();
    Measurement result{run.batch * fresh, {}, {}, 0, 0, run.model.dtype(), run.model.parameters(), {}};
    double bytes = 0;
    for (int64_t i = 0; i < options.repetitions; ++i) {
        for (std::vector<int32_t> prompt : prefixes) {
            const std::vector<int32_t> tail = random_tokens(random, fresh, config.vocab_size);
            prompt.insert(prompt.end(), tail.begin(), tail.end());
            run.add(std::move(prompt), 1);
        }
        between();
        (void)run.counter.take();
        const Stopwatch watch;
        const int64_t steps = run.run_prompts();
        watch.stop(result);
        bytes += run.weight_bytes(steps, run.max_batch_rows());
    }
    result.paging = run.paging();
    // The cache behind a chunk is read once per chunk; about half of the new tokens stand behind the average one.
    const int64_t chunk = run.engine.options().prefill_chunk;
    const double chunks = static_cast<double>((fresh + chunk - 1) / chunk);
    const double cache = static_cast<double>(cache_bytes_per_token(config, cache_type(options))) * chunks *
                         mean_keys(fresh, options.depth) / static_cast<double>(fresh);
    result.bytes_per_token = bytes / static_cast<double>(options.repetitions * result.tokens) + cache;
    const FlopCount flops = count_flops(config, mean_keys(fresh, options.depth));
    result.flops_per_token = flops.layers + flops.attention + flops.head / static_cast<double>(fresh);
    return result;
}

}  // namespace fathom
