// What a layer needs besides its parameters and its input: the hardware, and memory of two lifetimes.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

#include "ops/ops.h"

namespace fathom {

// A dtype, or a block type of which a row is a sequence (tensor/blocks.h).
struct CacheType {
    DType dtype = DType::kF32;
    BlockType block = BlockType::kNone;  // or kQ80, kQ40: then the dtype does not count

    CacheType() = default;
    CacheType(DType plain) : dtype(plain) {}  // NOLINT(google-explicit-constructor): a dtype is a type of cache
    explicit CacheType(BlockType type) : block(type) {}
    bool operator==(const CacheType&) const = default;
};

class ExpertSource;

struct Context {
    Ops& ops;
    Arena& scratch;                   // until the end of the enclosing ArenaScope: temporaries of one block
    Arena& saved;                     // from a forward to its backward
    CacheType cache_type;             // how a latent is rounded before attention sees it, see `deterministic`
    bool deterministic = false;       // one attention form and one cache rounding everywhere (docs/decisions/001)
    ExpertSource* experts = nullptr;  // who brings experts into memory; null: all are there

    // Uninitialised activations; kept until the backward when `keep`.
    [[nodiscard]] Tensor empty(std::initializer_list<int64_t> dims, bool keep = false) {
        return (keep ? saved : scratch).allocate(ops.compute_dtype(), dims);
    }
    // Of the precise type: see Ops::precise_dtype.
    [[nodiscard]] Tensor empty_precise(std::initializer_list<int64_t> dims, bool keep = false) {
        return (keep ? saved : scratch).allocate(ops.precise_dtype(), dims);
    }
    [[nodiscard]] Tensor empty_ints(std::initializer_list<int64_t> dims, bool keep = false) {
        return (keep ? saved : scratch).allocate(DType::kI32, dims);
    }
    [[nodiscard]] Tensor zeros(std::initializer_list<int64_t> dims, bool keep = false) {
        Tensor y = empty(dims, keep);
        ops.fill(y, 0);
        return y;
    }
    // Host integers on the device.
    [[nodiscard]] Tensor ints(std::span<const int32_t> values, bool keep = false) {
        Tensor y = empty_ints({static_cast<int64_t>(values.size())}, keep);
        ops.write(y, values.data());
        return y;
    }
};

}  // namespace fathom
