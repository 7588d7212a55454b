#include "infer/perplexity.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "infer/paged_cache.h"
#include "nn/cache_type.h"

namespace fathom {
namespace {

constexpr int64_t kPageTokens = 64;

// Of one window, after the final norm [tokens, hidden]; `cache`: null, or one with room for it.
Tensor forward(Context& cx, const DeepSeek& model, std::span<const int32_t> tokens, AttentionForm form, PagedCache* cache) {
    if (cache == nullptr) {
        const SequenceChunk window{tokens, 0, form, {}};
        return model.forward(cx, make_batch(cx, std::span(&window, 1), 0, false), nullptr, nullptr);
    }
    CachedSequence sequence(*cache);
    check(sequence.reserve(std::ssize(tokens)), "perplexity: a window does not fit into its cache");
    const SequenceChunk window{tokens, 0, form, sequence.block_table()};
    return model.forward(cx, make_batch(cx, std::span(&window, 1), kPageTokens, false), &cache->view(), nullptr);
}

}  // namespace

double PerplexityResult::perplexity() const { return std::exp(mean_nll()); }

PerplexityResult perplexity(const DeepSeek& model, Ops& ops, std::span<const int32_t> tokens, const PerplexityOptions& options,
                            const std::function<void(const PerplexityResult&)>& progress) {
    const int64_t stride = options.stride > 0 ? options.stride : options.context;
    check(options.context > 0 && stride <= options.context, "perplexity: stride must not exceed the context");
    const auto grow = [&ops](int64_t bytes) { return ops.allocate(bytes); };
    Arena scratch("scratch", grow), saved("saved", grow);
    check_cache_type(ops, options.cache_type);
    // A narrow cache shows what it costs: with one arithmetic for all by rounding alone, else by what reads it in serving.
    const bool narrow = options.cache_type != CacheType(ops.compute_dtype());
    std::optional<PagedCache> cache;
    if (narrow && !options.deterministic)
        cache.emplace(ops, model.cache_states(), options.context, kPageTokens, options.cache_type);
    const bool absorbed = (narrow || options.deterministic) && model.config().mla();
    const AttentionForm form = absorbed ? AttentionForm::kAbsorbed : AttentionForm::kExpanded;
    const auto predicted = static_cast<int64_t>(tokens.size()) - 1;
    PerplexityResult result;
    for (int64_t begin = 0; result.tokens < predicted; begin += stride) {
        const ArenaScope scope(scratch);
        Context cx{ops, scratch, saved, options.cache_type, options.deterministic, options.experts};
        const int64_t end = std::min(begin + options.context, predicted), first = result.tokens - begin;
        const auto at = [&](int64_t from, int64_t to) {
            return tokens.subspan(static_cast<size_t>(from), static_cast<size_t>(to - from));
        };
        const Tensor hidden = forward(cx, model, at(begin, end), form, cache ? &*cache : nullptr);
        const Tensor loss = cx.empty_precise({end - begin - first});
        model.head().loss(cx, loss, hidden.slice(0, first, end - begin), cx.ints(at(begin + 1 + first, end + 1)));
        std::vector<float> nll(static_cast<size_t>(loss.size()));
        ops.read_back(nll.data(), loss);
        for (const float value : nll) result.nll += static_cast<double>(value);
        result.tokens = end;
        if (progress) progress(result);
    }
    return result;
}

}  // namespace fathom
