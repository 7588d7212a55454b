#include "ops/op_test.h"

#include <algorithm>
#include <numeric>

namespace fathom {
namespace {

bool is_integer(DType type) { return type == DType::kI32 || type == DType::kI64; }

// A contiguous tensor of up to three dimensions.
Tensor shaped(void* memory, DType type, const Dims& dims) {
    switch (dims.size()) {
        case 1:
            return {memory, type, {dims[0]}};
        case 2:
            return {memory, type, {dims[0], dims[1]}};
        default:
            return {memory, type, {dims[0], dims[1], dims[2]}};
    }
}

// x with another base address.
Tensor moved(Tensor x, void* memory) {
    x.data = memory;
    return x;
}

int64_t element_count(const Dims& dims) { return std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>()); }

}  // namespace

int64_t OpTest::rows() {
    const int64_t kind = integer(0, 7);
    return kind < 3 ? kind : kind < 7 ? integer(3, 40) : integer(41, 300);
}

int64_t OpTest::width() { return coin() ? integer(1, 70) : 16 * integer(1, 4); }

Pair OpTest::values(const Dims& dims, const std::vector<double>& numbers, DType type, bool packed) {
    packed = packed || dims.size() == 1 || is_integer(type);
    Dims wide = dims;
    if (!packed) wide.back() += coin() ? integer(1, 9) : 0;
    Pair x;
    x.whole = shaped(memory_.emplace_back(ops->allocate(element_count(wide) * size_of(type))).data(), type, wide);
    x.device = packed ? x.whole : x.whole.slice(x.whole.rank - 1, 0, dims.back());
    Buffer host = Buffer::host(x.whole.bytes());
    reference_ops.fill(moved(x.whole, host.data()), kBetweenRows);
    Values<double> all(moved(x.device, host.data()));
    std::ranges::copy(numbers, all.data.begin());
    all.store(moved(x.device, host.data()));
    ops->write(x.whole, host.data());

    const DType reference_type = is_integer(type) ? type : DType::kF64;
    x.reference =
        shaped(memory_.emplace_back(Buffer::host(element_count(dims) * size_of(reference_type))).data(), reference_type, dims);
    Values<double>(moved(x.device, host.data())).store(x.reference);
    return x;
}

Pair OpTest::random(const Dims& dims, double spread, double mean, DType type, bool packed) {
    std::vector<double> numbers(static_cast<size_t>(element_count(dims)));
    for (double& number : numbers) number = mean + spread * rng.normal();
    return values(dims, numbers, type, packed);
}

Pair OpTest::constant(const Dims& dims, double value, DType type) {
    return values(dims, std::vector<double>(static_cast<size_t>(element_count(dims)), value), type);
}

Pair OpTest::empty(const Dims& dims, DType type) {
    return constant(dims, is_integer(type) ? -1 : std::numeric_limits<double>::quiet_NaN(), type);
}

Pair OpTest::ints(const Dims& dims, const std::vector<int64_t>& numbers, DType type) {
    return values(dims, std::vector<double>(numbers.begin(), numbers.end()), type);
}

WeightPair OpTest::weight(int64_t out, int64_t in, DType type) {
    if (type != DType::kF8E4M3) {
        const Pair w = random({out, in}, 1, 0, type);
        return {w.device, w.reference};
    }
    const int64_t row0 = coin() ? integer(0, 150) : 0;
    const auto blocks = [](int64_t size) { return (size + kFp8Block - 1) / kFp8Block; };
    const Pair codes = random({row0 + out, in}, 8, 0, type),
               scales = random({blocks(row0 + out), blocks(in)}, 0.1, 0.2, DType::kF32, true);
    // An element of the weight is code times scale rounded to f32, so the reference gets that number as a plain weight.
    const Weight stored(codes.device, scales.device);
    Weight host(codes.reference, scales.reference);
    host.scheme = Scheme::kFp8Block;
    const Values<float> rounded = weight_values<float>(host.rows(row0, row0 + out));
    const Pair plain = values({out, in}, std::vector<double>(rounded.data.begin(), rounded.data.end()), DType::kF64);
    return {stored.rows(row0, row0 + out), plain.reference};
}

std::vector<int64_t> OpTest::distinct(int64_t count, int64_t bound) {
    std::vector<int64_t> all(static_cast<size_t>(bound));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t i = 0; i < count; ++i) std::swap(all[static_cast<size_t>(i)], all[static_cast<size_t>(integer(i, bound - 1))]);
    all.resize(static_cast<size_t>(count));
    return all;
}

Pair OpTest::choices(int64_t n, int64_t k, int64_t experts) {
    std::vector<int64_t> all;
    for (int64_t i = 0; i < n; ++i)
        for (const int64_t expert : distinct(k, experts)) all.push_back(expert);
    return ints({n, k}, all);
}

Pair OpTest::offsets(int64_t rows, int64_t groups) {
    std::vector<int64_t> bounds{0};
    for (int64_t g = 1; g < groups; ++g)
        bounds.push_back(std::min(rows, bounds.back() + (coin() ? integer(0, 1) : integer(0, 2 * rows / groups))));
    bounds.push_back(rows);
    return ints({groups + 1}, bounds);
}

Values<double> OpTest::device_values(const Pair& x) {
    Buffer host = Buffer::host(x.whole.bytes());
    ops->read_back(host.data(), x.whole);
    const Values<double> result(moved(x.device, host.data()));
    if (x.device.size() < x.whole.size()) {
        reference_ops.fill(moved(x.device, host.data()), kBetweenRows);
        const Values<double> rest(moved(x.whole, host.data()));
        EXPECT_TRUE(std::ranges::all_of(rest.data, [](double v) { return v == kBetweenRows; })) << "wrote between the rows";
    }
    return result;
}

void OpTest::expect_close(const Pair& x, double factor, double terms) {
    const Values<double> got = device_values(x), want(x.reference);
    double largest = terms;
    for (const double v : want.data) largest = std::max(largest, std::fabs(v));
    const double bound = factor * tolerance(x.device.dtype) * largest;
    for (size_t i = 0; i < want.data.size(); ++i) {
        const bool close = std::fabs(got.data[i] - want.data[i]) <= bound || got.data[i] == want.data[i];
        ASSERT_TRUE(close) << "element " << i << " of " << x.device.describe() << " is " << got.data[i] << ", the reference "
                           << want.data[i] << ", allowed difference " << bound;
    }
}

void OpTest::expect_equal(const Pair& x) {
    const Values<double> got = device_values(x), want(x.reference);
    for (size_t i = 0; i < want.data.size(); ++i)
        ASSERT_EQ(got.data[i], want.data[i]) << "element " << i << " of " << x.device.describe();
}

}  // namespace fathom
