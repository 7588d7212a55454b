// What a back end may offer beside the instruction set, for steps of many short ops: told to the device at once, and not ending
// with more numbers than the host needs. Found by asking the back end: dynamic_cast<StepRecorder*>(&ops)
// (docs/decisions/007).
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "ops/sampling.h"
#include "tensor/tensor.h"

namespace fathom {

class StepRecorder {
public:
    virtual ~StepRecorder() = default;
    // Does what `ops` does. When the same key comes again, the ops of an earlier call may be run once more instead, on the
    // memory they named then: the key must tell everything that they depend on but what lies in that memory, which must belong
    // to this back end (Ops::allocate) or to the caller for as long as the back end lives. `ops` must not read back.
    // `after`: how often the key must have come before for a recording, which takes some steps' time, to be worth making.
    virtual void repeat(std::span<const int64_t> key, int64_t after, const std::function<void()>& ops) = 0;
    // index[i] = where the largest of logits[i] stands, the first among equals; -1 where one is NaN or none is finite. [n] i32,
    // [n, V] f32, rows may be strided.
    virtual void argmax(const Tensor& index, const Tensor& logits) = 0;
    // index[i] = the token that `queries[i]` draws from logits[i], by the rules of SamplingParams in their order and with the
    // random numbers of infer/sampler.h; -1 where a logit is NaN or no id is left. Sums of probabilities (top_p) may be rounded
    // otherwise than the host's. [n] i32, [n, V] f32, which stays as it is; rows may be strided. Not within repeat().
    virtual void sample(const Tensor& index, const Tensor& logits, std::span<const TokenQuery> queries) = 0;
};

}  // namespace fathom
