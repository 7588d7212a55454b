// The output head: logits, and the cross-entropy that never holds all of them.
#pragma once

#include "nn/linear.h"

namespace fathom {

// y = W x over the vocabulary. The matrix is given, not owned: it may be the embedding (tie_word_embeddings) and MTP modules
// share it.
class Head {
public:
    explicit Head(const Linear& lm_head) : lm_head_(lm_head) {}

    // hidden [n, d] -> logits [n, vocab] in cx.scratch.
    [[nodiscard]] Tensor logits(Context& cx, const Tensor& hidden) const { return precise_linear(cx, hidden, lm_head_); }
    // The same into y [n, vocab], of the precise type.
    void logits_to(Context& cx, const Tensor& y, const Tensor& hidden) const { linear_to(cx, y, hidden, lm_head_); }
    // loss [n] = -log p(targets[i]), 0 where targets[i] < 0. targets [n] i32.
    void loss(Context& cx, const Tensor& loss, const Tensor& hidden, const Tensor& targets) const;
    // The same, and dhidden [n, d] = the gradient of `scale` times the sum of the losses; accumulates the head's gradient.
    void loss_and_gradient(Context& cx, const Tensor& loss, const Tensor& dhidden, const Tensor& hidden, const Tensor& targets,
                           double scale) const;

    // dlogits [n, vocab], of the compute type -> dhidden [n, d]; accumulates the head's gradient. All that a classifier's
    // scores need, its logits being few.
    void logits_backward(Context& cx, const Tensor& dhidden, const Tensor& dlogits, const Tensor& hidden) const;

    // Of a policy: log-probability of the targets, and entropy [n] unless absent (Ops::token_logprob).
    void logprob(Context& cx, const Tensor& logprob, const Tensor& entropy, const Tensor& hidden, const Tensor& targets,
                 const Tensor& allowed, double temperature) const;
    // dlogprob [n] -> dhidden [n, d]; accumulates the head's gradient. Logits are computed again rather than kept.
    void logprob_backward(Context& cx, const Tensor& dhidden, const Tensor& hidden, const Tensor& targets,
                          const Tensor& allowed, const Tensor& dlogprob, double temperature) const;

    // Distillation from a teacher's head over its own hidden states [n, d_teacher]: loss [n] is the divergence of the two
    // distributions (Ops::kl_divergence), dhidden [n, d] the gradient of `scale` times its sum; accumulates the head's
    // gradient.
    void divergence_and_gradient(Context& cx, const Tensor& loss, const Tensor& dhidden, const Tensor& hidden,
                                 const Head& teacher, const Tensor& teacher_hidden, const Tensor& targets, bool reverse,
                                 double scale) const;

private:
    const Linear& lm_head_;
};

}  // namespace fathom
