#include "rl/rollout.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/interrupt.h"

namespace fathom {
namespace {

// Experts of tokens by what stands before them: a prefix taken from the cache was routed when someone else computed it.
class PrefixRoutes {
public:
    static uint64_t extend(uint64_t hash, int32_t token) {
        hash ^= static_cast<uint64_t>(static_cast<uint32_t>(token)) + 0x9E3779B97F4A7C15ull + (hash << 6) + (hash >> 2);
        return (hash ^ (hash >> 29)) * 0xBF58476D1CE4E5B9ull;
    }
    void learn(const Rollout& rollout) {
        walk(rollout, [&](uint64_t hash, size_t layer, const int32_t* experts, size_t k) {
            if (experts[0] >= 0) known_.try_emplace(hash + layer, experts, experts + k);
        });
    }
    void fill(Rollout& rollout) const {
        walk(rollout, [&](uint64_t hash, size_t layer, int32_t* experts, size_t) {
            const auto found = known_.find(hash + layer);
            if (experts[0] < 0 && found != known_.end()) std::ranges::copy(found->second, experts);
        });
    }

private:
    std::unordered_map<uint64_t, std::vector<int32_t>> known_;

    template <class R, class Visit>
    static void walk(R& rollout, const Visit& visit) {
        uint64_t hash = 0;
        const size_t n = rollout.tokens.size() - 1;
        for (size_t i = 0; i < n; ++i) {
            hash = extend(hash, rollout.tokens[i]);
            for (size_t layer = 0; layer < rollout.routes.size(); ++layer) {
                const size_t k = rollout.routes[layer].size() / n;
                if (k > 0) visit(hash, layer, rollout.routes[layer].data() + i * k, k);
            }
        }
    }
};

// Calls visit(rollout, its layer's experts, experts per token, row of its first token in the batch) for every layer.
template <class Visit>
void for_each_route(std::span<const Rollout* const> rollouts, size_t layers, const Visit& visit) {
    for (size_t layer = 0; layer < layers; ++layer) {
        size_t row = 0;
        for (const Rollout* rollout : rollouts) {
            const size_t n = rollout->tokens.size() - 1;
            const bool recorded = layer < rollout->routes.size() && !rollout->routes[layer].empty();
            if (recorded) visit(layer, *rollout, rollout->routes[layer].size() / n, row);
            row += n;
        }
    }
}

}  // namespace

class RolloutSampler::Session {
public:
    Session(const DeepSeek& model, Ops& ops, const RolloutOptions& options, int64_t longest_prompt)
        : ops_(ops),
          options_(options),
          vocab_(model.config().vocab_size),
          words_((vocab_ + 31) / 32),
          arena_(
              "rollout", [&ops](int64_t bytes) { return ops.allocate(bytes); }, 1 << 20),
          engine_(model, ops, engine_options(longest_prompt)) {}

    std::vector<Rollout> sample(std::span<const RolloutRequest> requests) {
        engine_.forget_prefixes();  // they were computed with other weights
        index_.clear();
        rows_.assign(requests.size(), {});
        rollouts_.assign(requests.size(), {});
        for (size_t i = 0; i < requests.size(); ++i) add(i, requests[i]);
        while (!engine_.idle()) {
            throw_if_interrupted();
            take(engine_.step());
        }
        if (options_.record_routes) complete_routes();
        return std::move(rollouts_);
    }

private:
    Ops& ops_;
    RolloutOptions options_;
    int64_t vocab_, words_;
    Arena arena_;
    std::vector<std::vector<float>> rows_;  // logits of the token just sampled
    std::vector<Rollout> rollouts_;
    std::unordered_map<int64_t, size_t> index_;  // of an engine's request
    Engine engine_;

    EngineOptions engine_options(int64_t longest_prompt) {
        constexpr int64_t kBlock = 16;
        EngineOptions engine;
        engine.block_size = kBlock;
        engine.cache_tokens = options_.max_sequences * ((longest_prompt + options_.max_new_tokens + kBlock) / kBlock * kBlock);
        engine.cache_type = options_.cache_type;
        engine.max_batch_rows = engine.prefill_chunk = options_.max_batch_rows;
        engine.max_sequences = options_.max_sequences;
        engine.deterministic = options_.deterministic;
        engine.vocab_limit = options_.vocab_limit;
        if (options_.record_routes) {
            engine.on_routing = [this](std::span<const Routing> routing, std::span<const RequestRows> rows) {
                record(routing, rows);
            };
        }
        return engine;
    }

    void add(size_t i, const RolloutRequest& wanted) {
        Rollout& rollout = rollouts_[i];
        rollout.prompt = wanted.prompt;
        rollout.tokens.assign(wanted.tokens.begin(), wanted.tokens.end());
        rollout.prompt_length = std::ssize(wanted.tokens);
        Request request;
        request.prompt = rollout.tokens;
        request.sampling = options_.sampling;
        request.stream = wanted.stream;
        request.max_new_tokens = options_.max_new_tokens;
        request.stop_ids = options_.stop_ids;
        request.on_logits = [this, i](std::span<const float> logits) { rows_[i].assign(logits.begin(), logits.end()); };
        index_[engine_.add(std::move(request))] = i;
    }

    void take(const std::vector<TokenEvent>& events) {
        std::vector<size_t> said;
        std::vector<int32_t> targets;
        for (const TokenEvent& event : events) {
            const size_t i = index_.at(event.request);
            if (event.token < 0)
                throw Error(ErrorKind::kInput,
                            "the model computed NaN or infinite logits while sampling: its weights are damaged");
            said.push_back(i);
            targets.push_back(event.token);
            rollouts_[i].tokens.push_back(event.token);
            rollouts_[i].truncated = event.finish == FinishReason::kLength;
        }
        if (!said.empty()) score(said, targets);
    }

    // Log-probabilities of the tokens that this step sampled.
    void score(const std::vector<size_t>& said, const std::vector<int32_t>& targets) {
        const ArenaScope scope(arena_);
        const auto m = std::ssize(said);
        std::vector<float> logits;
        std::vector<int32_t> masks;
        for (const size_t i : said) {
            logits.insert(logits.end(), rows_[i].begin(), rows_[i].end());
            if (!options_.keep_mask) continue;
            const std::vector<int32_t> mask = sampling_mask(rows_[i], options_.sampling);
            rollouts_[i].allowed.insert(rollouts_[i].allowed.end(), mask.begin(), mask.end());
            masks.insert(masks.end(), mask.begin(), mask.end());
        }
        const Tensor z = arena_.allocate(ops_.precise_dtype(), {m, vocab_}), ids = arena_.allocate(DType::kI32, {m}),
                     logprob = arena_.allocate(ops_.precise_dtype(), {m});
        check(z.dtype == DType::kF32, "sample_rollouts: logits are f32");
        ops_.write(z, logits.data());
        ops_.write(ids, targets.data());
        Tensor allowed;
        if (options_.keep_mask) {
            allowed = arena_.allocate(DType::kI32, {m, words_});
            ops_.write(allowed, masks.data());
        }
        ops_.token_logprob(logprob, {}, z, ids, allowed, options_.sampling.temperature);
        std::vector<float> values(said.size());
        ops_.read_back(values.data(), logprob);
        for (size_t k = 0; k < said.size(); ++k) rollouts_[said[k]].logprobs.push_back(values[k]);
    }

    void record(std::span<const Routing> routing, std::span<const RequestRows> rows) {
        std::vector<int32_t> experts;
        for (size_t layer = 0; layer < routing.size(); ++layer) {
            const Tensor& indices = routing[layer].indices;
            if (!indices) continue;
            const auto k = static_cast<size_t>(indices.dim(1));
            experts.resize(static_cast<size_t>(indices.size()));
            ops_.read_back(experts.data(), indices);
            const int32_t* from = experts.data();
            for (const RequestRows& part : rows) {
                Rollout& rollout = rollouts_[index_.at(part.request)];
                rollout.routes.resize(routing.size());
                std::vector<int32_t>& to = rollout.routes[layer];
                to.resize(std::max(to.size(), static_cast<size_t>(part.position + part.rows) * k), -1);
                std::copy_n(from, static_cast<size_t>(part.rows) * k, to.begin() + part.position * static_cast<ptrdiff_t>(k));
                from += static_cast<size_t>(part.rows) * k;
            }
        }
    }

    void complete_routes() {
        PrefixRoutes known;
        for (Rollout& rollout : rollouts_) known.learn(rollout);
        for (Rollout& rollout : rollouts_) known.fill(rollout);
    }
};

RolloutSampler::RolloutSampler(const DeepSeek& model, Ops& ops, const RolloutOptions& options, int64_t longest_prompt)
    : session_(std::make_unique<Session>(model, ops, options, longest_prompt)) {
    check(options.sampling.temperature > 0, "RolloutSampler: a policy has a temperature above 0");
}

RolloutSampler::~RolloutSampler() = default;

std::vector<Rollout> RolloutSampler::sample(std::span<const RolloutRequest> requests) { return session_->sample(requests); }

std::vector<Rollout> sample_rollouts(const DeepSeek& model, Ops& ops, std::span<const RolloutRequest> requests,
                                     const RolloutOptions& options) {
    int64_t longest = 1;
    for (const RolloutRequest& request : requests) longest = std::max(longest, std::ssize(request.tokens));
    RolloutOptions fitting = options;
    fitting.max_sequences = std::clamp<int64_t>(std::ssize(requests), 1, options.max_sequences);
    return RolloutSampler(model, ops, fitting, longest).sample(requests);
}

std::vector<int32_t> sampling_mask(std::span<const float> logits, const SamplingParams& params) {
    std::vector<int32_t> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    const auto z = [&](int32_t id) { return static_cast<double>(logits[static_cast<size_t>(id)]) / params.temperature; };
    std::ranges::stable_sort(ids, std::ranges::greater{}, [&](int32_t id) { return logits[static_cast<size_t>(id)]; });
    const double best = z(ids[0]);
    size_t count = ids.size();
    if (params.min_p > 0)
        while (count > 1 && z(ids[count - 1]) - best < std::log(params.min_p)) --count;
    if (params.top_k > 0) count = std::min(count, static_cast<size_t>(params.top_k));
    double total = 0, sum = 0;
    for (size_t i = 0; i < count; ++i) total += std::exp(z(ids[i]) - best);
    size_t kept = 0;
    while (kept < count && (kept == 0 || sum < params.top_p * total)) sum += std::exp(z(ids[kept++]) - best);
    std::vector<uint32_t> words((logits.size() + 31) / 32, 0);
    for (size_t i = 0; i < kept; ++i) words[static_cast<size_t>(ids[i]) / 32] |= 1U << (ids[i] % 32);
    return {words.begin(), words.end()};
}

TokenBatch pack_rollouts(std::span<const Rollout* const> rollouts) {
    TokenBatch batch;
    batch.cu_seqlens.push_back(0);
    for (const Rollout* rollout : rollouts) {
        for (int64_t i = 0; i + 1 < std::ssize(rollout->tokens); ++i) {
            batch.tokens.push_back(rollout->tokens[static_cast<size_t>(i)]);
            batch.positions.push_back(static_cast<int32_t>(i));
            const bool learned = i + 1 >= rollout->prompt_length;
            batch.targets.push_back(learned ? rollout->tokens[static_cast<size_t>(i) + 1] : kNoTarget);
        }
        batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
    }
    return batch;
}

ExpertChoices pack_routes(std::span<const Rollout* const> rollouts) {
    ExpertChoices packed;
    if (!rollouts.empty()) packed.resize(rollouts[0]->routes.size());
    for_each_route(rollouts, packed.size(), [&](size_t layer, const Rollout& rollout, size_t, size_t) {
        const std::vector<int32_t>& experts = rollout.routes[layer];
        if (std::ranges::find(experts, -1) != experts.end())
            throw Error(ErrorKind::kInput, "keep_routing: the experts of some tokens were not recorded");
        packed[layer].insert(packed[layer].end(), experts.begin(), experts.end());
    });
    return packed;
}

int64_t count_route_differences(std::span<const Rollout* const> rollouts, const ExpertChoices& used) {
    int64_t differences = 0;
    for_each_route(rollouts, used.size(), [&](size_t layer, const Rollout& rollout, size_t k, size_t row) {
        const std::vector<int32_t>& recorded = rollout.routes[layer];
        for (size_t i = 0; i * k < recorded.size(); ++i) {
            const auto* a = recorded.data() + i * k;
            const auto* b = used[layer].data() + (row + i) * k;
            differences += a[0] >= 0 && !std::equal(a, a + k, b) ? 1 : 0;
        }
    });
    return differences;
}

}  // namespace fathom
