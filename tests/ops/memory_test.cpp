#include "ops/op_test.h"

namespace fathom {
namespace {

using Memory = OpTest;
INSTANTIATE_TEST_SUITE_P(, Memory, testing::ValuesIn(backends()), backend_name);

constexpr std::array kStored{DType::kF32, DType::kBF16, DType::kF16};

TEST_P(Memory, WhatIsWrittenIsReadBack) {
    for (const int64_t n : {0, 1, 3, 1000}) {
        Tensor x(nullptr, DType::kF32, {n});
        const Buffer buffer = ops->allocate(x.bytes());
        x.data = buffer.data();
        std::vector<float> in(static_cast<size_t>(n)), out(in);
        for (float& value : in) value = static_cast<float>(rng.normal());
        ops->write(x, in.data());
        ops->read_back(out.data(), x);
        EXPECT_EQ(in, out);
    }
}

TEST_P(Memory, FillWritesEveryElementOfAnyType) {
    for (const DType type : {DType::kF32, DType::kBF16, DType::kF16, DType::kI32, DType::kI64}) {
        const Pair x = empty({rows(), width()}, type);
        run([&](Ops& o, Side at) { o.fill(at(x), 3); });
        expect_equal(x);
    }
}

TEST_P(Memory, CopyConvertsBetweenAllTypes) {
    for (const DType from : kStored) {
        for (const DType to : kStored) {
            const int64_t n = rows(), h = integer(1, 5), d = width();
            const Pair x = random({n, h, d}, 3, 0, from), y = empty({n, h, d}, to);
            run([&](Ops& o, Side at) { o.copy(at(y), at(x)); });
            Pair rounded = y;  // the reference's y, rounded to the device's type
            Buffer memory = Buffer::host(y.device.size() * size_of(to));
            rounded.reference = Tensor(memory.data(), to, {n, h, d});
            reference_ops.copy(rounded.reference, x.reference);
            expect_equal(rounded);
        }
    }
}

TEST_P(Memory, CopyRepeatsADimensionOfStrideZero) {
    const int64_t n = 7, h = 3, d = 21;
    const Pair x = random({n, d}), y = empty({n, h, d});
    run([&](Ops& o, Side at) {
        Tensor repeated = at(y);
        repeated.data = at(x).data;
        repeated.stride = {at(x).stride[0], 0, 1};
        o.copy(at(y), repeated);
    });
    expect_equal(y);
}

TEST_P(Memory, CopyTransposes) {
    const int64_t a = 5, b = 37;
    const Pair x = random({b, a}), y = empty({a, b});
    run([&](Ops& o, Side at) {
        Tensor turned = at(x);
        std::swap(turned.shape[0], turned.shape[1]);
        std::swap(turned.stride[0], turned.stride[1]);
        o.copy(at(y), turned);
    });
    expect_equal(y);
}

TEST_P(Memory, AddMayWriteOverEitherOperand) {
    for (int i = 0; i < kCases; ++i) {
        const Dims dims{rows(), width()};
        const Pair a = random(dims), b = random(dims), y = empty(dims);
        run([&](Ops& o, Side at) { o.add(at(y), at(a), at(b)); });
        expect_close(y);
        run([&](Ops& o, Side at) { o.add(at(a), at(a), at(b)); });
        expect_close(a);
        run([&](Ops& o, Side at) { o.add(at(b), at(y), at(b)); });
        expect_close(b);
    }
}

TEST_P(Memory, BiasIsAddedToEveryRowAndItsGradientSumsThem) {
    for (const DType type : kStored) {
        for (int i = 0; i < kCases; ++i) {
            const int64_t n = rows(), d = width();
            const Pair y = random({n, d}), bias = random({d}, 1, 0, type), dbias = random({d});
            run([&](Ops& o, Side at) {
                o.add_bias_backward(at(dbias), at(y));
                o.add_bias(at(y), at(bias));
            });
            expect_close(y);
            expect_close(dbias, 2);
        }
    }
}

TEST_P(Memory, HeadsAreSummed) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = rows(), d = width();
        const Pair x = random({n, integer(1, 9), d}), y = empty({n, d});
        run([&](Ops& o, Side at) { o.sum_heads(at(y), at(x)); });
        expect_close(y);
    }
}

TEST_P(Memory, RowsAreGatheredFromAnyStoredType) {
    for (const DType type : kStored) {
        for (int i = 0; i < kCases; ++i) {
            const int64_t n = rows(), d = width(), table = integer(1, 50);
            std::vector<int64_t> index;
            for (int64_t r = 0; r < n; ++r) index.push_back(integer(0, table - 1));
            const Pair x = random({table, d}, 1, 0, type), y = empty({n, d}), rows_of = ints({n}, index);
            run([&](Ops& o, Side at) { o.gather_rows(at(y), at(x), at(rows_of)); });
            expect_equal(y);
        }
    }
}

TEST_P(Memory, TheGradientOfAGatherAddsUpRepeatedRows) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = rows(), d = width(), table = integer(1, 50);
        std::vector<int64_t> index;
        for (int64_t r = 0; r < n; ++r) index.push_back(integer(0, table - 1));
        const Pair dx = random({table, d}), dy = random({n, d}), rows_of = ints({n}, index);
        run([&](Ops& o, Side at) { o.gather_rows_backward(at(dx), at(dy), at(rows_of)); });
        expect_close(dx, 2);
    }
}

TEST_P(Memory, RowsAreScatteredRoundedToTheCachesType) {
    for (const DType type : kStored) {
        for (int i = 0; i < kCases; ++i) {
            const int64_t n = rows(), d = width(), table = n + integer(0, 9);
            const Pair x = random({n, d}), y = random({table, d}, 1, 0, type), rows_of = ints({n}, distinct(n, table));
            run([&](Ops& o, Side at) { o.scatter_rows(at(y), at(x), at(rows_of)); });
            expect_close(y);
        }
    }
}

// Where rows are many a GPU moves several pieces of one at a time.
TEST_P(Memory, ManyRowsAreGatheredAndScattered) {
    constexpr int64_t kRows = 700, kTable = 900, kWidth = 64;
    const Pair x = random({kTable, kWidth}, 1, 0, DType::kF32, true), y = empty({kRows, kWidth}), z = empty({kTable, kWidth});
    const Pair rows = ints({kRows}, distinct(kRows, kTable));
    run([&](Ops& o, Side at) {
        o.gather_rows(at(y), at(x), at(rows));
        o.fill(at(z), 1);
        o.scatter_rows(at(z), at(y), at(rows));
    });
    expect_equal(y);
    expect_equal(z);
}

TEST_P(Memory, WhatGoesSideBySideIsDoneBeforeWhatFollowsAndAfterWhatCameFirst) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = integer(1, 300), d = integer(1, 70);
        const Pair x = random({n, d}), a = empty({n, d}), b = empty({n, d}), c = empty({n, d}), y = empty({n, d});
        run([&](Ops& o, Side at) {
            o.add(at(y), at(x), at(x));
            o.side_by_side(
                [&] {
                    o.add(at(a), at(y), at(x));
                    o.side_by_side([&] { o.add(at(a), at(a), at(y)); }, [&] { o.copy(at(c), at(y)); });
                },
                [&] {
                    for (int k = 0; k < 4; ++k) o.add(at(b), k == 0 ? at(y) : at(b), at(x));
                });
            o.add(at(y), at(a), at(b));
            o.add(at(y), at(y), at(c));
        });
        expect_close(y);
    }
}

}  // namespace
}  // namespace fathom
