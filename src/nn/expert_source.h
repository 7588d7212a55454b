// Where the weights of experts come from when not all of them are in memory.
#pragma once

#include <cstdint>
#include <span>

#include "nn/context.h"

namespace fathom {

class ExpertSource {
public:
    virtual ~ExpertSource() = default;
    // Before MoE layer `layer` multiplies: offsets [E + 1] says how many rows each expert has. Afterwards the weights of those
    // that have rows stand in the layer's parameters, until the next call.
    virtual void require(int64_t layer, const Tensor& offsets) = 0;
    // x [n, hidden]: what the router of `layer` has read. The source may guess from it what the next layer will require.
    virtual void foresee(Context& cx, int64_t layer, const Tensor& x) = 0;
    // A request whose prompt begins so (a hash) was read by these experts of `layer`.
    virtual void remember(uint64_t opening, int64_t layer, std::span<const int32_t> experts) = 0;
    // A request whose prompt begins so is about to be computed: the source may fetch what earlier ones used most.
    virtual void expect(uint64_t opening) = 0;
};

}  // namespace fathom
