// Panels: quantized weights in the order in which the CPU multiplies them. 16 rows stand side by side, so that lanes run over
// output columns (docs/decisions/001) and one row of activations is broadcast, four bytes at a time, against them.
//
// A panel holds the blocks of 16 rows in the order in which they are met, one stream of bytes: any second one (the factors
// behind all codes, or two panels at a time) halves what the hardware's prefetch brings (docs/performance.md).
//   a block           16 halves d, where the type has a minimum 16 halves m (numbers in f32 where it is no type of files), then
//                     its steps of 32 columns
//   a step            its codes, then the scales of its groups of columns, a byte each (PanelFactors)
//   codes of a step   unsigned, in eight quads: quad q, place 4 r + j is column 4 q + j of row r. 64 bytes for each bit:
//                       8 bits   a byte each, quad after quad
//                       4 to 6   quad 2 v in the low and quad 2 v + 1 in the high nibbles of vector v of 64 bytes, then the
//                                bits above: one as a mask of 64 bits a quad, or two as for
//                       2, 3     quad 4 h + j in bits 2 j of vector h; the third bit as a mask of 64 bits a quad
// A row takes the bytes of the file, but for 6-bit scales, which have 8 bits here (Q4_K: 148 bytes a block instead of 144).
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace fathom {

inline constexpr int64_t kPanelStep = 32;   // columns that share a scale of the activations
inline constexpr int64_t kPanelLanes = 16;  // rows of weights

// What a block's factors are; number = scale code + offset in each group.
enum class PanelFactors : uint8_t {
    kHalf,       // scale d
    kHalfMin,    // scale d, offset m
    kE8m0,       // scale 2^(byte - 128); no halves
    kSigned,     // scale d s, s a signed byte per group
    kScaleMin,   // scale d s, offset -(m t): the s of the step's groups, then their t
    kNibbleMin,  // the same, s and t the low and high nibble of one byte
    kFloat,      // scale d in f32
    kFloatMin,   // the same, and an offset in f32
};

struct PanelTraits {
    int bits;  // of a code
    PanelFactors factors;
    int zero;          // the code that means 0, before scale and offset
    bool half_groups;  // a group is 16 columns instead of 32
    bool table;        // codes are places in table_of
    int64_t steps;     // of a block
    int64_t d_at;      // in a block of the file: where d stands, and behind it m
    int64_t codes_at;  // where its codes begin, or their low bits

    [[nodiscard]] constexpr int64_t code_bytes() const { return 64 * bits; }  // of a step
    [[nodiscard]] constexpr int64_t groups_per_step() const { return half_groups ? 2 : 1; }
    [[nodiscard]] constexpr bool has_offset() const {
        return factors == PanelFactors::kHalfMin || factors == PanelFactors::kScaleMin || factors == PanelFactors::kNibbleMin ||
               factors == PanelFactors::kFloatMin;
    }
    [[nodiscard]] constexpr bool wide() const { return factors == PanelFactors::kFloat || factors == PanelFactors::kFloatMin; }
    // Whether a block's first factors are all: its steps have none of their own.
    [[nodiscard]] constexpr bool of_block() const {
        return wide() || factors == PanelFactors::kHalf || factors == PanelFactors::kHalfMin;
    }
    // Bytes before a block's steps: 16 factors, then 16 offsets.
    [[nodiscard]] constexpr int64_t head_bytes() const {
        return factors == PanelFactors::kE8m0 ? 0 : (has_offset() ? 2 : 1) * factor_bytes();
    }
    [[nodiscard]] constexpr int64_t factor_bytes() const { return (wide() ? 4 : 2) * kPanelLanes; }
    [[nodiscard]] constexpr int64_t step_bytes() const {
        const bool scales = !of_block();
        return code_bytes() + (scales ? kPanelLanes * groups_per_step() * (factors == PanelFactors::kScaleMin ? 2 : 1) : 0);
    }
    [[nodiscard]] constexpr int64_t block_bytes() const { return head_bytes() + steps * step_bytes(); }  // of 16 rows
};

[[nodiscard]] constexpr PanelTraits panel_traits(BlockType type) {
    using enum PanelFactors;
    switch (type) {
        case BlockType::kQ40:
            return {4, kHalf, 8, false, false, 1, 0, 2};
        case BlockType::kQ41:
            return {4, kHalfMin, 0, false, false, 1, 0, 4};
        case BlockType::kQ50:
            return {5, kHalf, 16, false, false, 1, 0, 6};
        case BlockType::kQ51:
            return {5, kHalfMin, 0, false, false, 1, 0, 8};
        case BlockType::kQ2K:
            return {2, kNibbleMin, 0, true, false, 8, 80, 16};
        case BlockType::kQ3K:
            return {3, kSigned, 4, true, false, 8, 108, 32};
        case BlockType::kQ4K:
            return {4, kScaleMin, 0, false, false, 8, 0, 16};
        case BlockType::kQ5K:
            return {5, kScaleMin, 0, false, false, 8, 0, 48};
        case BlockType::kQ6K:
            return {6, kSigned, 32, true, false, 8, 208, 0};
        case BlockType::kIq4Nl:
            return {4, kHalf, 128, false, true, 1, 0, 2};
        case BlockType::kIq4Xs:
            return {4, kSigned, 128, false, true, 8, 0, 8};
        case BlockType::kMxfp4:
            return {4, kE8m0, 12, false, true, 1, 0, 1};
        case BlockType::kInt8By32:
            return {8, kFloat, 128, false, false, 1, 0, 0};
        case BlockType::kInt8By128:
            return {8, kFloat, 128, false, false, 4, 0, 0};
        case BlockType::kInt4By32:
            return {4, kFloat, 8, false, false, 1, 0, 0};
        case BlockType::kInt4By64:
            return {4, kFloat, 8, false, false, 2, 0, 0};
        case BlockType::kInt4By128:
            return {4, kFloat, 8, false, false, 4, 0, 0};
        case BlockType::kInt4ZeroBy32:
            return {4, kFloatMin, 0, false, false, 1, 0, 0};
        case BlockType::kInt4ZeroBy64:
            return {4, kFloatMin, 0, false, false, 2, 0, 0};
        case BlockType::kInt4ZeroBy128:
            return {4, kFloatMin, 0, false, false, 4, 0, 0};
        default:
            return {8, kHalf, 128, false, false, 1, 0, 2};  // Q8_0
    }
}

// What the codes of a type with a table stand for, plus its `zero`.
struct PanelTable {
    uint8_t value[16];
};
[[nodiscard]] constexpr PanelTable table_of(BlockType type) {
    if (type == BlockType::kMxfp4) return {{12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0}};
    return {{1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241}};
}

// The type of the panels that a weight of kBlocks or kGroups can have, a multiple of 16 rows; kNone: none. Groups of whole
// numbers are multiples of 32 columns; of several types it is the one with the fewest scales.
[[nodiscard]] BlockType panels_of(const Weight& w);

// Writes rows [16 panel, 16 panel + 16) of `w` to `to`, traits_of(panels_of(w)).panel_bytes times the blocks of a row.
void pack_panel(uint8_t* to, const Weight& w, int64_t panel);

// y[r, 0:in] = rows [first, last) of a panel of `steps` steps, `stride` floats apart.
void decode_panel(float* y, int64_t stride, BlockType type, const uint8_t* panel, int64_t steps, int64_t first, int64_t last);

// One step of a panel as signed integers and factors: number = scale[k / 16] code + offset[k / 16], for each lane.
struct PanelStep {
    int16_t code[kPanelStep][kPanelLanes];
    float scale[2][kPanelLanes];
    float offset[2][kPanelLanes];
};
// `panel`: its first byte.
void unpack_step(PanelStep& out, BlockType type, const uint8_t* panel, int64_t step);
void unpack_factors(PanelStep& out, BlockType type, const uint8_t* panel, int64_t step);  // all but the codes

}  // namespace fathom
