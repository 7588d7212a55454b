// Attention in its three forms against plain loops over double, and the bits that chunks, pages, packing, threads and
// instruction sets must not change.
#include <cmath>

#include "cpu/halves.h"
#include "cpu/tensors.h"

namespace fathom {
namespace {

struct Shape {
    int64_t heads, d_k, d_shared, d_v;
};

struct Problem {
    Problem(Tensors& make, const Shape& shape, const std::vector<int32_t>& lengths, int32_t history)
        : spans(make.spans(lengths, history)) {
        const int64_t n = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
        const int64_t m = n + history * static_cast<int64_t>(lengths.size()), d_q = shape.d_k + shape.d_shared;
        q = make.random({n, shape.heads, d_q});
        k = make.random({m, shape.heads, shape.d_k});
        if (shape.d_shared > 0) k_shared = make.random({m, shape.d_shared});
        v = make.random({m, shape.heads, shape.d_v});
        dout = make.random({n, shape.heads, shape.d_v});
        o = make.empty(DType::kF32, {n, shape.heads, shape.d_v});
        lse = make.empty(DType::kF32, {n, shape.heads});
        dq = make.empty(DType::kF32, {n, shape.heads, d_q});
        dk = make.empty(DType::kF32, {m, shape.heads, shape.d_k});
        if (shape.d_shared > 0) dk_shared = make.empty(DType::kF32, {m, shape.d_shared});
        dv = make.empty(DType::kF32, {m, shape.heads, shape.d_v});
        scale = 1 / std::sqrt(static_cast<double>(d_q));
    }
    void forward(CpuOps& ops) const { ops.attention(o, lse, q, k, k_shared, v, spans, scale); }
    void backward(CpuOps& ops) const {
        ops.attention_backward(dq, dk, dk_shared, dv, dout, q, k, k_shared, v, o, lse, spans, scale);
    }

    Spans spans;
    Tensor q, k, k_shared, v, dout, o, lse, dq, dk, dk_shared, dv;
    double scale = 1;
};

double at(const Tensor& x, int64_t i, int64_t j, int64_t c) { return x.as<float>()[(i * x.dim(1) + j) * x.dim(2) + c]; }

// The same in double, one row after the other.
struct Reference {
    explicit Reference(const Problem& p)
        : o(zeros(p.o)),
          lse(zeros(p.lse)),
          dq(zeros(p.q)),
          dk(zeros(p.k)),
          dk_shared(zeros(p.k_shared)),
          dv(zeros(p.v)) {
        const auto *cu_q = p.spans.cu_q.as<int32_t>(), *cu_k = p.spans.cu_k.as<int32_t>();
        for (int64_t s = 0; s + 1 < p.spans.cu_q.dim(0); ++s)
            for (int64_t i = cu_q[s]; i < cu_q[s + 1]; ++i)
                for (int64_t j = 0; j < p.q.dim(1); ++j) row(p, i, j, cu_k[s], cu_k[s + 1] - (cu_q[s + 1] - i) + 1);
    }
    static std::vector<double> zeros(const Tensor& like) { return std::vector<double>(static_cast<size_t>(like.size())); }
    static double& ref(std::vector<double>& x, const Tensor& like, int64_t i, int64_t j, int64_t c) {
        return x[static_cast<size_t>((i * like.dim(1) + j) * like.dim(2) + c)];
    }
    static double key(const Problem& p, int64_t t, int64_t j, int64_t c) {
        const int64_t d_k = p.k.dim(2);
        return c < d_k ? at(p.k, t, j, c) : p.k_shared.as<float>()[t * p.k_shared.dim(1) + c - d_k];
    }
    void row(const Problem& p, int64_t i, int64_t j, int64_t begin, int64_t end) {
        const int64_t d_q = p.q.dim(2), d_k = p.k.dim(2), d_v = p.v.dim(2);
        std::vector<double> score;
        double sum = 0, delta = 0;
        for (int64_t t = begin; t < end; ++t) {
            double s = 0;
            for (int64_t c = 0; c < d_q; ++c) s += at(p.q, i, j, c) * key(p, t, j, c);
            score.push_back(s * p.scale);
            sum += std::exp(score.back());
        }
        lse[static_cast<size_t>(i * p.q.dim(1) + j)] = std::log(sum);
        const auto weight = [&](int64_t t) { return std::exp(score[static_cast<size_t>(t - begin)]) / sum; };
        for (int64_t c = 0; c < d_v; ++c) {
            for (int64_t t = begin; t < end; ++t) ref(o, p.o, i, j, c) += weight(t) * at(p.v, t, j, c);
            delta += ref(o, p.o, i, j, c) * at(p.dout, i, j, c);
        }
        for (int64_t t = begin; t < end; ++t) {
            double dp = 0;
            for (int64_t c = 0; c < d_v; ++c) {
                dp += at(p.dout, i, j, c) * at(p.v, t, j, c);
                ref(dv, p.v, t, j, c) += weight(t) * at(p.dout, i, j, c);
            }
            const double ds = weight(t) * (dp - delta) * p.scale;
            for (int64_t c = 0; c < d_q; ++c) {
                ref(dq, p.q, i, j, c) += ds * key(p, t, j, c);
                if (c < d_k) ref(dk, p.k, t, j, c) += ds * at(p.q, i, j, c);
                if (c >= d_k) dk_shared[static_cast<size_t>(t * (d_q - d_k) + c - d_k)] += ds * at(p.q, i, j, c);
            }
        }
    }
    std::vector<double> o, lse, dq, dk, dk_shared, dv;
};

// Norm of the difference over the norm.
double relative_error(const Tensor& got, const std::vector<double>& expected) {
    double difference = 0, norm = 1e-30;
    for (size_t i = 0; i < expected.size(); ++i) {
        difference += std::pow(got.as<float>()[i] - expected[i], 2);
        norm += expected[i] * expected[i];
    }
    return std::sqrt(difference / norm);
}

const std::vector<Shape> kShapes = {{3, 16, 8, 16}, {2, 64, 32, 64},   {1, 5, 3, 7},
                                    {5, 24, 0, 24}, {2, 128, 64, 128}, {1, 512, 64, 512}};

TEST(Attention, AgreesWithPlainLoopsOverDouble) {
    Tensors make(1);
    for (const Isa isa : isas())
        for (const Shape& shape : kShapes)
            for (const int32_t history : {0, 37}) {
                const Problem p(make, shape, {1, 70, 5, 130, 64, 17}, history);
                ThreadPool pool(2);
                CpuOps ops(pool, isa);
                p.forward(ops);
                p.backward(ops);
                const Reference expected(p);
                EXPECT_LT(relative_error(p.o, expected.o), 1e-6) << shape.d_v;
                EXPECT_LT(relative_error(p.lse, expected.lse), 1e-6);
                EXPECT_LT(relative_error(p.dq, expected.dq), 3e-6);
                EXPECT_LT(relative_error(p.dk, expected.dk), 3e-6);
                EXPECT_LT(relative_error(p.dv, expected.dv), 3e-6);
                if (shape.d_shared > 0) {
                    EXPECT_LT(relative_error(p.dk_shared, expected.dk_shared), 3e-6);
                }
            }
}

TEST(Attention, GivesTheSameBytesOnEveryInstructionSetAndAnyThreads) {
    Tensors make(2);
    for (const Shape& shape : kShapes) {
        const Problem p(make, shape, {3, 100, 1, 64}, 11);
        std::vector<Tensor> results = {p.o, p.lse, p.dq, p.dk, p.dv};
        if (p.dk_shared) results.push_back(p.dk_shared);
        expect_same_bytes_everywhere(results, [&](CpuOps& ops) {
            p.forward(ops);
            p.backward(ops);
        });
    }
}

// Arithmetic that rounds, where the machine has it: halves (attention_halves_avx512.cpp), and pairs of bf16
// (attention_pairs_avx512.cpp).
std::vector<Isa> rounding_isas() {
    std::vector<Isa> all;
    for (const Isa isa : {Isa::kAvx512Fp16, Isa::kAvx512Bf16})
        if (supports(isa)) all.push_back(isa);
    return all;
}

// f32 and what rounds.
std::vector<std::unique_ptr<CpuOps>> every_arithmetic(ThreadPool& pool) {
    std::vector<std::unique_ptr<CpuOps>> all;
    all.push_back(std::make_unique<CpuOps>(pool));
    for (const Isa isa : rounding_isas()) all.push_back(std::make_unique<CpuOps>(pool, isa, false));
    return all;
}

// By how much arithmetic that rounds is off: `relative` of a sum of |a b|, and `absolute` of each product of the largest
// factors.
struct Rounding {
    double relative, absolute;
};
Rounding rounding_of(Isa isa) {  // pairs: 2^-8 of each factor, and of their product both
    return isa == Isa::kAvx512Fp16 ? Rounding{kHalfRelative, kHalfAbsolute}
                                   : Rounding{std::ldexp(1, -7) + std::ldexp(1, -14), 0};
}

// How far a score of query (i, j) may be off.
double score_bound(const Problem& p, const Rounding& rounding, int64_t i, int64_t j, int64_t begin, int64_t end) {
    double bound = 0, largest_q = 0;
    for (int64_t c = 0; c < p.q.dim(2); ++c) largest_q = std::max(largest_q, std::fabs(at(p.q, i, j, c)));
    for (int64_t t = begin; t < end; ++t) {
        double size = 0, largest = 0;
        for (int64_t c = 0; c < p.q.dim(2); ++c) {
            size += std::fabs(at(p.q, i, j, c) * Reference::key(p, t, j, c));
            largest = std::max(largest, std::fabs(Reference::key(p, t, j, c)));
        }
        const double absolute = rounding.absolute * static_cast<double>(p.q.dim(2)) * largest_q * largest;
        bound = std::max(bound, p.scale * (rounding.relative * size + absolute));
    }
    return bound;
}

void expect_within_bounds(const Problem& p, const std::vector<int32_t>& lengths, int32_t history, const Rounding& rounding) {
    const Reference exact(p);
    int64_t row = 0, first_key = 0;
    for (const int32_t length : lengths) {
        for (int64_t i = 0; i < length; ++i, ++row)
            for (int64_t j = 0; j < p.q.dim(1); ++j) {
                const int64_t end = first_key + history + i + 1, pair = row * p.q.dim(1) + j;
                const double score = score_bound(p, rounding, row, j, first_key, end) + 1e-5;
                EXPECT_NEAR(p.lse.as<float>()[pair], exact.lse[static_cast<size_t>(pair)], score);
                for (int64_t c = 0; c < p.v.dim(2); c += 5) {
                    double largest = 1e-5;  // of the values: weights are off by e^(2 score), and sums by their own rounding
                    for (int64_t t = first_key; t < end; ++t) largest = std::max(largest, std::fabs(at(p.v, t, j, c)));
                    double widest = 0;  // of all channels
                    for (int64_t t = first_key; t < end; ++t)
                        for (int64_t d = 0; d < p.v.dim(2); ++d) widest = std::max(widest, std::fabs(at(p.v, t, j, d)));
                    const double keys = static_cast<double>(end - first_key);
                    const double bound = largest * (std::expm1(2 * score) + rounding.relative * std::exp(2 * score)) +
                                         rounding.absolute * keys * widest * std::exp(2 * score) + largest * 1e-5;
                    const int64_t place = pair * p.v.dim(2) + c;
                    EXPECT_NEAR(p.o.as<float>()[place], exact.o[static_cast<size_t>(place)], bound);
                }
            }
        first_key += history + length;
    }
}

TEST(Attention, StaysWithinTheBoundOfItsRoundings) {
    Tensors make(6);
    ThreadPool pool(2);
    for (const Isa isa : rounding_isas()) {
        CpuOps ops(pool, isa, false);
        for (const Shape& shape : kShapes)
            for (const int32_t history : {0, 37}) {
                const std::vector<int32_t> lengths = {1, 70, 5, 130};
                const Problem p(make, shape, lengths, history);
                p.forward(ops);
                expect_within_bounds(p, lengths, history, rounding_of(isa));
            }
    }
}

// Roundings are not all in one direction: where sums are of normal size, halves are nearer than their bound by far.
TEST(Attention, InHalvesIsOffByThousandthsOnAverage) {
    if (!supports(Isa::kAvx512Fp16)) GTEST_SKIP() << "this CPU has no " << name_of(Isa::kAvx512Fp16);
    Tensors make(7);
    ThreadPool pool(2);
    CpuOps ops(pool, Isa::kAvx512Fp16, false);
    for (const Shape& shape : kShapes) {
        const Problem p(make, shape, {70, 200}, 0);
        p.forward(ops);
        const Reference exact(p);
        EXPECT_LT(relative_error(p.o, exact.o), 3e-3) << shape.d_v;
        EXPECT_LT(relative_error(p.lse, exact.lse), 1e-4) << shape.d_v;
        EXPECT_GT(relative_error(p.o, exact.o), 1e-5) << "not in halves";
    }
}

// Numbers of activations that no half holds, and single channels and keys that are far larger than the others.
TEST(Attention, InHalvesTakesNumbersOfAnySize) {
    if (!supports(Isa::kAvx512Fp16)) GTEST_SKIP() << "this CPU has no " << name_of(Isa::kAvx512Fp16);
    Tensors make(8);
    ThreadPool pool(2);
    CpuOps ops(pool, Isa::kAvx512Fp16, false);
    const std::vector<int32_t> lengths = {100};
    const auto multiply = [](const Tensor& x, double factor, int64_t step = 1) {
        for (int64_t i = 0; i < x.size(); i += step) x.as<float>()[i] *= static_cast<float>(factor);
    };
    for (const auto& [q, k, v] :
         {std::array<double, 3>{1e4, 1e-4, 1e4}, {1e-6, 1e6, 1e-6}, {1e8, 1e-8, 1e20}, {1e-3, 1, 1e-30}})
        for (const bool outliers : {false, true}) {
            const Problem p(make, {2, 128, 64, 128}, lengths, 37);
            multiply(p.q, q), multiply(p.k, k), multiply(p.k_shared, k), multiply(p.v, v);
            if (outliers) {  // every third channel or so of queries small, few of keys and values large
                multiply(p.q, 1e-3, 3);
                multiply(p.k, 300, 131);
                multiply(p.v, 1e4, 1003);
            }
            p.forward(ops);
            const Reference exact(p);
            EXPECT_LT(relative_error(p.o, exact.o), outliers ? 3e-2 : 3e-3) << q << ' ' << k << ' ' << v;
            if (v >= 1) expect_within_bounds(p, lengths, 37, rounding_of(Isa::kAvx512Fp16));
        }
}

void expect_the_same_in_chunks(Tensors& make, CpuOps& ops) {
    const Problem whole(make, {3, 24, 8, 20}, {300}, 0);
    whole.forward(ops);
    for (const int32_t chunk : {1, 7, 64, 100, 299}) {
        const Tensor o = make.empty(DType::kF32, {300, 3, 20}), lse = make.empty(DType::kF32, {300, 3});
        for (int32_t begin = 0; begin < 300; begin += chunk) {
            const int32_t end = std::min(begin + chunk, 300);
            const Spans spans = make.spans({end - begin}, begin);
            ops.attention(o.slice(0, begin, end), lse.slice(0, begin, end), whole.q.slice(0, begin, end),
                          whole.k.slice(0, 0, end), whole.k_shared.slice(0, 0, end), whole.v.slice(0, 0, end), spans,
                          whole.scale);
        }
        EXPECT_EQ(bytes_of(o) == bytes_of(whole.o), true) << "chunks of " << chunk;
        EXPECT_EQ(bytes_of(lse) == bytes_of(whole.lse), true) << "chunks of " << chunk;
    }
}

TEST(Attention, IsTheSameInChunksAsInOnePass) {
    Tensors make(3);
    ThreadPool pool(2);
    for (const auto& ops : every_arithmetic(pool)) expect_the_same_in_chunks(make, *ops);
}

void expect_no_neighbours(Tensors& make, CpuOps& ops) {
    const Problem packed(make, {2, 16, 16, 16}, {90, 33, 128, 5}, 0);
    packed.forward(ops);
    packed.backward(ops);
    Problem alone = packed;
    const auto* cu = packed.spans.cu_q.as<int32_t>();
    for (int64_t s = 0; s < 4; ++s) {
        const auto part = [&](const Tensor& t) { return t.slice(0, cu[s], cu[s + 1]); };
        alone.spans = make.spans({cu[s + 1] - cu[s]});
        for (Tensor Problem::*input : {&Problem::q, &Problem::k, &Problem::k_shared, &Problem::v, &Problem::dout})
            alone.*input = part(packed.*input);
        for (Tensor Problem::*output :
             {&Problem::o, &Problem::lse, &Problem::dq, &Problem::dk, &Problem::dk_shared, &Problem::dv}) {
            const Tensor& t = packed.*output;
            alone.*output = t.rank == 3 ? make.empty(DType::kF32, {part(t).dim(0), t.dim(1), t.dim(2)})
                                        : make.empty(DType::kF32, {part(t).dim(0), t.dim(1)});
        }
        alone.forward(ops);
        alone.backward(ops);
        for (Tensor Problem::*output :
             {&Problem::o, &Problem::lse, &Problem::dq, &Problem::dk, &Problem::dk_shared, &Problem::dv})
            EXPECT_EQ(bytes_of(alone.*output) == bytes_of(part(packed.*output)), true) << "sequence " << s;
    }
}

TEST(Attention, OfASequenceDoesNotSeeItsNeighbours) {
    Tensors make(4);
    ThreadPool pool(2);
    for (const auto& ops : every_arithmetic(pool)) expect_no_neighbours(make, *ops);
}

TEST(Attention, ComplainsAboutShapesInWords) {
    Tensors make(5);
    ThreadPool pool(1);
    CpuOps ops(pool);
    Problem p(make, {2, 16, 8, 16}, {4}, 0);
    p.v = make.random({4, 3, 16});
    try {
        p.forward(ops);
        FAIL() << "accepted";
    } catch (const LogicError& e) {
        EXPECT_NE(std::string(e.what()).find("attention: v is F32[4, 3, 16]"), std::string::npos) << e.what();
    }
}

}  // namespace
}  // namespace fathom
