#include "nn/mtp.h"

#include <utility>

namespace fathom {

Mtp::Mtp(int64_t hidden_size, double rms_norm_eps, Block block)
    : enorm_(hidden_size, rms_norm_eps),
      hnorm_(hidden_size, rms_norm_eps),
      eh_proj_(hidden_size, 2 * hidden_size),
      block_(std::move(block)),
      shared_head_norm_(hidden_size, rms_norm_eps) {}

void Mtp::visit(const Names& names) {
    enorm_.visit(names.in("enorm"));
    hnorm_.visit(names.in("hnorm"));
    eh_proj_.visit(names.in("eh_proj"));
    block_.visit(names);
    shared_head_norm_.visit(names.in("shared_head.norm"));
}

Tensor Mtp::forward(Context& cx, const Tensor& hidden, const Tensor& embedding, const Batch& batch, const LayerCache* cache,
                    Saved* saved) const {
    const bool keep = saved != nullptr;
    const int64_t n = hidden.dim(0), d = hidden.dim(1);
    const Tensor joined = cx.empty({n, 2 * d}, keep);
    cx.ops.rms_norm(joined.slice(1, 0, d), embedding, enorm_.weight.vector(), enorm_.eps);
    cx.ops.rms_norm(joined.slice(1, d, 2 * d), hidden, hnorm_.weight.vector(), hnorm_.eps);
    const Tensor x = linear(cx, joined, eh_proj_, keep), y = cx.empty({n, d}, keep);
    block_.forward(cx, y, x, batch, cache, keep ? &saved->block : nullptr);
    if (keep) saved->hidden = hidden, saved->embedding = embedding, saved->joined = joined, saved->y = y;
    return y;
}

void Mtp::backward(Context& cx, const Tensor& dhidden, const Tensor& dembedding, const Tensor& doutput, const Tensor& dnext,
                   const Batch& batch, const Saved& saved) const {
    const ArenaScope scope(cx.scratch);
    const int64_t d = dhidden.dim(1);
    const Tensor dy = rms_norm_backward(cx, doutput, saved.y, shared_head_norm_);
    if (dnext) cx.ops.add(dy, dy, dnext);
    block_.backward(cx, dy, dy, batch, saved.block);
    const Tensor djoined = linear_backward(cx, dy, saved.joined, eh_proj_);
    cx.ops.rms_norm_backward(dembedding, summed_gradient(cx.ops, enorm_.weight), djoined.slice(1, 0, d), saved.embedding,
                             enorm_.weight.vector(), enorm_.eps);
    cx.ops.rms_norm_backward(dhidden, summed_gradient(cx.ops, hnorm_.weight), djoined.slice(1, d, 2 * d), saved.hidden,
                             hnorm_.weight.vector(), hnorm_.eps);
}

}  // namespace fathom
