// Weights of random blocks of GGUF types.
#pragma once

#include <cstring>
#include <vector>

#include "tensor/blocks.h"
#include "tensors.h"

namespace fathom {

// Byte offsets of a block's half-precision factors.
inline std::vector<int64_t> half_offsets(BlockType type) {
    switch (type) {
        case BlockType::kQ41:
        case BlockType::kQ51:
        case BlockType::kQ4K:
        case BlockType::kQ5K:
            return {0, 2};
        case BlockType::kQ2K:
            return {80, 82};
        case BlockType::kQ3K:
            return {108};
        case BlockType::kQ6K:
            return {208};
        case BlockType::kMxfp4:
            return {};
        default:
            return {0};
    }
}

inline Weight random_blocks(Tensors& t, BlockType type, int64_t out, int64_t in) {
    const BlockTraits& traits = traits_of(type);
    const Tensor codes = t.empty(DType::kU8, {out, in / traits.elements * traits.bytes});
    for (int64_t i = 0; i < codes.size(); ++i) codes.as<uint8_t>()[i] = static_cast<uint8_t>(t.rng().below(256));
    for (int64_t b = 0; b < out * in / traits.elements; ++b) {
        for (const int64_t at : half_offsets(type)) {
            const Float16 d(static_cast<float>(0.01 * t.rng().normal()));
            std::memcpy(codes.as<uint8_t>() + b * traits.bytes + at, &d.bits, 2);
        }
        if (type == BlockType::kMxfp4)
            codes.as<uint8_t>()[b * traits.bytes] = static_cast<uint8_t>(b % 7 < 2 ? b % 7 : 115 + t.rng().below(10));
    }
    return {codes, type};
}

}  // namespace fathom
