#include "infer/perplexity.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "nn/cache_type.h"

namespace fathom {

double PerplexityResult::perplexity() const { return std::exp(mean_nll()); }

PerplexityResult perplexity(const DeepSeek& model, Ops& ops, std::span<const int32_t> tokens, const PerplexityOptions& options,
                            const std::function<void(const PerplexityResult&)>& progress) {
    const int64_t stride = options.stride > 0 ? options.stride : options.context;
    check(options.context > 0 && stride <= options.context, "perplexity: stride must not exceed the context");
    const auto grow = [&ops](int64_t bytes) { return ops.allocate(bytes); };
    Arena scratch("scratch", grow), saved("saved", grow);
    check_cache_type(ops, options.cache_type);
    // Only one arithmetic for all shows what a narrow cache costs: nothing is cached here.
    const bool one_arithmetic = options.deterministic || options.cache_type != CacheType(ops.compute_dtype());
    const bool absorbed = one_arithmetic && model.config().mla();
    const AttentionForm form = absorbed ? AttentionForm::kAbsorbed : AttentionForm::kExpanded;
    const auto predicted = static_cast<int64_t>(tokens.size()) - 1;
    PerplexityResult result;
    for (int64_t begin = 0; result.tokens < predicted; begin += stride) {
        const ArenaScope scope(scratch);
        Context cx{ops, scratch, saved, options.cache_type, one_arithmetic, options.experts};
        const int64_t end = std::min(begin + options.context, predicted), first = result.tokens - begin;
        const auto at = [&](int64_t from, int64_t to) {
            return tokens.subspan(static_cast<size_t>(from), static_cast<size_t>(to - from));
        };
        const SequenceChunk window{at(begin, end), 0, form, {}};
        const Tensor hidden = model.forward(cx, make_batch(cx, std::span(&window, 1), 0, false), nullptr, nullptr);
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
