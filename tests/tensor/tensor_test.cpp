#include "tensor/tensor.h"

#include <gtest/gtest.h>
#include <cstring>
#include <numeric>
#include <vector>

namespace fathom {
namespace {

class Tensors : public testing::Test {
protected:
    std::vector<float> memory_ = std::vector<float>(24);
    Tensor cube_{nullptr, DType::kF32, {2, 3, 4}};
    void SetUp() override {
        std::iota(memory_.begin(), memory_.end(), 0.0f);
        cube_.data = memory_.data();
    }
};

TEST_F(Tensors, AbsentEmptyAndWithoutDataAreThreeThings) {
    const Tensor absent, empty(memory_.data(), DType::kF32, {0, 4}), planned(nullptr, DType::kBF16, {5, 7});
    EXPECT_FALSE(absent);
    EXPECT_EQ(absent.size(), 0);
    EXPECT_EQ(absent.describe(), "absent");
    EXPECT_TRUE(empty);
    EXPECT_EQ(empty.size(), 0);
    EXPECT_TRUE(planned);
    EXPECT_EQ(planned.bytes(), 70);
    EXPECT_EQ(planned.describe(), "BF16[5, 7]");
    EXPECT_EQ(planned.slice(0, 1, 3).data, nullptr);
}

TEST_F(Tensors, AScalarHasRankZeroAndOneElement) {
    const Tensor scalar(memory_.data(), DType::kF32, {});
    EXPECT_TRUE(scalar);
    EXPECT_EQ(scalar.size(), 1);
    EXPECT_TRUE(scalar.contiguous());
    EXPECT_EQ(scalar.describe(), "F32[]");
}

TEST_F(Tensors, AreRowMajor) {
    EXPECT_EQ(cube_.stride, (std::array<int64_t, 4>{12, 4, 1, 0}));
    EXPECT_EQ(cube_.dim(-1), 4);
    EXPECT_EQ(cube_.size(), 24);
    EXPECT_TRUE(cube_.contiguous());
}

TEST_F(Tensors, ASliceSharesMemoryAndKeepsStrides) {
    const Tensor rows = cube_.slice(1, 1, 3);  // [2, 2, 4]
    EXPECT_EQ(rows.dim(1), 2);
    EXPECT_EQ(*rows.as<float>(), 4.0f);
    EXPECT_FALSE(rows.contiguous());
    EXPECT_TRUE(cube_.slice(0, 1, 2).contiguous());
    const Tensor columns = cube_.view({6, 4}).slice(1, 1, 3);  // [6, 2], stride 4
    EXPECT_EQ(columns.as<float>()[columns.stride[0] * 2], 9.0f);
    EXPECT_EQ(cube_.slice(2, 4, 4).size(), 0) << "an empty slice at the end is a slice";
}

TEST_F(Tensors, ASliceOutOfRangeIsABug) {
    EXPECT_THROW((void)cube_.slice(3, 0, 1), LogicError);
    EXPECT_THROW((void)cube_.slice(0, 0, 3), LogicError);
    EXPECT_THROW((void)cube_.slice(0, 2, 1), LogicError);
    EXPECT_THROW((void)cube_.slice(0, -1, 1), LogicError);
    EXPECT_THROW((void)cube_.slice(-1, 0, 1), LogicError);
}

TEST_F(Tensors, AViewKeepsTheElements) {
    const Tensor flat = cube_.view({24});
    EXPECT_EQ(flat.as<float>()[23], 23.0f);
    EXPECT_EQ(cube_.view({4, 1, 6}).stride, (std::array<int64_t, 4>{6, 6, 1, 0}));
    EXPECT_THROW((void)cube_.view({5, 5}), LogicError);
}

TEST_F(Tensors, AStridedMatrixMaySplitItsColumnsButNotItsRows) {
    const Tensor left = cube_.view({3, 8}).slice(1, 0, 4);  // [3, 4], row stride 8
    const Tensor heads = left.view({3, 2, 2});
    EXPECT_EQ(heads.stride, (std::array<int64_t, 4>{8, 2, 1, 0}));
    EXPECT_EQ(heads.as<float>()[heads.stride[0] * 1 + heads.stride[1] * 1], 10.0f);
    EXPECT_THROW((void)left.view({12}), LogicError);
    EXPECT_THROW((void)left.view({1, 3, 4}), LogicError);
}

TEST_F(Tensors, HaveAtMostFourDimensions) {
    EXPECT_NO_THROW(Tensor(nullptr, DType::kF32, {1, 1, 1, 1}));
    EXPECT_THROW(Tensor(nullptr, DType::kF32, {1, 1, 1, 1, 1}), LogicError);
}

TEST(Weight, RowsKnowTheirPlaceInTheScaleGrid) {
    const Weight weight(Tensor(nullptr, DType::kF8E4M3, {300, 200}), Tensor(nullptr, DType::kF32, {3, 2}));
    EXPECT_EQ(weight.scheme, Scheme::kFp8Block);
    const Weight part = weight.rows(130, 300).rows(10, 20);
    EXPECT_EQ(part.out_features(), 10);
    EXPECT_EQ(part.in_features(), 200);
    EXPECT_EQ(part.row0, 140);
    EXPECT_EQ(part.scales.dim(0), 3) << "the grid stays whole; row0 says where the rows stand in it";
}

TEST(Buffer, IsAlignedAndZeroed) {
    for (const int64_t bytes : {0, 1, 63, 64, 1000}) {
        const Buffer buffer = Buffer::host(bytes);
        EXPECT_EQ(buffer.bytes(), bytes);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
        for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(static_cast<const char*>(buffer.data())[i], 0);
    }
}

TEST(Buffer, SaysThatMemoryIsShort) {
    try {
        (void)Buffer::host(int64_t{1} << 60);
        FAIL() << "2^60 bytes were granted";
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kMemory);
        EXPECT_NE(std::string(error.what()).find("smaller batch"), std::string::npos);
    }
}

TEST(Arena, AllocationsAreAlignedAndDoNotOverlap) {
    Arena arena("test", Buffer::host, 4096);
    std::vector<Tensor> tensors;
    for (int i = 1; i < 100; ++i) {
        tensors.push_back(arena.allocate(DType::kU8, {i}));
        std::memset(tensors.back().data, i, static_cast<size_t>(i));
    }
    for (int i = 1; i < 100; ++i) {
        const Tensor& t = tensors[static_cast<size_t>(i - 1)];
        EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data) % 64, 0u);
        for (int64_t b = 0; b < t.size(); ++b) ASSERT_EQ(t.as<uint8_t>()[b], i);
    }
}

TEST(Arena, ALoopOfEqualStepsAllocatesNothingAfterItsFirst) {
    int grown = 0;
    Arena arena(
        "test", [&](int64_t bytes) { return ++grown, Buffer::host(bytes); }, 1000);
    const auto step = [&] {
        const ArenaScope scope(arena);
        for (int i = 0; i < 5; ++i) (void)arena.allocate(DType::kF32, {100});
        return arena.used();
    };
    const int64_t used = step();
    const int after_first = grown;
    for (int i = 0; i < 10; ++i) EXPECT_EQ(step(), used);
    EXPECT_EQ(grown, after_first);
    EXPECT_EQ(arena.used(), 0);
    EXPECT_EQ(arena.peak(), used);
    EXPECT_GE(arena.reserved(), used);
}

TEST(Arena, ScopesNest) {
    Arena arena("test");
    (void)arena.allocate(DType::kF32, {16});
    const int64_t outer = arena.used();
    void* first = nullptr;
    {
        const ArenaScope scope(arena);
        first = arena.allocate(DType::kF32, {1000}).data;
        {
            const ArenaScope inner(arena);
            (void)arena.allocate(DType::kF32, {1000});
        }
        EXPECT_EQ(arena.used(), outer + 4032);  // 4000 bytes in units of 64
    }
    EXPECT_EQ(arena.used(), outer);
    EXPECT_EQ(arena.allocate(DType::kF32, {1000}).data, first) << "released memory is used again";
}

TEST(Arena, AllocationsLargerThanAChunkHaveOneOfTheirOwn) {
    Arena arena("test", Buffer::host, 256);
    const Tensor big = arena.allocate(DType::kF32, {1000});
    std::memset(big.data, 1, 4000);
    EXPECT_GE(arena.reserved(), 4000);
}

TEST(Arena, SaysWhoseMemoryIsShort) {
    Arena arena("scratch", [](int64_t) -> Buffer { throw Error(ErrorKind::kMemory, "cannot allocate"); });
    try {
        (void)arena.allocate(DType::kF32, {1});
        FAIL();
    } catch (const Error& error) {
        EXPECT_STREQ(error.what(), "scratch memory: cannot allocate");
    }
}

}  // namespace
}  // namespace fathom
