// One decoder layer: x + Attention(RMSNorm(x)), then x + FeedForward(RMSNorm(x)).
#pragma once

#include <variant>
#include <vector>

#include "nn/mha.h"
#include "nn/mla.h"
#include "nn/mlp.h"
#include "nn/moe.h"

namespace fathom {

// The kinds are alternatives of one layer, chosen by the config; a new kind of attention or feed-forward is one more
// alternative.
using Attention = std::variant<Mla, Mha>;
using FeedForward = std::variant<Mlp, Moe>;

class Block {
public:
    struct Saved {
        Tensor x;  // [n, hidden] the residual stream before attention
        Tensor h;  // [n, hidden] and between attention and feed-forward
        std::variant<Mla::Saved, Mha::Saved> attention;
        std::variant<Mlp::Saved, Moe::Saved> feed_forward;
    };

    Block(int64_t hidden_size, double rms_norm_eps, const Attention& attention, FeedForward feed_forward);
    void visit(const Names& names);
    [[nodiscard]] std::vector<CacheState> cache_states() const;

    // y = the residual stream after this layer, given by the caller. y, x [n, hidden], distinct. Leaves nothing in cx.scratch.
    void forward(Context& cx, const Tensor& y, const Tensor& x, const Batch& batch, const LayerCache* cache,
                 Saved* saved) const;
    // dx [n, hidden] is given by the caller and may be dy.
    void backward(Context& cx, const Tensor& dx, const Tensor& dy, const Batch& batch, const Saved& saved) const;

    [[nodiscard]] Moe* moe() { return std::get_if<Moe>(&feed_forward_); }
    [[nodiscard]] Mla* mla() { return std::get_if<Mla>(&attention_); }

private:
    RmsNorm input_layernorm_, post_attention_layernorm_;
    Attention attention_;
    FeedForward feed_forward_;
};

}  // namespace fathom
