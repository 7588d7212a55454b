#include "infer/divergence.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace fathom {
namespace {

constexpr int64_t kRows = 64;  // logits of this many positions are held at a time

// Hidden states [n, hidden] of one window.
Tensor hidden_states(Context& cx, const DeepSeek& model, std::span<const int32_t> window) {
    const SequenceChunk chunk{window, 0, AttentionForm::kExpanded, {}};
    return model.forward(cx, make_batch(cx, std::span(&chunk, 1), 0, false), nullptr, nullptr);
}

std::vector<float> logits(Context& cx, const DeepSeek& model, const Tensor& hidden) {
    const Tensor values = model.logits(cx, hidden);
    std::vector<float> host(static_cast<size_t>(values.size()));
    cx.ops.read_back(host.data(), values);
    return host;
}

double log_sum_exp(std::span<const float> x) {
    const auto largest = static_cast<double>(*std::ranges::max_element(x));
    double sum = 0;
    for (const float value : x) sum += std::exp(static_cast<double>(value) - largest);
    return largest + std::log(sum);
}

double divergence_of(std::span<const float> p, double log_p, std::span<const float> q, double log_q) {
    double kl = 0;
    for (size_t i = 0; i < p.size(); ++i) {
        const double lp = static_cast<double>(p[i]) - log_p, lq = static_cast<double>(q[i]) - log_q;
        kl += std::exp(lp) * (lp - lq);
    }
    return kl;
}

void add_position(Divergence& result, std::span<const float> p, std::span<const float> q, int32_t target) {
    const double log_p = log_sum_exp(p), log_q = log_sum_exp(q);
    result.kl += divergence_of(p, log_p, q, log_q);
    const auto next = static_cast<size_t>(target);
    result.nll_original += log_p - static_cast<double>(p[next]);
    result.nll_changed += log_q - static_cast<double>(q[next]);
    const auto best = [](std::span<const float> x) { return std::ranges::max_element(x) - x.begin(); };
    result.same_best += best(p) == best(q) ? 1 : 0;
    ++result.tokens;
}

}  // namespace

double logits_divergence(std::span<const float> p, std::span<const float> q) {
    return divergence_of(p, log_sum_exp(p), q, log_sum_exp(q));
}

double Divergence::perplexity_original() const {
    return std::exp(nll_original / static_cast<double>(std::max<int64_t>(tokens, 1)));
}
double Divergence::perplexity_changed() const {
    return std::exp(nll_changed / static_cast<double>(std::max<int64_t>(tokens, 1)));
}

Divergence divergence(const DeepSeek& original, const DeepSeek& changed, Ops& ops, std::span<const int32_t> tokens,
                      int64_t context, const std::function<void(const Divergence&)>& progress) {
    check(context > 0 && original.config().vocab_size == changed.config().vocab_size, "divergence: different vocabularies");
    const auto grow = [&ops](int64_t bytes) { return ops.allocate(bytes); };
    Arena scratch("scratch", grow), saved("saved", grow);
    const auto vocab = static_cast<size_t>(original.config().vocab_size);
    const auto predicted = static_cast<int64_t>(tokens.size()) - 1;
    Divergence result;
    for (int64_t begin = 0; begin < predicted; begin += context) {
        const ArenaScope scope(scratch);
        Context cx{ops, scratch, saved};
        const int64_t end = std::min(begin + context, predicted);
        const auto window = tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
        const Tensor p_hidden = hidden_states(cx, original, window), q_hidden = hidden_states(cx, changed, window);
        for (int64_t row = 0; row < end - begin; row += kRows) {
            const ArenaScope rows(scratch);
            const int64_t last = std::min(row + kRows, end - begin);
            const std::vector<float> p = logits(cx, original, p_hidden.slice(0, row, last));
            const std::vector<float> q = logits(cx, changed, q_hidden.slice(0, row, last));
            for (int64_t i = row; i < last; ++i) {
                const size_t at = static_cast<size_t>(i - row) * vocab;
                add_position(result, std::span(p).subspan(at, vocab), std::span(q).subspan(at, vocab),
                             tokens[static_cast<size_t>(begin + i + 1)]);
            }
        }
        if (progress) progress(result);
    }
    return result;
}

}  // namespace fathom
