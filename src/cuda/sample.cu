// Tokens drawn from logits where they lie, by the rules of ops/sampling.h and with the random numbers of infer/sampler.cpp. One
// block has a row; every sum has a fixed order.
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>
#include <numbers>
#include <vector>

#include "base/rng.h"
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/softmax.cuh"

namespace fathom {
namespace cuda {
namespace {

constexpr int kSampleThreads = 1024;

struct Bias {
    int32_t id;
    float added;
};

// A row's rule. Places in the arrays that all rows share; [begin, end) where there are two.
struct Rule {
    double temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
    uint64_t seed, stream, step;
    int64_t top_k;
    int32_t changed;  // among the rows whose logits are changed before anything is drawn; -1: as given
    int32_t prompt, answer, history_end;
    int32_t bias, bias_end;
    int32_t mask;  // -1: all ids are allowed
};

// What the rules of all rows refer to.
struct Lists {
    const Rule* rules;
    const int32_t* history;
    const Bias* biases;
    const uint64_t* masks;  // [*, mask_words]
    int64_t mask_words;
};

// A logit and its id as one number: the larger of two is the larger logit, or the lower id among equals.
__device__ __forceinline__ uint64_t key_of(float z, int32_t id) {
    const uint32_t bits = __float_as_uint(z + 0.0f);  // of the two zeros, one
    return static_cast<uint64_t>(bits >> 31 != 0 ? ~bits : bits | 0x80000000u) << 32 | ~static_cast<uint32_t>(id);
}
__device__ __forceinline__ float logit_of(uint64_t key) {
    const auto bits = static_cast<uint32_t>(key >> 32);
    return __uint_as_float(bits >> 31 != 0 ? bits & 0x7fffffffu : ~bits);
}
__device__ __forceinline__ int32_t id_of(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

__device__ float penalized(float z, int32_t uses, const Rule& rule) {
    double logit = z;
    logit = logit > 0 ? logit / rule.repetition_penalty : logit * rule.repetition_penalty;
    const int32_t said = uses / 2;
    return static_cast<float>(logit - (rule.frequency_penalty * said + (said > 0 ? rule.presence_penalty : 0)));
}

// changed[rule.changed] = logits[i] with bias, penalties and mask: [*, vocab]. `uses` [*, vocab] counts an id of the answer
// twice; one of the prompt makes it odd.
__global__ void __launch_bounds__(kSampleThreads)
    change_logits_kernel(float* changed, int32_t* uses, Rows<float> logits, Lists lists, int64_t vocab) {
    begin_early();
    const Rule& rule = lists.rules[blockIdx.x];
    if (rule.changed < 0) return;
    const float* const z = logits.at(blockIdx.x);
    changed += rule.changed * vocab, uses += rule.changed * vocab;
    const auto in_vocabulary = [&](int32_t id) { return id >= 0 && id < vocab; };
    for (int64_t c = threadIdx.x; c < vocab; c += kSampleThreads) changed[c] = z[c], uses[c] = 0;
    __syncthreads();
    for (int32_t i = rule.bias + static_cast<int32_t>(threadIdx.x); i < rule.bias_end; i += kSampleThreads) {
        const int32_t id = lists.biases[i].id;
        bool first = in_vocabulary(id);  // the first entry of an id adds them all, in their order
        for (int32_t j = rule.bias; first && j < i; ++j) first = lists.biases[j].id != id;
        for (int32_t j = i; first && j < rule.bias_end; ++j)
            if (lists.biases[j].id == id) changed[id] += lists.biases[j].added;
    }
    for (int32_t i = rule.prompt + static_cast<int32_t>(threadIdx.x); i < rule.history_end; i += kSampleThreads) {
        const int32_t id = lists.history[i];
        if (!in_vocabulary(id)) continue;
        if (i < rule.answer) {
            atomicOr(uses + id, 1);
        } else {
            atomicAdd(uses + id, 2);
        }
    }
    __syncthreads();
    const uint64_t* const mask = lists.masks + rule.mask * lists.mask_words;
    for (int64_t c = threadIdx.x; c < vocab; c += kSampleThreads) {
        const float v = uses[c] != 0 ? penalized(changed[c], uses[c], rule) : changed[c];
        const bool allowed = rule.mask < 0 || (c / 64 < lists.mask_words && (mask[c / 64] >> (c % 64) & 1) != 0);
        changed[c] = allowed || isnan(v) ? v : -INFINITY;
    }
}

// The ids that may still be drawn, with their logits divided by the temperature, the best one's being 0. Every thread has some
// of them, and puts those that stay side by side.
struct Candidates {
    uint64_t* keys;  // the thread's own: [0], [kSampleThreads], ...
    int count = 0;

    __device__ __forceinline__ void add(uint64_t key) { keys[kSampleThreads * static_cast<int64_t>(count++)] = key; }
    template <class Body>
    __device__ __forceinline__ void each(Body&& body) const {
        for (int i = 0; i < count; ++i) body(keys[kSampleThreads * static_cast<int64_t>(i)]);
    }
    __device__ __forceinline__ void keep_from(uint64_t least) {
        const int all = count;
        count = 0;
        for (int i = 0; i < all; ++i)
            if (const uint64_t key = keys[kSampleThreads * static_cast<int64_t>(i)]; key >= least) add(key);
    }
};

// Sum of weight(key) over all candidates from `least` on.
template <class Weight>
__device__ double sum_from(const Candidates& candidates, uint64_t least, double* space, Weight&& weight) {
    double sum = 0;
    candidates.each([&](uint64_t key) { sum += key >= least ? weight(key) : 0; });
    return block_sum<kSampleThreads>(sum, space);
}

// Keeps the smallest set of best candidates that weighs at least `target`, which is no more than all of them weigh.
template <class Weight>
__device__ void keep_best(Candidates& candidates, double target, double* space, Weight&& weight) {
    uint64_t low = 0, high = key_of(0, 0) + 1;  // from `low` on they weigh enough, from `high` on nothing
    while (high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        (sum_from(candidates, middle, space, weight) >= target ? low : high) = middle;
    }
    candidates.keep_from(low);
}

__device__ __forceinline__ double probability(uint64_t key) { return expf(logit_of(key)); }  // of the best one's

__device__ void keep_top_k(Candidates& candidates, int64_t k, double* space) {
    const auto one = [](uint64_t) { return 1.0; };
    if (k > 0 && sum_from(candidates, 0, space, one) > static_cast<double>(k))
        keep_best(candidates, static_cast<double>(k), space, one);
}

__device__ void keep_top_p(Candidates& candidates, double top_p, int64_t vocab, double* space) {
    if (top_p >= 1) return;
    const double total = sum_from(candidates, 0, space, probability);
    // All below this weigh less than 1 - top_p together, and the best alone weighs 1: the others suffice.
    candidates.keep_from(key_of(static_cast<float>(log((1 - top_p) / static_cast<double>(vocab)) - 1e-3), INT_MAX));
    keep_best(candidates, top_p * total, space, probability);
}

// When a token's exponential clock rings, and whose it is: the first one's is drawn (infer/sampler.cpp, draw).
struct Arrival {
    double log_time;
    int32_t id;
    __device__ __forceinline__ void take(double time, int32_t of) {
        if (time < log_time || (time == log_time && of < id)) log_time = time, id = of;
    }
};

struct Clocks {
    Philox philox;
    uint64_t step;

    __device__ __forceinline__ uint32_t number(int32_t id) const {
        const auto four = philox((step << 32) | static_cast<uint64_t>(id / 4));
        const int at = id % 4;
        return at < 2 ? (at == 0 ? four[0] : four[1]) : (at == 2 ? four[2] : four[3]);
    }
    __device__ __forceinline__ double log_time(uint32_t drawn, float logit) const {
        return log(-log1p(-(static_cast<double>(drawn) + 0.5) * 0x1p-32)) - static_cast<double>(logit);
    }
};

// Of the thread's own candidates and `best`, whose logit is 0.
__device__ Arrival first_arrival(const Candidates& candidates, int32_t best, const Clocks& clocks) {
    Arrival first{clocks.log_time(clocks.number(best), 0), best};
    candidates.each([&](uint64_t key) {
        const float logit = logit_of(key);
        const double bound = first.log_time + static_cast<double>(logit);
        if (-33 * std::numbers::ln2 >= bound) return;  // no number is small enough
        const uint32_t own = clocks.number(id_of(key));
        if (-(1 + __clz(static_cast<int>(own))) * std::numbers::ln2 >= bound) return;  // -log(1 - v) >= v
        first.take(clocks.log_time(own, logit), id_of(key));
    });
    return first;
}

// The best of all keys; 0 where a logit is NaN or none is finite.
__device__ uint64_t best_key(const LogitRow& z, int64_t vocab, uint64_t* space) {
    uint64_t best = 0;
    bool broken = false;
    for (int64_t first = 4 * static_cast<int64_t>(threadIdx.x); first < vocab; first += 4 * kSampleThreads) {
        float v[4];
        four_of(v, z, first, vocab);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            broken = broken || isnan(v[i]);
            const uint64_t key = key_of(v[i], static_cast<int32_t>(first) + i);
            best = key > best ? key : best;
        }
    }
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
        const uint64_t other = __shfl_xor_sync(kAll, best, step);
        best = other > best ? other : best;
    }
    if (threadIdx.x % kWarp == 0) space[threadIdx.x / kWarp] = best;
    broken = __syncthreads_or(broken) != 0;
    for (int i = 0; i < kSampleThreads / kWarp; ++i) best = space[i] > best ? space[i] : best;
    return broken || isinf(logit_of(best)) ? 0 : best;
}

// keys: [n, slots]; slots is a multiple of the threads, and at least `vocab`.
__global__ void __launch_bounds__(kSampleThreads) draw_kernel(int32_t* index, Rows<float> logits, const float* changed,
                                                              uint64_t* keys, const Rule* rules, int64_t vocab, int64_t slots) {
    begin_early();
    constexpr int kWarps = kSampleThreads / kWarp;
    __shared__ double space[kWarps];
    __shared__ uint64_t best_space[kWarps];
    __shared__ Arrival arrivals[kWarps];
    const Rule& rule = rules[blockIdx.x];
    const LogitRow z{rule.changed < 0 ? logits.at(blockIdx.x) : changed + rule.changed * vocab};
    const uint64_t best = best_key(z, vocab, best_space);
    if (best == 0 || rule.temperature == 0) {
        if (threadIdx.x == 0) index[blockIdx.x] = best == 0 ? -1 : id_of(best);
        return;
    }
    Candidates candidates{keys + blockIdx.x * slots + threadIdx.x};
    const float top = logit_of(best), least = rule.min_p > 0 ? static_cast<float>(log(rule.min_p)) : -INFINITY;
    for (int64_t c = threadIdx.x; c < vocab; c += kSampleThreads) {
        const auto x = static_cast<float>(static_cast<double>(z(c) - top) / rule.temperature);
        if (x >= least && x > -INFINITY) candidates.add(key_of(x, static_cast<int32_t>(c)));
    }
    keep_top_k(candidates, rule.top_k, space);
    keep_top_p(candidates, rule.top_p, vocab, space);
    Arrival first = first_arrival(candidates, id_of(best), {Philox{rule.seed, rule.stream}, rule.step});
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2)
        first.take(__shfl_xor_sync(kAll, first.log_time, step), __shfl_xor_sync(kAll, first.id, step));
    if (threadIdx.x % kWarp == 0) arrivals[threadIdx.x / kWarp] = first;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (const Arrival& other : arrivals) first.take(other.log_time, other.id);
    index[blockIdx.x] = first.id;
}

// The queries in the form that goes to the device.
struct HostLists {
    std::vector<Rule> rules;
    std::vector<int32_t> history;
    std::vector<Bias> biases;
    std::vector<uint64_t> masks;
    int64_t mask_words, changed = 0;
    bool draws = false;  // any row at a temperature above 0

    HostLists(std::span<const TokenQuery> queries, int64_t vocab) : mask_words(ceil_div(vocab, 64)) {
        for (const TokenQuery& query : queries) add(query);
    }

private:
    void add(const TokenQuery& query) {
        const SamplingParams& params = *query.params;
        Rule rule{params.temperature,
                  params.top_p,
                  params.min_p,
                  params.repetition_penalty,
                  params.frequency_penalty,
                  params.presence_penalty,
                  params.seed,
                  query.stream,
                  query.step,
                  params.top_k};
        const bool as_given = params.as_given() && query.allowed.empty();
        rule.changed = as_given ? -1 : static_cast<int32_t>(changed++);
        rule.prompt = rule.answer = static_cast<int32_t>(history.size());
        if (params.penalizes()) {
            rule.answer += static_cast<int32_t>(query.history.prompt_length);
            history.insert(history.end(), query.history.tokens.begin(), query.history.tokens.end());
        }
        rule.history_end = static_cast<int32_t>(history.size());
        rule.bias = static_cast<int32_t>(biases.size());
        for (const auto& [id, added] : params.logit_bias) biases.push_back({id, added});
        rule.bias_end = static_cast<int32_t>(biases.size());
        rule.mask = query.allowed.empty() ? -1 : static_cast<int32_t>(std::ssize(masks) / mask_words);
        if (rule.mask >= 0) {
            const auto words = query.allowed.first(std::min(query.allowed.size(), static_cast<size_t>(mask_words)));
            masks.insert(masks.end(), words.begin(), words.end());
            masks.resize(static_cast<size_t>((rule.mask + 1) * mask_words));
        }
        draws = draws || params.temperature > 0;
        rules.push_back(rule);
    }
};

template <class T>
const T* upload(Workspace& workspace, const std::vector<T>& values, cudaStream_t stream) {
    T* const to = workspace.take<T>(std::ssize(values));
    check_cuda(cudaMemcpyAsync(to, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice, stream),
               "copying to the GPU");
    return to;
}

template <class T>
int64_t bytes_of(const std::vector<T>& values) {
    return static_cast<int64_t>(values.size() * sizeof(T));
}

}  // namespace
}  // namespace cuda

void CudaOps::sample(const Tensor& index, const Tensor& logits, std::span<const TokenQuery> queries) {
    check_tensor("sample", "logits", logits, DType::kF32, {std::ssize(queries), kAny});
    check_tensor("sample", "index", index, DType::kI32, {logits.dim(0)});
    const int64_t n = logits.dim(0), vocab = logits.dim(1);
    if (n == 0) return;
    const cuda::HostLists host(queries, vocab);
    const int64_t slots = host.draws ? cuda::ceil_div(vocab, cuda::kSampleThreads) * cuda::kSampleThreads : 0;
    lane_->workspace.begin(cuda::bytes_of(host.rules) + cuda::bytes_of(host.history) + cuda::bytes_of(host.biases) +
                           cuda::bytes_of(host.masks) + 8 * host.changed * vocab + 8 * n * slots);
    const cuda::Lists lists{cuda::upload(lane_->workspace, host.rules, lane_->stream),
                            cuda::upload(lane_->workspace, host.history, lane_->stream),
                            cuda::upload(lane_->workspace, host.biases, lane_->stream),
                            cuda::upload(lane_->workspace, host.masks, lane_->stream), host.mask_words};
    auto* const changed = lane_->workspace.take<float>(host.changed * vocab);
    auto* const uses = lane_->workspace.take<int32_t>(host.changed * vocab);
    auto* const keys = lane_->workspace.take<uint64_t>(n * slots);
    const dim3 grid(static_cast<unsigned>(n));
    const cuda::Rows<float> rows(logits);
    if (host.changed > 0)
        cuda::launch_early(cuda::change_logits_kernel, grid, cuda::kSampleThreads, 0, lane_->stream, changed, uses, rows, lists,
                           vocab);
    cuda::launch_early(cuda::draw_kernel, grid, cuda::kSampleThreads, 0, lane_->stream, index.as<int32_t>(), rows, changed,
                       keys, lists.rules, vocab, slots);
    cuda::check_launch("sample");
}

}  // namespace fathom
