#include "quant/encode.h"

#include <gtest/gtest.h>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/rng.h"

namespace fathom {
namespace {

std::vector<float> normal(int64_t n, uint64_t seed) {
    Rng rng(seed);
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = static_cast<float>(rng.normal());
    return x;
}

std::vector<float> through(BlockType type, const std::vector<float>& x, const float* importance = nullptr) {
    const BlockTraits& traits = traits_of(type);
    const auto n = static_cast<int64_t>(x.size());
    std::vector<uint8_t> codes(static_cast<size_t>(n / traits.elements * traits.bytes));
    std::vector<float> y(x.size());
    encode_blocks(type, x.data(), codes.data(), n, importance);
    decode_blocks(type, codes.data(), y.data(), n);
    return y;
}

double relative_error(const std::vector<float>& x, const std::vector<float>& y, const std::vector<float>& w = {}) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        const double weight = w.empty() ? 1 : static_cast<double>(w[i]);
        error += weight * std::pow(static_cast<double>(x[i] - y[i]), 2);
        norm += weight * std::pow(static_cast<double>(x[i]), 2);
    }
    return std::sqrt(error / norm);
}

// tools/make_block_vectors.py
TEST(Encode, BlocksOf32AreTheBytesOfThePythonPackageGguf) {
    std::ifstream stream(FATHOM_TEST_DATA "/blocks/encoded.bin", std::ios::binary);
    const std::vector<char> file{std::istreambuf_iterator<char>(stream), {}};
    size_t at = 0;
    int types = 0;
    for (; at < file.size(); ++types) {
        uint32_t head[2];
        std::memcpy(head, file.data() + at, sizeof head);
        at += sizeof head;
        const BlockType type = block_type_of_ggml(head[0]).value();
        const BlockTraits& traits = traits_of(type);
        std::vector<float> x(head[1] * static_cast<size_t>(traits.elements));
        std::memcpy(x.data(), file.data() + at, 4 * x.size());
        at += 4 * x.size();
        std::vector<uint8_t> codes(head[1] * static_cast<size_t>(traits.bytes));
        ASSERT_LE(at + codes.size(), file.size());
        encode_blocks(type, x.data(), codes.data(), static_cast<int64_t>(x.size()));
        EXPECT_EQ(std::memcmp(codes.data(), file.data() + at, codes.size()), 0) << traits.name;
        at += codes.size();
    }
    EXPECT_EQ(types, 5);
}

TEST(Encode, NormalNumbersLoseAsMuchAsTheTypeHasBits) {
    // Upper limits of the root mean square error of normal numbers, in the order of the bits per number.
    const std::pair<BlockType, double> most[] = {
        {BlockType::kQ80, 0.007},  {BlockType::kQ6K, 0.021},   {BlockType::kQ50, 0.05},   {BlockType::kQ51, 0.045},
        {BlockType::kQ5K, 0.04},   {BlockType::kQ40, 0.10},    {BlockType::kQ41, 0.09},   {BlockType::kQ4K, 0.08},
        {BlockType::kIq4Nl, 0.08}, {BlockType::kIq4Xs, 0.085}, {BlockType::kMxfp4, 0.14}, {BlockType::kQ3K, 0.17},
        {BlockType::kQ2K, 0.33}};
    const std::vector<float> x = normal(4096, 1);
    for (const auto& [type, limit] : most) EXPECT_LT(relative_error(x, through(type, x)), limit) << traits_of(type).name;
}

TEST(Encode, ImportantColumnsLoseLess) {
    const std::vector<float> x = normal(4096, 2);
    std::vector<float> importance(x.size());
    for (size_t i = 0; i < x.size(); ++i) importance[i] = i % 8 == 0 ? 100.0f : 1.0f;
    for (const BlockType type :
         {BlockType::kQ2K, BlockType::kQ3K, BlockType::kQ4K, BlockType::kQ5K, BlockType::kQ6K, BlockType::kIq4Nl}) {
        const double with = relative_error(x, through(type, x, importance.data()), importance);
        const double without = relative_error(x, through(type, x), importance);
        EXPECT_LT(with, 0.97 * without) << traits_of(type).name;
    }
}

TEST(Encode, ZerosAndConstantsAndOneSpikeSurvive) {
    for (int number = 1; number <= static_cast<int>(BlockType::kMxfp4); ++number) {
        const auto type = static_cast<BlockType>(number);
        std::vector<float> x(256, 0.0f);
        for (const float y : through(type, x)) EXPECT_EQ(y, 0.0f) << traits_of(type).name;
        x[17] = 3;
        EXPECT_NEAR(through(type, x)[17], 3, 0.35) << traits_of(type).name;
        std::ranges::fill(x, -2.0f);
        for (const float y : through(type, x)) EXPECT_NEAR(y, -2, 0.3) << traits_of(type).name;
    }
}

}  // namespace
}  // namespace fathom
