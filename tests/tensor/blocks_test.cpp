#include "tensor/blocks.h"

#include <gtest/gtest.h>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace fathom {
namespace {

// tools/make_block_vectors.py
std::vector<char> vectors() {
    std::ifstream file(FATHOM_TEST_DATA "/blocks/vectors.bin", std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

TEST(Blocks, DecodeToTheBitsOfThePythonPackageGguf) {
    const std::vector<char> file = vectors();
    int types = 0;
    for (size_t at = 0; at < file.size(); ++types) {
        uint32_t head[2];
        ASSERT_LE(at + sizeof head, file.size());
        std::memcpy(head, file.data() + at, sizeof head);
        const auto type = block_type_of_ggml(head[0]);
        ASSERT_TRUE(type) << head[0];
        const BlockTraits& traits = traits_of(*type);
        const auto n = static_cast<size_t>(head[1] * traits.elements), bytes = static_cast<size_t>(head[1] * traits.bytes);
        at += sizeof head;
        ASSERT_LE(at + bytes + 4 * n, file.size()) << traits.name;
        std::vector<float> decoded(n);
        decode_blocks(*type, file.data() + at, decoded.data(), static_cast<int64_t>(n));
        EXPECT_EQ(std::memcmp(decoded.data(), file.data() + at + bytes, 4 * n), 0) << traits.name;
        at += bytes + 4 * n;
    }
    EXPECT_EQ(types, 13);
}

TEST(Blocks, NamesAreFoundInAnyCase) {
    EXPECT_EQ(block_type_from_name("q4_k"), BlockType::kQ4K);
    EXPECT_EQ(block_type_from_name("MXFP4"), BlockType::kMxfp4);
    EXPECT_FALSE(block_type_from_name("none"));
    EXPECT_FALSE(block_type_from_name("q4"));
    EXPECT_FALSE(block_type_of_ggml(0));
}

TEST(Weight, CountsColumnsOfPackedCodes) {
    uint8_t memory[1];
    const Weight blocks(Tensor(memory, DType::kU8, {6, 2 * 144}), BlockType::kQ4K);
    EXPECT_EQ(blocks.out_features(), 6);
    EXPECT_EQ(blocks.in_features(), 512);
    EXPECT_EQ(blocks.rows(2, 5).out_features(), 3);
    Weight panels = blocks;
    panels.scheme = Scheme::kPanels;
    panels.codes = Tensor(memory, DType::kU8, {2, 3 * traits_of(BlockType::kQ4K).panel_bytes});
    EXPECT_EQ(panels.out_features(), 32);
    EXPECT_EQ(panels.in_features(), 768);
    EXPECT_EQ(panels.rows(16, 32).out_features(), 16);
    EXPECT_THROW((void)panels.rows(8, 16), LogicError);
    Weight groups(Tensor(memory, DType::kU8, {4, 64}));
    groups.scheme = Scheme::kGroups;
    groups.scales = Tensor(memory, DType::kF32, {4, 2});
    EXPECT_EQ(groups.in_features(), 128);
    EXPECT_EQ(groups.rows(1, 3).scales.dim(0), 2);
    EXPECT_EQ(groups.bytes(), 4 * 64 + 4 * 4 * 2);
}

}  // namespace
}  // namespace fathom
