// Whole experts (src/cpu/experts.cpp) say the bytes of the ops one by one.
#include <numeric>

#include "cpu/random_blocks.h"
#include "cpu/tensors.h"

namespace fathom {
namespace {

struct Model {
    std::vector<Weight> gates, ups, downs;
};

class Experts : public testing::TestWithParam<Isa> {
protected:
    static constexpr int64_t kHidden = 512, kWidth = 256;

    void SetUp() override {
        if (!supports(GetParam())) GTEST_SKIP() << "this CPU lacks it";
    }
    Model model(size_t experts, BlockType type, BlockType down) {
        ThreadPool pool(2);
        CpuOps ops(pool, GetParam());
        Model result;
        for (size_t e = 0; e < experts; ++e) {
            result.gates.push_back(ops.pack(random_blocks(make_, type, kWidth, kHidden), arena_));
            result.ups.push_back(ops.pack(random_blocks(make_, type, kWidth, kHidden), arena_));
            result.downs.push_back(ops.pack(random_blocks(make_, down, kHidden, kWidth), arena_));
        }
        return result;
    }
    // Rows of each expert, each of a random one of `tokens`.
    Tensor one_by_one(CpuOps& ops, const Model& w, const Tensor& x, const Tensor& source, const Tensor& offsets) {
        const int64_t m = source.size();
        const Tensor rows = make_.random({m, kHidden}), gate = make_.random({m, kWidth}), up = make_.random({m, kWidth});
        const Tensor y = make_.random({m, kHidden});
        ops.gather_rows(rows, x, source);
        ops.grouped_matmul(gate, rows, w.gates, offsets);
        ops.grouped_matmul(up, rows, w.ups, offsets);
        ops.swiglu(gate, gate, up);
        ops.grouped_matmul(y, gate, w.downs, offsets);
        return y;
    }
    void expect_same(const Model& w, const std::vector<int32_t>& rows, int64_t tokens) {
        std::vector<int32_t> starts = {0}, from;
        for (const int32_t count : rows) starts.push_back(starts.back() + count);
        for (int32_t i = 0; i < starts.back(); ++i)
            from.push_back(static_cast<int32_t>(make_.rng().below(static_cast<uint64_t>(tokens))));
        const Tensor x = make_.random({tokens, kHidden}), source = make_.ints(from), offsets = make_.ints(starts);
        for (const int threads : {1, 3}) {
            ThreadPool pool(threads);
            CpuOps ops(pool, GetParam());
            const Tensor expected = one_by_one(ops, w, x, source, offsets);
            const Tensor y = make_.random({source.size(), 2 * kHidden}).slice(1, 0, kHidden);  // rows of something wider
            ops.experts(y, x, source, w.gates, w.ups, w.downs, offsets);
            for (int64_t i = 0; i < source.size(); ++i)
                ASSERT_EQ(
                    std::memcmp(y.as<float>() + i * y.stride[0], expected.as<float>() + i * kHidden, kHidden * sizeof(float)),
                    0)
                    << "row " << i << ", " << threads << " threads";
        }
    }
    Tensors make_{3};
    Arena arena_{"test", Buffer::host, 1 << 20};
};

TEST_P(Experts, AsAWholeSayTheBytesOfTheOpsOneByOne) {
    using enum BlockType;
    for (const auto& [type, down] : {std::pair{kQ80, kQ80}, {kQ4K, kQ6K}, {kQ40, kQ51}, {kQ2K, kQ3K}}) {
        const Model w = model(6, type, down);
        expect_same(w, {1, 0, 13, 100, 0, 7}, 40);  // the fourth in several tasks
        expect_same(w, {0, 0, 0, 0, 0, 1}, 1);
        expect_same(w, {0, 0, 0, 0, 0, 0}, 3);
    }
}

TEST_P(Experts, AreTakenAsAWholeWhereEveryThreadHasSome) {
    ThreadPool pool(2);
    CpuOps ops(pool, GetParam());
    const Model w = model(1, BlockType::kQ80, BlockType::kQ80);
    const auto takes = [&](const Weight& gate, const Weight& up, int groups) {
        std::vector<int32_t> starts(static_cast<size_t>(groups) + 1);
        std::iota(starts.begin(), starts.end(), 0);
        return ops.takes_experts(gate, up, w.downs[0], make_.ints(starts));
    };
    EXPECT_TRUE(takes(w.gates[0], w.ups[0], 64));
    EXPECT_FALSE(takes(w.gates[0], w.ups[0], 6)) << "one token";
    EXPECT_FALSE(takes(make_.random({kWidth, kHidden}), make_.random({kWidth, kHidden}), 64)) << "plain";
    const Model other = model(1, BlockType::kQ40, BlockType::kQ40);
    EXPECT_FALSE(takes(w.gates[0], other.ups[0], 64)) << "gate and up of two types";
}

INSTANTIATE_TEST_SUITE_P(Isa, Experts, testing::Values(Isa::kAvx2, Isa::kAvx512),
                         [](const auto& param) { return std::string(name_of(param.param)); });

}  // namespace
}  // namespace fathom
