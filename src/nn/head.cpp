#include "nn/head.h"

#include <algorithm>

namespace fathom {
namespace {

// Logits of this many rows exist at a time: 1024 rows of V3's vocabulary are 530 MB in f32, of an 8k vocabulary 34 MB.
constexpr int64_t kRowsPerChunk = 1024;

template <class Body>
void for_row_chunks(int64_t rows, const Body& body) {
    for (int64_t begin = 0; begin < rows; begin += kRowsPerChunk) body(begin, std::min(begin + kRowsPerChunk, rows));
}

// Where the gradient of the logits y goes: in their place, or into the compute type where that is narrower.
Tensor gradient_of(Context& cx, const Tensor& y) {
    return cx.ops.compute_dtype() == y.dtype ? y : cx.empty({y.dim(0), y.dim(1)});
}

}  // namespace

void Head::logits_backward(Context& cx, const Tensor& dhidden, const Tensor& dlogits, const Tensor& hidden) const {
    add_gradient(cx, lm_head_.weight, dlogits, hidden);
    cx.ops.matmul_dgrad(dhidden, dlogits, lm_head_.weight.weight);
}

void Head::loss(Context& cx, const Tensor& loss, const Tensor& hidden, const Tensor& targets) const {
    for_row_chunks(hidden.dim(0), [&](int64_t begin, int64_t end) {
        const ArenaScope scope(cx.scratch);
        const Tensor y = logits(cx, hidden.slice(0, begin, end));
        cx.ops.cross_entropy(loss.slice(0, begin, end), y, targets.slice(0, begin, end));
    });
}

void Head::loss_and_gradient(Context& cx, const Tensor& loss, const Tensor& dhidden, const Tensor& hidden,
                             const Tensor& targets, double scale) const {
    for_row_chunks(hidden.dim(0), [&](int64_t begin, int64_t end) {
        const ArenaScope scope(cx.scratch);
        const Tensor x = hidden.slice(0, begin, end), t = targets.slice(0, begin, end);
        const Tensor y = logits(cx, x), dy = gradient_of(cx, y);
        cx.ops.cross_entropy(loss.slice(0, begin, end), y, t);
        cx.ops.cross_entropy_backward(dy, y, t, scale);
        logits_backward(cx, dhidden.slice(0, begin, end), dy, x);
    });
}

void Head::logprob(Context& cx, const Tensor& logprob, const Tensor& entropy, const Tensor& hidden, const Tensor& targets,
                   const Tensor& allowed, double temperature) const {
    for_row_chunks(hidden.dim(0), [&](int64_t begin, int64_t end) {
        const ArenaScope scope(cx.scratch);
        const auto cut = [&](const Tensor& x) { return x ? x.slice(0, begin, end) : x; };
        const Tensor y = logits(cx, cut(hidden));
        cx.ops.token_logprob(cut(logprob), cut(entropy), y, cut(targets), cut(allowed), temperature);
    });
}

void Head::logprob_backward(Context& cx, const Tensor& dhidden, const Tensor& hidden, const Tensor& targets,
                            const Tensor& allowed, const Tensor& dlogprob, double temperature) const {
    for_row_chunks(hidden.dim(0), [&](int64_t begin, int64_t end) {
        const ArenaScope scope(cx.scratch);
        const auto cut = [&](const Tensor& x) { return x ? x.slice(0, begin, end) : x; };
        const Tensor x = cut(hidden), y = logits(cx, x), dy = gradient_of(cx, y);
        cx.ops.token_logprob_backward(dy, y, cut(targets), cut(allowed), cut(dlogprob), temperature);
        logits_backward(cx, cut(dhidden), dy, x);
    });
}

void Head::divergence_and_gradient(Context& cx, const Tensor& loss, const Tensor& dhidden, const Tensor& hidden,
                                   const Head& teacher, const Tensor& teacher_hidden, const Tensor& targets, bool reverse,
                                   double scale) const {
    for_row_chunks(hidden.dim(0), [&](int64_t begin, int64_t end) {
        const ArenaScope scope(cx.scratch);
        const auto cut = [&](const Tensor& of) { return of.slice(0, begin, end); };
        const Tensor x = cut(hidden), y = logits(cx, x), q = teacher.logits(cx, cut(teacher_hidden)), dy = gradient_of(cx, y);
        cx.ops.kl_divergence(cut(loss), y, q, cut(targets), reverse);
        cx.ops.kl_divergence_backward(y, y, q, cut(targets), reverse, scale);
        if (dy.dtype != y.dtype) cx.ops.copy(dy, y);
        logits_backward(cx, cut(dhidden), dy, x);
    });
}

}  // namespace fathom
