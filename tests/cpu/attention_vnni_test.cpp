// Whole-number attention over blocks against the f32 kernels, within the bound that its roundings allow, and its bits.
#include <cmath>
#include <span>

#include "cpu/attention_task.h"
#include "cpu/tensors.h"

namespace fathom {
namespace {

constexpr int64_t kBlock = 32;

struct Shape {
    int64_t heads, c, r;
};
const std::vector<Shape> kShapes = {{16, 512, 64}, {8, 64, 16}, {5, 32, 8}, {128, 32, 16}};

// q [n, h, c + r] over a cache of blocks [m, c + r]; `decoded`: the numbers they stand for.
struct Problem {
    Problem(Tensors& make, const Shape& shape, BlockType type, const std::vector<int32_t>& lengths, int32_t history)
        : c(shape.c),
          width(shape.c + shape.r),
          spans(make.spans(lengths, history)),
          scale(2 / std::sqrt(width)) {
        const int64_t n = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
        const int64_t m = n + history * static_cast<int64_t>(lengths.size());
        q = make.random({n, shape.heads, width});
        u = make.empty(DType::kF32, {n, shape.heads, c});
        lse = make.empty(DType::kF32, {n, shape.heads});
        decoded = make.empty(DType::kF32, {m, width});
        cache = Weight(make.empty(DType::kU8, {m, (width + kBlock - 1) / kBlock * traits_of(type).bytes}), type);
        std::vector<int32_t> all(static_cast<size_t>(m));
        std::iota(all.begin(), all.end(), 0);
        ThreadPool pool(1);
        CpuOps ops(pool);
        ops.scatter_weight_rows(cache, make.random({m, width}), make.ints(all));
        ops.gather_weight_rows(decoded, cache, make.ints(all));
    }
    void run(CpuOps& ops) const { ops.latent_attention(u, lse, q, cache, spans, scale); }
    [[nodiscard]] std::span<const float> key(int64_t t) const { return {decoded.as<float>() + t * width, size_t(width)}; }

    int64_t c, width;
    Spans spans;
    double scale;
    Tensor q, u, lse, decoded;
    Weight cache;
};

float largest_of(std::span<const float> x) {
    float largest = 0;
    for (const float value : x) largest = std::max(largest, std::fabs(value));
    return largest;
}

// How far a score of these keys may be off: half a step of the query's 8 bits in each channel.
double score_bound(const Problem& p, const float* q, int64_t first, int64_t count) {
    double bound = 0;
    for (int64_t t = first; t < first + count; ++t) {
        double sum = 0;
        for (int64_t g = 0; g < p.width; g += kBlock) {
            const auto size = static_cast<size_t>(std::min(kBlock, p.width - g));
            double keys = 0;
            for (const float k : p.key(t).subspan(static_cast<size_t>(g), size)) keys += std::fabs(k);
            sum += p.scale * largest_of({q + g, size}) / 127 / 2 * keys;
        }
        bound = std::max(bound, sum);
    }
    return bound;
}

// Of a block of 32 channels: what rounding the weights of 64 keys to steps of 1/255 of the tile's largest can add up to (half a
// step each, and 2/256 for the product in 16 bits), the tile's largest weight being `top`. A block's scale is at least its
// largest number / 128 and at most that / 7.
double weight_bound(const Problem& p, int64_t first, int64_t count, int64_t channel, double top, double steps) {
    const auto block = static_cast<size_t>(channel / kBlock * kBlock);
    double most = 0, sum = 0;
    for (int64_t t = first; t < first + count; ++t) most = std::max(most, double{largest_of(p.key(t).subspan(block, kBlock))});
    for (int64_t t = first; t < first + count; ++t) {
        const double own = largest_of(p.key(t).subspan(block, kBlock));
        sum += std::fabs(p.key(t)[static_cast<size_t>(channel)]) * (own > 0 ? most / own : 0);
    }
    return top * sum * steps / 255 * (0.5 + 2.0 / 256);
}

// One (row, head): its result against the f32 kernels' one. `seen`: keys from `first` on.
void expect_within_bound(const Problem& p, int64_t pair, int64_t first, int64_t seen, const float* exact, double exact_lse,
                         double steps) {
    const double score = score_bound(p, p.q.as<float>() + pair * p.width, first, seen) + 1e-5;
    EXPECT_NEAR(p.lse.as<float>()[pair], exact_lse, score);
    for (int64_t c = 0; c < p.c; c += 7) {
        double largest = 0, rounding = 0;
        for (int64_t begin = 0; begin < seen; begin += 64) {
            const int64_t count = std::min<int64_t>(64, seen - begin);
            double top = -INFINITY;
            for (int64_t t = first + begin; t < first + begin + count; ++t) {
                double s = 0;
                for (int64_t k = 0; k < p.width; ++k)
                    s += p.scale * p.q.as<float>()[pair * p.width + k] * p.key(t)[static_cast<size_t>(k)];
                top = std::max(top, s);
                largest = std::max(largest, double{std::fabs(p.key(t)[static_cast<size_t>(c)])});
            }
            rounding += weight_bound(p, first + begin, count, c, std::exp(top + score - p.lse.as<float>()[pair]), steps);
        }
        const double bound = std::expm1(2 * score) * largest + rounding + 1e-5;
        EXPECT_NEAR(p.u.as<float>()[pair * p.c + c], exact[c], bound);
    }
}

bool machine_has_it() { return supports(Isa::kAvx512) && __builtin_cpu_supports("avx512vnni"); }

TEST(WholeNumberAttention, StaysWithinTheBoundOfItsRoundings) {
    if (!machine_has_it()) GTEST_SKIP() << "no AVX512-VNNI";
    Tensors make(1);
    ThreadPool pool(2);
    CpuOps exact(pool), rounded(pool, false);
    for (const BlockType type : {BlockType::kQ80, BlockType::kQ40})
        for (const Shape& shape : kShapes)
            for (const std::vector<int32_t>& lengths : {std::vector<int32_t>{1}, {3, 1, 2}}) {
                const Problem p(make, shape, type, lengths, 70);
                p.run(exact);
                const std::vector<float> u(p.u.as<float>(), p.u.as<float>() + p.u.size());
                const std::vector<float> lse(p.lse.as<float>(), p.lse.as<float>() + p.lse.size());
                p.run(rounded);
                double error = 0, square = 0;
                for (int64_t i = 0; i < p.u.size(); ++i) {
                    const auto at = static_cast<size_t>(i);
                    error += (p.u.as<float>()[i] - u[at]) * (p.u.as<float>()[i] - u[at]);
                    square += u[at] * u[at];
                }
                EXPECT_LT(std::sqrt(error / square), 0.015) << traits_of(type).name << ", " << shape.heads << " heads";
                EXPECT_GT(error, 0);
                const auto *cu_q = p.spans.cu_q.as<int32_t>(), *cu_k = p.spans.cu_k.as<int32_t>();
                for (size_t s = 0; s < lengths.size(); ++s)
                    for (int64_t i = 0; i < lengths[s]; ++i) {
                        const int64_t pair = (cu_q[s] + i) * shape.heads + (i + 2) % shape.heads, seen = 70 + i + 1;
                        expect_within_bound(p, pair, cu_k[s], seen, u.data() + pair * p.c, lse[static_cast<size_t>(pair)],
                                            type == BlockType::kQ80 ? 128.0 / 127 : 8.0 / 7);
                    }
            }
}

// On one thread and several; and `rows` of the only sequence, which has `history` keys before its queries, each alone.
void expect_the_same_bits(Tensors& make, const Problem& p, int32_t history, const std::vector<int32_t>& rows) {
    std::string u, lse;
    for (const int threads : {1, 2, 3}) {
        ThreadPool pool(threads);
        CpuOps ops(pool, false);
        p.run(ops);
        if (threads == 1) u = bytes_of(p.u), lse = bytes_of(p.lse);
        EXPECT_EQ(u == bytes_of(p.u) && lse == bytes_of(p.lse), true) << threads << " threads";
        for (const int32_t row : rows) {
            const int64_t end = row + 1;
            ops.latent_attention(p.u.slice(0, row, end), p.lse.slice(0, row, end), p.q.slice(0, row, end),
                                 p.cache.rows(0, history + end), make.spans({1}, history + row), p.scale);
            EXPECT_EQ(u == bytes_of(p.u) && lse == bytes_of(p.lse), true) << "row " << row << ", " << threads;
        }
    }
}

TEST(WholeNumberAttention, OfARowIsTheSameAloneInABatchAndOnAnyThreads) {
    if (!machine_has_it()) GTEST_SKIP() << "no AVX512-VNNI";
    Tensors make(2);
    for (const BlockType type : {BlockType::kQ80, BlockType::kQ40})
        for (const Shape& shape : kShapes) {
            expect_the_same_bits(make, Problem(make, shape, type, {150}, 0), 0, {0, 63, 64, 149});
            expect_the_same_bits(make, Problem(make, shape, type, {3}, 1022), 1022, {0, 1, 2});  // the last begin a span
        }
}

}  // namespace
}  // namespace fathom
