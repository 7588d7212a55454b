#include "ops/op_test.h"

namespace fathom {
namespace {

using Products = OpTest;
INSTANTIATE_TEST_SUITE_P(, Products, testing::ValuesIn(backends()), backend_name);

constexpr std::array kStored{DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3};
constexpr double kLongSums = 2;  // chains round once per term, and terms cancel

TEST_P(Products, MatmulReadsEveryStorageScheme) {
    for (const DType type : kStored) {
        for (int i = 0; i < kCases; ++i) {
            const int64_t n = rows(), in = coin() ? width() : integer(1, 300), out = coin() ? width() : integer(1, 300);
            const Pair x = random({n, in}), y = empty({n, out});
            const WeightPair w = weight(out, in, type);
            run([&](Ops& o, Side at) { o.matmul(at(y), at(x), at(w)); });
            expect_close(y, kLongSums);
        }
    }
}

TEST_P(Products, MatmulOverNoInputsIsZero) {
    const Pair x = random({3, 0}), y = empty({3, 5});
    run([&](Ops& o, Side at) { o.matmul(at(y), at(x), at(weight(5, 0))); });
    expect_equal(y);
}

TEST_P(Products, DgradReadsEveryStorageScheme) {
    for (const DType type : kStored) {
        for (int i = 0; i < kCases; ++i) {
            const int64_t n = rows(), in = coin() ? width() : integer(1, 300), out = coin() ? width() : integer(1, 300);
            const Pair dy = random({n, out}), dx = empty({n, in});
            const WeightPair w = weight(out, in, type);
            run([&](Ops& o, Side at) { o.matmul_dgrad(at(dx), at(dy), at(w)); });
            expect_close(dx, kLongSums);
        }
    }
}

TEST_P(Products, WgradAccumulates) {
    for (int i = 0; i < kCases; ++i) {
        const int64_t n = rows(), in = width(), out = width();
        const Pair dy = random({n, out}), x = random({n, in}), dw = random({out, in}, 1, 0, DType::kF32, true);
        const bool first = coin();  // = in place of +=
        run([&](Ops& o, Side at) {
            first ? o.first_matmul_wgrad(at(dw), at(dy), at(x)) : o.matmul_wgrad(at(dw), at(dy), at(x));
        });
        expect_close(dw, kLongSums);
    }
}

TEST_P(Products, GroupsMayBeEmptyOrHoldOneRow) {
    for (const DType type : kStored) {
        for (int i = 0; i < kCases; ++i) {
            const int64_t m = rows(), experts = integer(1, 12), in = width(), out = width();
            std::vector<WeightPair> w;
            std::vector<Pair> dw;
            for (int64_t e = 0; e < experts; ++e) {
                w.push_back(weight(out, in, type));
                dw.push_back(random({out, in}, 1, 0, DType::kF32, true));
            }
            const Pair bounds = offsets(m, experts), x = random({m, in}), dy = random({m, out});
            const Pair y = empty({m, out}), dx = empty({m, in});
            const bool first = coin();  // = in place of +=
            run([&](Ops& o, Side at) {
                o.grouped_matmul(at(y), at(x), at(w), at(bounds));
                o.grouped_dgrad(at(dx), at(dy), at(w), at(bounds));
                first ? o.first_grouped_wgrad(at(dw), at(dy), at(x), at(bounds))
                      : o.grouped_wgrad(at(dw), at(dy), at(x), at(bounds));
            });
            expect_close(y, kLongSums);
            expect_close(dx, kLongSums);
            for (const Pair& one : dw) expect_close(one, kLongSums);
        }
    }
}

TEST_P(Products, EveryHeadHasItsOwnMatrix) {
    for (const DType type : kStored) {
        for (int i = 0; i < kCases; ++i) {
            const int64_t n = rows(), heads = integer(1, 7), in = width(), out = width();
            std::vector<WeightPair> w;
            for (int64_t j = 0; j < heads; ++j) w.push_back(weight(out, in, type));
            const Pair x = random({n, heads, in}), dy = random({n, heads, out});
            const Pair y = empty({n, heads, out}), dx = empty({n, heads, in});
            run([&](Ops& o, Side at) {
                o.batched_matmul(at(y), at(x), at(w));
                o.batched_dgrad(at(dx), at(dy), at(w));
            });
            expect_close(y, kLongSums);
            expect_close(dx, kLongSums);
        }
    }
}

}  // namespace
}  // namespace fathom
