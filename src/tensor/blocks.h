// The block types of GGUF files: a row of a matrix is a sequence of blocks, each some bytes that stand for 32 or 256 numbers.
// The layouts are those of ggml; what they mean is written once, in blocks.cpp, as plain loops: the definition that every
// kernel is tested against.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace fathom {

enum class BlockType : uint8_t {
    kNone,
    kQ40,
    kQ41,
    kQ50,
    kQ51,
    kQ80,
    kQ2K,
    kQ3K,
    kQ4K,
    kQ5K,
    kQ6K,
    kIq4Nl,
    kIq4Xs,
    kMxfp4,
    // Not of files: groups of columns of Scheme::kGroups as the CPU's panels have them (cpu/quant_panel.h), scales and offsets
    // in f32.
    kInt8By32,
    kInt8By128,
    kInt4By32,
    kInt4By64,
    kInt4By128,
    kInt4ZeroBy32,  // with zero points
    kInt4ZeroBy64,
    kInt4ZeroBy128,
};
inline constexpr BlockType kLastBlockOfFiles = BlockType::kMxfp4, kLastBlockType = BlockType::kInt4ZeroBy128;

struct BlockTraits {
    std::string_view name;  // ggml's: "Q4_K"
    uint32_t ggml_type;     // its number in GGUF files
    int64_t elements;       // numbers per block
    int64_t bytes;          // of one block of a file
    int64_t panel_bytes;    // of 16 rows of one block in the CPU's panels (cpu/quant_panel.h); 0: has none
};

[[nodiscard]] const BlockTraits& traits_of(BlockType type);
[[nodiscard]] std::optional<BlockType> block_type_of_ggml(uint32_t ggml_type);
// By name, any case: "q4_k".
[[nodiscard]] std::optional<BlockType> block_type_from_name(std::string_view name);

// y[0:n] = the numbers of the blocks at `codes`; n is a multiple of traits_of(type).elements. Bit for bit what ggml and the
// Python package gguf give.
void decode_blocks(BlockType type, const void* codes, float* y, int64_t n);

// What every block type comes down to: number = scale code + offset, with one scale and offset per 16 columns. The integers are
// what the CPU multiplies by.
struct BlockCodes {
    static constexpr int64_t kMax = 256, kGroup = 16;
    int16_t code[kMax];
    float scale[kMax / kGroup];
    float offset[kMax / kGroup];
};
// One block. scale code + offset is the number decode_blocks gives.
void split_block(BlockType type, const void* block, BlockCodes& codes);

}  // namespace fathom
