#include "infer/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

#include "base/error.h"
#include "base/rng.h"

namespace fathom {
namespace {

struct Candidate {
    float logit = 0;
    int32_t id = 0;
};

bool better(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

// Four numbers at a time, which every machine has registers for: passes over a vocabulary are most of what sampling costs.
constexpr size_t kLanes = 4;
using Floats [[gnu::vector_size(4 * kLanes)]] = float;
using Ints [[gnu::vector_size(4 * kLanes)]] = int32_t;

template <class Load>
Floats load_lanes(const Load& load, size_t first) {
    Floats lanes{};
    for (size_t i = 0; i < kLanes; ++i) lanes[i] = load(first + i);
    return lanes;
}

// exp(x) for x <= 0 within 2e-7 of it: x = n log 2 + r, and a polynomial of r. Below -87 about 1e-38.
Floats exp_lanes(Floats x) {
    constexpr float kLeast = -87, kRound = 12582912;  // 1.5 * 2^23: adding it leaves a whole number in the low bits
    const Floats least = Floats{} + kLeast;
    x = x < least ? least : x;
    const Floats shifted = x * std::numbers::log2e_v<float> + kRound, n = shifted - kRound;
    const Floats r = (x - n * 0.693145752F) - n * 1.42860677e-6F;
    const Floats tail = (((1.0F / 720 * r + 1.0F / 120) * r + 1.0F / 24) * r + 1.0F / 6) * r + 0.5F;
    const Floats fraction = (tail * r + 1) * r + 1;
    return std::bit_cast<Floats>(std::bit_cast<Ints>(fraction) + (std::bit_cast<Ints>(shifted) << 23));
}

// sum of exp(load(i)) over i < count, each at most 0.
template <class Load>
double sum_of_exp(size_t count, const Load& load) {
    constexpr size_t kTurn = 64;  // fours that are added up in f32
    double sum = 0;
    size_t i = 0;
    while (i + kLanes <= count) {
        Floats part{};
        const size_t end = std::min(i + kTurn * kLanes, count / kLanes * kLanes);
        for (; i < end; i += kLanes) part += exp_lanes(load_lanes(load, i));
        for (size_t lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(part[lane]);
    }
    for (; i < count; ++i) sum += static_cast<double>(std::exp(load(i)));
    return sum;
}

// In ascending order, those below `count`.
template <class Visit>
void for_each_allowed(const TokenMask& mask, size_t count, const Visit& visit) {
    for (size_t word = 0; word < mask.words().size(); ++word) {
        for (uint64_t bits = mask.words()[word]; bits != 0; bits &= bits - 1) {
            const size_t id = word * 64 + static_cast<size_t>(std::countr_zero(bits));
            if (id < count) visit(static_cast<int32_t>(id));
        }
    }
}

// The largest, -inf of none. A lane of `nan` becomes -1 where one of its numbers is none.
float maximum(std::span<const float> logits, Ints& nan) {
    Floats highest = Floats{} - std::numeric_limits<float>::infinity();
    size_t i = 0;
    for (; i + kLanes <= logits.size(); i += kLanes) {
        const Floats lanes = load_lanes([&](size_t at) { return logits[at]; }, i);
        highest = lanes > highest ? lanes : highest;
        nan |= lanes != lanes;
    }
    for (size_t lane = 0; i < logits.size(); ++i, ++lane) {  // fewer than a vector's
        highest[lane] = std::max(highest[lane], logits[i]);
        if (std::isnan(logits[i])) nan[lane] = -1;
    }
    float most = highest[0];
    for (size_t lane = 1; lane < kLanes; ++lane) most = std::max(most, highest[lane]);
    return most;
}

// The largest logit.
float check_logits(std::span<const float> logits) {
    Ints nan{};
    const float most = maximum(logits, nan);
    bool any_nan = false;
    for (size_t lane = 0; lane < kLanes; ++lane) any_nan |= nan[lane] != 0;
    if (any_nan || !std::isfinite(most)) {
        throw Error(ErrorKind::kInput,
                    "the model computed NaN or infinite logits: its weights are damaged, or overflow this arithmetic");
    }
    return most;
}

// The id of the largest, the lowest among equals; -1: none is allowed. None is NaN.
int32_t largest(std::span<const float> logits, const TokenMask& mask) {
    if (mask.empty()) {
        Ints nan{};
        const auto found = std::ranges::find(logits, maximum(logits, nan));
        return found == logits.end() ? -1 : static_cast<int32_t>(found - logits.begin());
    }
    int32_t best = -1;
    for_each_allowed(mask, logits.size(), [&](int32_t id) {
        if (best < 0 || logits[static_cast<size_t>(id)] > logits[static_cast<size_t>(best)]) best = id;
    });
    return best;
}

// log sum exp of all logits.
double log_normalizer(std::span<const float> logits) {
    const float most = check_logits(logits);
    return static_cast<double>(most) + std::log(sum_of_exp(logits.size(), [&](size_t i) { return logits[i] - most; }));
}

float logprob_of(std::span<const float> logits, int32_t id, double normalizer) {
    return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(id)]) - normalizer);
}

// In the thread's own memory, valid until its next call: a new megabyte for every token of a large vocabulary costs more than
// filling it. Those for which `keep(candidate)`, which may change it, is true.
template <class Keep>
std::vector<Candidate>& candidates_of(std::span<const float> logits, const TokenMask& mask, const Keep& keep) {
    thread_local std::vector<Candidate> candidates;
    candidates.resize(logits.size());
    size_t count = 0;
    const auto add = [&](int32_t id) {
        Candidate& candidate = candidates[count] = {logits[static_cast<size_t>(id)], id};
        count += keep(candidate) ? 1 : 0;
    };
    if (mask.empty()) {
        for (size_t i = 0; i < logits.size(); ++i) add(static_cast<int32_t>(i));
    } else {
        for_each_allowed(mask, logits.size(), add);
    }
    candidates.resize(count);
    return candidates;
}

// Biases and penalties added to a copy of the logits, which lies in the thread's own memory until its next call.
std::span<const float> penalized(std::span<const float> logits, const SamplingParams& params, const SampleHistory& history) {
    thread_local std::vector<float> changed;
    changed.assign(logits.begin(), logits.end());
    const auto known = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < changed.size(); };
    for (const auto& [id, bias] : params.logit_bias) {
        if (known(id)) changed[static_cast<size_t>(id)] += bias;
    }
    if (!params.penalizes()) return changed;
    // By id: 0, or 1 and how often the answer holds it. Only what was counted is cleared again.
    thread_local std::vector<int32_t> uses, said;
    if (uses.size() < changed.size()) uses.resize(changed.size());
    said.clear();
    for (size_t i = 0; i < history.tokens.size(); ++i) {
        const int32_t id = history.tokens[i];
        if (!known(id)) continue;
        int32_t& count = uses[static_cast<size_t>(id)];
        if (count == 0) count = 1, said.push_back(id);
        count += static_cast<int64_t>(i) >= history.prompt_length ? 1 : 0;
    }
    for (const int32_t id : said) {
        const int32_t count = std::exchange(uses[static_cast<size_t>(id)], 0) - 1;
        double logit = static_cast<double>(changed[static_cast<size_t>(id)]);
        logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
        logit -= params.frequency_penalty * static_cast<double>(count) + (count > 0 ? params.presence_penalty : 0);
        changed[static_cast<size_t>(id)] = static_cast<float>(logit);
    }
    return changed;
}

void keep_top_k(std::vector<Candidate>& candidates, int64_t k) {
    if (k <= 0 || static_cast<size_t>(k) >= candidates.size()) return;
    std::nth_element(candidates.begin(), candidates.begin() + k, candidates.end(), better);
    candidates.resize(static_cast<size_t>(k));
}

// Sorts no more of the candidates than the answer needs: a few hundred of 129 280 as a rule. The best one's logit is 0.
void keep_top_p(std::vector<Candidate>& candidates, double top_p) {
    if (top_p >= 1) return;
    const auto weight = [&](const Candidate& c) { return static_cast<double>(std::exp(c.logit)); };
    const double total = sum_of_exp(candidates.size(), [&](size_t i) { return candidates[i].logit; });
    double sum = 0;
    // All candidates below this weigh less than 1 - top_p together, and the best alone weighs 1: the others suffice.
    const double least = std::log((1 - top_p) / static_cast<double>(candidates.size())) - 1e-3;
    std::erase_if(candidates, [&](const Candidate& c) { return static_cast<double>(c.logit) < least; });
    constexpr size_t kFirst = 64;
    for (size_t begin = 0, end = kFirst; begin < candidates.size(); begin = end, end *= 2) {
        end = std::min(end, candidates.size());
        const auto at = [&](size_t i) { return candidates.begin() + static_cast<ptrdiff_t>(i); };
        std::partial_sort(at(begin), at(end), candidates.end(), better);
        for (size_t i = begin; i < end; ++i) {
            sum += weight(candidates[i]);
            if (sum < top_p * total) continue;
            candidates.resize(i + 1);
            return;
        }
    }
}

// Draws in proportion to exp(logit): every token runs for a time of its own, exponentially distributed with that rate, and the
// first to arrive is chosen (Gumbel's trick in another dress). A token's random number depends on nothing but (seed, stream,
// step, id): two distributions that resemble each other mostly choose the same token, which is what makes a draft come true
// (infer/speculative.cpp). One number for all, and sums over the tokens in some order, would shift every choice behind the
// first difference. `best` has logit 0, all others at most that.
int32_t draw(std::span<const Candidate> candidates, const Candidate& best, const Philox& philox, uint64_t step) {
    std::array<uint32_t, 4> numbers{};
    uint64_t block = ~uint64_t{0};
    const auto number = [&](int32_t id) {
        if (const uint64_t wanted = static_cast<uint64_t>(id) / 4; wanted != block) {
            block = wanted;
            numbers = philox((step << 32) | block);
        }
        return numbers[static_cast<size_t>(id) % 4];
    };
    // log(time) = log(-log(1 - v)) - logit, where v = (drawn + 1/2) / 2^32.
    const auto log_time = [](uint32_t drawn, float logit) {
        return std::log(-std::log1p(-(static_cast<double>(drawn) + 0.5) * 0x1p-32)) - static_cast<double>(logit);
    };
    int32_t first = best.id;
    double least = log_time(number(best.id), best.logit);
    for (const Candidate& c : candidates) {
        // -log(1 - v) >= v >= 2^-(1 + leading zeros), which turns nearly all of them away without a logarithm.
        const double bound = least + static_cast<double>(c.logit);
        if (-33 * std::numbers::ln2 >= bound) continue;
        const uint32_t own = number(c.id);
        if (-(1 + std::countl_zero(own)) * std::numbers::ln2 >= bound) continue;
        const double time = log_time(own, c.logit);
        if (time < least || (time == least && c.id < first)) least = time, first = c.id;
    }
    return first;
}

}  // namespace

int32_t sample(std::span<const float> logits, const SamplingParams& params, const SampleHistory& history, uint64_t stream,
               uint64_t step, int64_t vocab_limit, const TokenMask& mask) {
    (void)check_logits(logits);
    auto known = logits.first(std::min(logits.size(), static_cast<size_t>(vocab_limit)));
    if (!params.as_given()) known = penalized(known, params, history);
    const int32_t best = largest(known, mask);
    if (best < 0) {
        throw Error(ErrorKind::kInput, "no token is allowed to follow: the rules of this request exclude them all");
    }
    if (params.temperature == 0) return best;

    // The best is 0 from here on.
    const float most = known[static_cast<size_t>(best)];
    const float least = params.min_p > 0 ? static_cast<float>(std::log(params.min_p)) : -std::numeric_limits<float>::infinity();
    std::vector<Candidate>& candidates = candidates_of(known, mask, [&](Candidate& c) {
        c.logit = static_cast<float>(static_cast<double>(c.logit - most) / params.temperature);
        return c.logit >= least;
    });
    keep_top_k(candidates, params.top_k);
    keep_top_p(candidates, params.top_p);

    return draw(candidates, {0, best}, Philox{params.seed, stream}, step);
}

TokenLogprobs token_logprobs(std::span<const float> logits, int32_t token, int64_t count) {
    const double normalizer = log_normalizer(logits);
    TokenLogprobs result{logprob_of(logits, token, normalizer), {}};
    std::vector<Candidate>& best = candidates_of(logits, {}, [](const Candidate&) { return true; });
    const auto kept = best.begin() + std::min<ptrdiff_t>(count, std::ssize(best));
    std::partial_sort(best.begin(), kept, best.end(), better);
    for (auto c = best.begin(); c != kept; ++c) result.top.push_back({c->id, logprob_of(logits, c->id, normalizer)});
    return result;
}

}  // namespace fathom
