// Multi-token prediction module (DeepSeek-V3 2.2): one more decoder layer that sees the hidden state of token i and the
// embedding of token i + k, and predicts token i + k + 1 through the shared head.
#pragma once

#include "nn/block.h"

namespace fathom {

class Mtp {
public:
    struct Saved {
        Tensor hidden, embedding;  // [n, hidden] inputs
        Tensor joined;             // [n, 2 hidden] = [enorm(embedding) | hnorm(hidden)]
        Tensor y;                  // [n, hidden] the block's output, before shared_head.norm
        Block::Saved block;
    };

    Mtp(int64_t hidden_size, double rms_norm_eps, Block block);
    void visit(const Names& names);

    // hidden [n, d]: the state one depth earlier (at depth 1 the main model's, after its final norm); embedding [n, d] of the
    // token k ahead. Returns y [n, d]: the next depth's `hidden`, and through output() the head's input. Kept in cx.saved when
    // `saved`.
    [[nodiscard]] Tensor forward(Context& cx, const Tensor& hidden, const Tensor& embedding, const Batch& batch,
                                 const LayerCache* cache, Saved* saved) const;
    // shared_head.norm: what the head reads.
    [[nodiscard]] Tensor output(Context& cx, const Tensor& y) const { return rms_norm(cx, y, shared_head_norm_); }
    // doutput [n, d] is the gradient at output(); dnext [n, d] what came back from the next depth (absent at the last). Both
    // results are given by the caller: dhidden (=), dembedding (=).
    void backward(Context& cx, const Tensor& dhidden, const Tensor& dembedding, const Tensor& doutput, const Tensor& dnext,
                  const Batch& batch, const Saved& saved) const;

    [[nodiscard]] Block& block() { return block_; }
    [[nodiscard]] const Block& block() const { return block_; }

private:
    RmsNorm enorm_, hnorm_;
    Linear eh_proj_;  // [d, 2 d]: the released weights take the embedding half first
    Block block_;
    RmsNorm shared_head_norm_;
};

}  // namespace fathom
