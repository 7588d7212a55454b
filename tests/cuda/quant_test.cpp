// Products with weights of few bits on a GPU: results are those of the reference on the numbers that the codes stand for
// (decode_row), in f64. Where the activations of a product become FP8 they are drawn so that nothing is lost by it, but for one
// test.
#include <array>
#include <cstring>

#include "cuda/bf16_backend.h"
#include "ops/op_test.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

enum class Codes : uint8_t { kInt4, kInt4Zeros, kInt8, kInt8Zeros, kFp8 };
constexpr std::array kAllCodes{Codes::kInt4, Codes::kInt4Zeros, Codes::kInt8, Codes::kInt8Zeros, Codes::kFp8};

class Coded : public OpTest {
protected:
    // bf16 results, of which weights may have been rounded to bf16 on the way; f32 sums of exact products.
    static constexpr double kRounded = 2, kF32Sums = 5;
    static constexpr int kFewCases = 8;

    struct Shape {
        Codes codes = Codes::kInt4;
        int64_t out = 0, in = 0, group = 128;
        DType scales = DType::kF32;
        bool packed = true;  // rows follow each other
    };
    // `usual`: groups of 128 and rows at multiples of 16 bytes, which the fast kernels take.
    Shape shape(Codes codes, bool usual) {
        Shape s;
        s.codes = codes;
        s.out = coin() ? 8 * integer(1, 50) : integer(1, 300);
        s.group = usual || codes == Codes::kFp8 ? 128 : std::array<int64_t, 6>{8, 16, 32, 64, 128, 256}[rng.below(6)];
        s.in = codes == Codes::kFp8 && !usual ? integer(1, 300) : s.group * integer(1, 4);
        s.scales = codes == Codes::kFp8 ? DType::kF32 : std::array{DType::kF32, DType::kBF16, DType::kF16}[rng.below(3)];
        s.packed = usual || coin();
        return s;
    }

    // A matrix's tensors on the device, with the numbers that they stand for.
    WeightPair coded(const Shape& s) {
        const int64_t row0 = s.codes == Codes::kFp8 && coin() ? 128 * integer(0, 1) + (s.packed ? 0 : integer(0, 150)) : 0;
        return coded(s, row0);
    }
    WeightPair coded(const Shape& s, int64_t row0) {
        const bool nibbles = s.codes == Codes::kInt4 || s.codes == Codes::kInt4Zeros, fp8 = s.codes == Codes::kFp8;
        const auto blocks = [](int64_t size) { return (size + kFp8Block - 1) / kFp8Block; };
        const int64_t rows = row0 + s.out, columns = nibbles ? s.in / 2 : s.in, groups = fp8 ? blocks(s.in) : s.in / s.group;
        Pair codes;
        if (fp8) {
            codes = random({rows, columns}, 8, 0, DType::kF8E4M3, s.packed);
        } else {
            std::vector<double> bytes(static_cast<size_t>(rows * columns));
            for (double& byte : bytes) byte = static_cast<double>(nibbles ? integer(0, 255) : integer(-128, 127));
            codes = values({rows, columns}, bytes, nibbles ? DType::kU8 : DType::kI8, s.packed);
        }
        const Pair scales = random({fp8 ? blocks(rows) : rows, groups}, 0.1, 0.2, s.scales, s.packed);
        Pair zeros;
        if (s.codes == Codes::kInt4Zeros || s.codes == Codes::kInt8Zeros) {
            std::vector<double> points(static_cast<size_t>(rows * groups));
            for (double& point : points) point = static_cast<double>(integer(0, nibbles ? 15 : 255));
            zeros = values({rows, groups}, points, DType::kU8, s.packed);
        }
        const auto stored = [&](const Tensor& c, const Tensor& f, const Tensor& z) {
            Weight w(c, f);
            if (!fp8) w.scheme = Scheme::kGroups;
            w.zeros = z;
            return w.rows(row0, rows);
        };
        const Buffer on_host[3] = {host(codes), host(scales), host(zeros)};
        const auto here = [&](const Pair& x, int i) {
            Tensor t = x.device;
            t.data = on_host[i].data();
            return t;
        };
        return {stored(codes.device, scales.device, zeros.device),
                numbers(stored(here(codes, 0), here(scales, 1), here(zeros, 2)))};
    }
    std::vector<WeightPair> several(const Shape& s, int64_t count) {
        std::vector<WeightPair> all;
        const int64_t row0 = s.codes == Codes::kFp8 && coin() ? 128 : 0;
        for (int64_t i = 0; i < count; ++i) all.push_back(coded(s, row0));
        return all;
    }

    Pair activation(const Dims& dims) { return random(dims, 1, 0, DType::kBF16, coin()); }
    // In every 128 channels of a row the largest is 448 times a power of two, and all have four significant bits.
    Pair exact_in_fp8(int64_t n, int64_t in) {
        std::vector<double> numbers;
        for (int64_t i = 0; i < n * in; i += kFp8Block) {
            const double scale = std::ldexp(1.0, static_cast<int>(integer(-9, 3)));
            for (int64_t j = 0; j < kFp8Block; ++j) {
                const float number = static_cast<float>(std::clamp(60 * rng.normal(), -448.0, 448.0));
                numbers.push_back(scale * (j == 7 ? 448 : static_cast<double>(static_cast<float>(Float8E4M3(number)))));
            }
        }
        return values({n, in}, numbers, DType::kBF16, true);
    }

private:
    std::deque<Buffer> numbers_;

    // A copy of the device's memory of x, or nothing.
    Buffer host(const Pair& x) {
        if (!x.device) return {};
        Buffer copy = Buffer::host(x.whole.bytes());
        ops->read_back(copy.data(), x.whole);
        return copy;
    }
    Weight numbers(const Weight& w) {
        const int64_t out = w.out_features(), in = w.in_features();
        std::vector<float> row(static_cast<size_t>(in));
        const Tensor all(numbers_.emplace_back(Buffer::host(out * in * 8)).data(), DType::kF64, {out, in});
        for (int64_t o = 0; o < out; ++o) {
            decode_row(row.data(), w, o);
            std::ranges::copy(row, all.as<double>() + o * in);
        }
        return {all};
    }
};

class CodedBf16 : public Coded {};
INSTANTIATE_TEST_SUITE_P(, CodedBf16, testing::ValuesIn(bf16_backend<false>("CudaBf16")), backend_name);
class CodedDeterministic : public Coded {};
INSTANTIATE_TEST_SUITE_P(, CodedDeterministic, testing::ValuesIn(bf16_backend<true>("CudaBf16Deterministic")), backend_name);

TEST_P(CodedBf16, ProductsAreThoseOfTheCodesNumbers) {
    for (const Codes codes : kAllCodes)
        for (int i = 0; i < kFewCases; ++i) {
            const bool usual = i % 2 == 0, exact = codes == Codes::kFp8 && usual;
            const Shape s = shape(codes, usual);
            const int64_t n = coin() ? integer(0, 40) : integer(1, 200);
            const WeightPair w = coded(s);
            const Pair x = exact ? exact_in_fp8(n, s.in) : activation({n, s.in}), dy = activation({n, s.out});
            const Pair y = empty({n, s.out}, DType::kBF16), f32 = empty({n, s.out}), dx = empty({n, s.in}, DType::kBF16);
            run([&](Ops& o, Side at) {
                o.matmul(at(y), at(x), at(w));
                o.matmul(at(f32), at(x), at(w));
                o.matmul_dgrad(at(dx), at(dy), at(w));
            });
            expect_close(y, kRounded);
            expect_close(f32, kRounded * tolerance(DType::kBF16) / tolerance(DType::kF32));
            expect_close(dx, kRounded);
        }
}

TEST_P(CodedBf16, AFewRowsMeetTheCodesThemselves) {
    for (const Codes codes : {Codes::kInt4, Codes::kInt4Zeros, Codes::kInt8, Codes::kFp8})
        for (const int64_t group : {128, 64, 32, 256})
            for (const int64_t n : {1, 2, 8, 9, 16}) {
                if (codes == Codes::kFp8 && group != 128) continue;
                const Shape s{codes, integer(1, 200), group * integer(1, 9), group, DType::kF32, true};
                const WeightPair w = coded(s);
                const Pair x = random({n, s.in}, 1, 0, DType::kBF16, true), y = empty({n, s.out});
                run([&](Ops& o, Side at) { o.matmul(at(y), at(x), at(w)); });
                expect_close(y, kF32Sums);
            }
}

TEST_P(CodedBf16, EveryCodeMeansItsNumber) {
    // x has a single one, so that y is a column of the weight.
    for (const Codes codes : kAllCodes) {
        const Shape s{codes, 256, 256, 128, DType::kF32, true};
        const WeightPair w = coded(s, 0);
        std::vector<double> one(8 * 256);
        for (int64_t i = 0; i < 8; ++i) one[static_cast<size_t>(i * 256 + integer(0, 255))] = 1;
        const Pair x = values({8, 256}, one, DType::kBF16, true), y = empty({8, 256});
        run([&](Ops& o, Side at) { o.matmul(at(y), at(x), at(w)); });
        expect_close(y, codes == Codes::kInt8Zeros ? tolerance(DType::kBF16) / tolerance(DType::kF32) : 1);
    }
}

TEST_P(CodedBf16, GroupsMayBeEmptyOrHoldOneRow) {
    for (const Codes codes : kAllCodes)
        for (int i = 0; i < kFewCases; ++i) {
            const bool usual = i % 2 == 0;
            const Shape s = shape(codes, usual);
            const int64_t m = coin() ? integer(0, 40) : integer(1, 300), experts = i == 2 ? 150 : integer(1, 20);
            const std::vector<WeightPair> w = several(s, experts);
            const bool exact = codes == Codes::kFp8 && usual;
            const Pair bounds = offsets(m, experts), x = exact ? exact_in_fp8(m, s.in) : activation({m, s.in}),
                       dy = activation({m, s.out});
            const Pair y = empty({m, s.out}, DType::kBF16), dx = empty({m, s.in}, DType::kBF16);
            run([&](Ops& o, Side at) {
                o.grouped_matmul(at(y), at(x), at(w), at(bounds));
                o.grouped_dgrad(at(dx), at(dy), at(w), at(bounds));
            });
            expect_close(y, kRounded);
            expect_close(dx, kRounded);
        }
}

TEST_P(CodedBf16, EveryHeadHasItsOwnMatrix) {
    for (const Codes codes : kAllCodes)
        for (int i = 0; i < kFewCases / 2; ++i) {
            const Shape s = shape(codes, i % 2 == 0);
            const int64_t n = rows(), heads = integer(1, 7);
            const std::vector<WeightPair> w = several(s, heads);
            const Pair x = activation({n, heads, s.in}), dy = activation({n, heads, s.out});
            const Pair y = empty({n, heads, s.out}, DType::kBF16), dx = empty({n, heads, s.in}, DType::kBF16);
            run([&](Ops& o, Side at) {
                o.batched_matmul(at(y), at(x), at(w));
                o.batched_dgrad(at(dx), at(dy), at(w));
            });
            expect_close(y, kRounded);
            expect_close(dx, kRounded);
        }
}

// Experts of FP8 blocks one after the other, as a model's memory has them, with many rows: the activations become FP8.
class CodedExperts : public Coded {
protected:
    std::vector<WeightPair> in_a_row(int64_t count, int64_t out, int64_t in) {
        const int64_t step = (out + kFp8Block - 1) / kFp8Block * kFp8Block + 128 * integer(0, 1);
        const WeightPair all = coded({Codes::kFp8, count * step, in, 128, DType::kF32, true}, 0);
        std::vector<WeightPair> w;
        for (int64_t e = 0; e < count; ++e) {
            Weight one = all.device.rows(e * step, e * step + out);
            one.scales = all.device.scales.slice(0, e * step / kFp8Block, all.device.scales.dim(0));
            one.row0 = 0;
            w.push_back({one, all.reference.rows(e * step, e * step + out)});
        }
        return w;
    }
};
INSTANTIATE_TEST_SUITE_P(, CodedExperts, testing::ValuesIn(bf16_backend<false>("CudaBf16")), backend_name);

TEST_P(CodedExperts, InFp8AreMultipliedInFp8) {
    for (const int64_t experts : {1, 3, 40, 140}) {
        const int64_t m = integer(experts * 9, experts * 9 + 500), in = 128 * integer(1, 4), out = 8 * integer(8, 40);
        const std::vector<WeightPair> w = in_a_row(experts, out, in);
        const Pair bounds = offsets(m, experts), x = exact_in_fp8(m, in), y = empty({m, out}, DType::kBF16);
        run([&](Ops& o, Side at) { o.grouped_matmul(at(y), at(x), at(w), at(bounds)); });
        expect_close(y, kRounded);  // other cards write the weights out in bf16
    }
}

TEST_P(CodedExperts, ActivationsInFp8LoseNoMoreThanTheirThreeBits) {
    const int64_t m = 400, in = 1024, out = 256;
    const std::vector<WeightPair> w = in_a_row(1, out, in);
    const Pair x = random({m, in}, 1, 0, DType::kBF16, true), y = empty({m, out}, DType::kBF16);
    run([&](Ops& o, Side at) { o.matmul(at(y), at(x), at(w[0])); });
    // 2^-4 of each x at most, of independent signs: measured against the largest y some 1 %.
    expect_close(y, 0.03 / tolerance(DType::kBF16));
}

TEST_P(CodedDeterministic, ARowsBitsDoNotDependOnItsBatch) {
    const int64_t n = 333;
    for (const Codes codes : kAllCodes) {
        const Shape s{codes, 264, 384, 128, codes == Codes::kFp8 ? DType::kF32 : DType::kBF16, true};
        const WeightPair w = coded(s, 0);
        const Pair x = random({n, s.in}, 1, 0, DType::kBF16, true), y = empty({n, s.out}, DType::kBF16),
                   parts = empty({n, s.out}, DType::kBF16);
        ops->matmul(y.device, x.device, w.device);
        for (const auto& [begin, end] : {std::pair{0, 1}, {1, 3}, {3, 40}, {40, 41}, {41, 300}, {300, 333}})
            ops->matmul(parts.device.slice(0, begin, end), x.device.slice(0, begin, end), w.device);
        EXPECT_EQ(device_values(parts).data, device_values(y).data);
    }
}

// Products of bf16 in FP8: of numbers that FP8 holds exactly, so that what remains is the rounding of the result.
std::vector<Backend> fp8_backend() {
    std::array<char, 512> message{};
    static const std::shared_ptr<Ops> ops(fathom_cuda_open(0, "fp8", false, message.data(), message.size()));
    if (ops == nullptr) return {};  // no Hopper card
    return {{"CudaFp8", [](int /*threads*/) { return ops; }}};
}
class ProductsInFp8 : public Coded {
protected:
    int64_t side() { return 16 * integer(8, 24); }
    // In every block of 128 x 128 the largest is 448 times a power of two.
    WeightPair exact_matrix(int64_t out, int64_t in) {
        std::vector<double> numbers(static_cast<size_t>(out * in));
        for (int64_t o = 0; o < out; o += kFp8Block)
            for (int64_t i = 0; i < in; i += kFp8Block) {
                const double scale = std::ldexp(1.0, static_cast<int>(integer(-12, -6)));
                for (int64_t r = o; r < std::min(out, o + kFp8Block); ++r)
                    for (int64_t c = i; c < std::min(in, i + kFp8Block); ++c) {
                        const float number = static_cast<float>(std::clamp(60 * rng.normal(), -448.0, 448.0));
                        const auto rounded = static_cast<double>(static_cast<float>(Float8E4M3(number)));
                        numbers[static_cast<size_t>(r * in + c)] = scale * (r == o && c == i ? 448 : rounded);
                    }
            }
        const Pair w = values({out, in}, numbers, DType::kBF16, true);
        return {w.device, w.reference};
    }
};
INSTANTIATE_TEST_SUITE_P(, ProductsInFp8, testing::ValuesIn(fp8_backend()), backend_name);

TEST_P(ProductsInFp8, AreExactButForRoundingOfTheResult) {
    for (int i = 0; i < kFewCases; ++i) {
        const int64_t n = coin() ? integer(0, 40) : integer(1, 300), in = 128 * integer(1, 4), out = 128 * integer(1, 4);
        const WeightPair w = exact_matrix(out, in);
        const Pair x = exact_in_fp8(n, in), dy = exact_in_fp8(n, out);
        const Pair y = random({n, out}, 1, 0, DType::kBF16, true), dx = random({n, in}, 1, 0, DType::kBF16, true);
        run([&](Ops& o, Side at) {
            o.matmul(at(y), at(x), at(w));
            o.matmul_dgrad(at(dx), at(dy), at(w));
        });
        expect_close(y);
        expect_close(dx);
    }
}

TEST_P(ProductsInFp8, OfExpertsToo) {
    for (int i = 0; i < kFewCases / 2; ++i) {
        const int64_t m = coin() ? integer(0, 40) : integer(1, 500), experts = i == 0 ? 140 : integer(1, 30);
        const int64_t in = 128 * integer(1, 3), out = 128 * integer(1, 3);
        std::vector<WeightPair> w;
        for (int64_t e = 0; e < experts; ++e) w.push_back(exact_matrix(out, in));
        const Pair bounds = offsets(m, experts), x = exact_in_fp8(m, in), dy = exact_in_fp8(m, out);
        const Pair y = random({m, out}, 1, 0, DType::kBF16, true), dx = random({m, in}, 1, 0, DType::kBF16, true);
        run([&](Ops& o, Side at) {
            o.grouped_matmul(at(y), at(x), at(w), at(bounds));
            o.grouped_dgrad(at(dx), at(dy), at(w), at(bounds));
        });
        expect_close(y);
        expect_close(dx);
    }
}

TEST_P(ProductsInFp8, LoseNoMoreThanThreeBitsOfAnyNumbers) {
    const int64_t n = 500, in = side(), out = side();
    const Pair w = random({out, in}, 1, 0, DType::kBF16, true), x = random({n, in}, 1, 0, DType::kBF16, true),
               dy = random({n, out}, 1, 0, DType::kBF16, true);
    const Pair y = random({n, out}, 1, 0, DType::kBF16, true), dx = random({n, in}, 1, 0, DType::kBF16, true);
    run([&](Ops& o, Side at) {
        o.matmul(at(y), at(x), at(w));
        o.matmul_dgrad(at(dx), at(dy), at(w));
    });
    expect_close(y, 0.04 / tolerance(DType::kBF16));
    expect_close(dx, 0.04 / tolerance(DType::kBF16));
}

// Activations in f32: chains of multiply-adds over the numbers in f32.
std::vector<Backend> f32_backend() {
    std::array<char, 512> message{};
    static const std::shared_ptr<Ops> ops(fathom_cuda_open(0, "f32", false, message.data(), message.size()));
    if (ops == nullptr) return {};
    return {{"CudaF32", [](int /*threads*/) { return ops; }}};
}
class CodedF32 : public Coded {};
INSTANTIATE_TEST_SUITE_P(, CodedF32, testing::ValuesIn(f32_backend()), backend_name);

TEST_P(CodedF32, ProductsAreThoseOfTheCodesNumbers) {
    for (const Codes codes : kAllCodes)
        for (int i = 0; i < kFewCases / 2; ++i) {
            const Shape s = shape(codes, coin());
            const int64_t n = rows(), experts = integer(1, 9);
            const std::vector<WeightPair> w = several(s, experts);
            const Pair bounds = offsets(n, experts), x = random({n, s.in}), dy = random({n, s.out});
            const Pair y = empty({n, s.out}), z = empty({n, s.out}), dx = empty({n, s.in});
            run([&](Ops& o, Side at) {
                o.matmul(at(y), at(x), at(w[0]));
                o.grouped_matmul(at(z), at(x), at(w), at(bounds));
                o.grouped_dgrad(at(dx), at(dy), at(w), at(bounds));
            });
            for (const Pair& one : {y, z, dx}) expect_close(one);
        }
}

}  // namespace
}  // namespace fathom
