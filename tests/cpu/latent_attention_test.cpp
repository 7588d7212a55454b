// Absorbed attention against the expanded op (whose oracle is attention_test.cpp), and its bits.
#include <cmath>

#include "cpu/tensors.h"

namespace fathom {
namespace {

// q [n, h, c + r] over latents [m, c + r]; values are the first c channels.
struct Problem {
    Problem(Tensors& make, int64_t heads, int64_t c, int64_t r, const std::vector<int32_t>& lengths, int32_t history)
        : spans(make.spans(lengths, history)),
          scale(1 / std::sqrt(static_cast<double>(c + r))) {
        const int64_t n = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
        q = make.random({n, heads, c + r});
        latents = make.random({n + history * static_cast<int64_t>(lengths.size()), c + r});
        u = make.empty(DType::kF32, {n, heads, c});
        lse = make.empty(DType::kF32, {n, heads});
    }
    void run(CpuOps& ops) const { ops.latent_attention(u, lse, q, latents, spans, scale); }

    Spans spans;
    Tensor q, latents, u, lse;
    double scale;
};

// The latents, rounded to `type`, in pages of `block` rows in a scrambled order, and the block table.
Spans paged(Tensors& make, CpuOps& ops, const Problem& p, DType type, int64_t block, Tensor& pages) {
    Spans spans = p.spans;
    const auto* cu = p.spans.cu_k.as<int32_t>();
    const int64_t sequences = p.spans.cu_q.dim(0) - 1, per = (p.spans.max_k + block - 1) / block, width = p.latents.dim(1);
    pages = make.empty(type, {sequences * per + 3, block, width});
    spans.block_table = make.empty(DType::kI32, {sequences, per});
    for (int64_t s = 0; s < sequences; ++s)
        for (int64_t b = 0; b < per; ++b) {
            const int64_t page = sequences * per + 1 - (s * per + b);
            spans.block_table.as<int32_t>()[s * per + b] = static_cast<int32_t>(page);
            const int64_t begin = std::min<int64_t>(cu[s] + b * block, cu[s + 1]),
                          end = std::min<int64_t>(begin + block, cu[s + 1]);
            if (begin < end)
                ops.copy(pages.slice(0, page, page + 1).view({block, width}).slice(0, 0, end - begin),
                         p.latents.slice(0, begin, end));
        }
    return spans;
}

struct Shape {
    int64_t heads, c, r;
};
const std::vector<Shape> kShapes = {{16, 512, 64}, {8, 64, 16}, {3, 20, 5}, {128, 32, 16}, {1, 7, 1}};

TEST(LatentAttention, IsExpandedAttentionWithOneSharedKey) {
    Tensors make(1);
    for (const Isa isa : isas())
        for (const auto& [heads, c, r] : kShapes)
            for (const int32_t history : {0, 200}) {
                const Problem p(make, heads, c, r, {5, 1, 30, 1}, history);
                ThreadPool pool(2);
                CpuOps ops(pool, isa);
                p.run(ops);
                // The same keys and values, repeated for every head.
                const int64_t m = p.latents.dim(0);
                const Tensor k = make.empty(DType::kF32, {m, heads, c + r}),
                             o = make.empty(DType::kF32, {p.q.dim(0), heads, c});
                const Tensor lse = make.empty(DType::kF32, {p.q.dim(0), heads});
                Tensor repeated = k;
                repeated.stride = {c + r, 0, 1};
                repeated.data = p.latents.data;
                ops.copy(k, repeated);
                ops.attention(o, lse, p.q, k, {}, k.slice(2, 0, c), p.spans, p.scale);
                EXPECT_EQ(bytes_of(o) == bytes_of(p.u), true) << heads << " heads";
                EXPECT_EQ(bytes_of(lse) == bytes_of(p.lse), true) << heads << " heads";
            }
}

TEST(LatentAttention, GivesTheSameBytesOnEveryInstructionSetAndAnyThreads) {
    Tensors make(2);
    for (const auto& [heads, c, r] : kShapes)
        for (const int32_t history : {3, 500}) {
            const Problem p(make, heads, c, r, {1}, history);
            expect_same_bytes_everywhere({p.u, p.lse}, [&](CpuOps& ops) { p.run(ops); });
            const Problem batch(make, heads, c, r, {1, 4, 1, 20}, history);
            expect_same_bytes_everywhere({batch.u, batch.lse}, [&](CpuOps& ops) { batch.run(ops); });
        }
}

TEST(LatentAttention, ReadsPagesAsIfTheyWereContiguous) {
    Tensors make(3);
    ThreadPool pool(2);
    CpuOps ops(pool);
    const Problem p(make, 4, 48, 16, {5, 1, 70}, 130);
    for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
        const Tensor rounded = make.empty(type, {p.latents.dim(0), p.latents.dim(1)});
        ops.copy(rounded, p.latents);
        ops.copy(p.latents, rounded);
        p.run(ops);
        const std::string u = bytes_of(p.u), lse = bytes_of(p.lse);
        ops.latent_attention(p.u, p.lse, p.q, rounded, p.spans, p.scale);
        EXPECT_EQ(u == bytes_of(p.u), true) << name_of(type);
        for (const int64_t block : {1, 16, 64, 100}) {
            Tensor pages;
            const Spans spans = paged(make, ops, p, type, block, pages);
            ops.latent_attention(p.u, p.lse, p.q, pages, spans, p.scale);
            EXPECT_EQ(u == bytes_of(p.u), true) << name_of(type) << " in pages of " << block;
            EXPECT_EQ(lse == bytes_of(p.lse), true) << name_of(type) << " in pages of " << block;
        }
    }
}

// Latents as blocks of a cache: what attention makes of them is what it makes of the numbers they stand for.
TEST(LatentAttention, ReadsBlocksAsTheNumbersTheyStandFor) {
    Tensors make(5);
    for (const BlockType type : {BlockType::kQ80, BlockType::kQ40})
        for (const auto& [heads, c, r] : kShapes)
            for (const std::vector<int32_t>& lengths : {std::vector<int32_t>{1}, {5, 1, 70}}) {
                const Problem p(make, heads, c, r, lengths, 130);
                const int64_t m = p.latents.dim(0), width = c + r, bytes = traits_of(type).bytes;
                const Weight blocks(make.empty(DType::kU8, {m, (width + 31) / 32 * bytes}), type);
                std::vector<int32_t> all(static_cast<size_t>(m));
                std::iota(all.begin(), all.end(), 0);
                const Tensor rows = make.ints(all), decoded = make.empty(DType::kF32, {m, width});
                for (const Isa isa : isas()) {
                    ThreadPool pool(2);
                    CpuOps ops(pool, isa);
                    ops.scatter_weight_rows(blocks, p.latents, rows);
                    ops.gather_weight_rows(decoded, blocks, rows);
                    std::vector<float> row(static_cast<size_t>((width + 31) / 32 * 32));
                    for (int64_t i = 0; i < m; ++i) {
                        decode_blocks(type, blocks.codes.as<uint8_t>() + i * blocks.codes.dim(1), row.data(), std::ssize(row));
                        ASSERT_EQ(std::memcmp(row.data(), decoded.as<float>() + i * width, 4 * static_cast<size_t>(width)), 0);
                        const double step = type == BlockType::kQ80 ? 1.0 / 127 : 1.0 / 8;
                        for (int64_t k = 0; k < width; ++k) {
                            float largest = 0;
                            for (int64_t j = k / 32 * 32; j < std::min(width, k / 32 * 32 + 32); ++j)
                                largest = std::max(largest, std::fabs(p.latents.as<float>()[i * width + j]));
                            ASSERT_NEAR(row[static_cast<size_t>(k)], p.latents.as<float>()[i * width + k],
                                        1.01 * step * largest);
                        }
                    }
                    ops.latent_attention(p.u, p.lse, p.q, decoded, p.spans, p.scale);
                    const std::string u = bytes_of(p.u), lse = bytes_of(p.lse);
                    ops.latent_attention(p.u, p.lse, p.q, blocks, p.spans, p.scale);
                    EXPECT_EQ(u == bytes_of(p.u), true) << traits_of(type).name << ", " << heads << " heads";
                    EXPECT_EQ(lse == bytes_of(p.lse), true) << traits_of(type).name << ", " << heads << " heads";
                }
            }
}

TEST(LatentAttention, OfARowDoesNotDependOnTheOthers) {
    Tensors make(4);
    ThreadPool pool(2);
    CpuOps ops(pool);
    const Problem p(make, 6, 40, 8, {150}, 0);
    p.run(ops);
    for (const int32_t chunk : {1, 9, 64}) {
        const Tensor u = make.empty(DType::kF32, {150, 6, 40}), lse = make.empty(DType::kF32, {150, 6});
        for (int32_t begin = 0; begin < 150; begin += chunk) {
            const int32_t end = std::min(begin + chunk, 150);
            ops.latent_attention(u.slice(0, begin, end), lse.slice(0, begin, end), p.q.slice(0, begin, end),
                                 p.latents.slice(0, 0, end), make.spans({end - begin}, begin), p.scale);
        }
        EXPECT_EQ(bytes_of(u) == bytes_of(p.u), true) << "chunks of " << chunk;
        EXPECT_EQ(bytes_of(lse) == bytes_of(p.lse), true) << "chunks of " << chunk;
    }
    // Three of the six heads alone.
    const Tensor q = make.empty(DType::kF32, {150, 3, 48}), u = make.empty(DType::kF32, {150, 3, 40}),
                 lse = make.empty(DType::kF32, {150, 3}), expected = make.empty(DType::kF32, {150, 3, 40});
    ops.copy(q, p.q.slice(1, 2, 5));
    ops.copy(expected, p.u.slice(1, 2, 5));
    ops.latent_attention(u, lse, q, p.latents, p.spans, p.scale);
    EXPECT_EQ(bytes_of(u) == bytes_of(expected), true);
}

// Long sequences, not deterministic: keys in parts (cpu/latent_parts.h).
TEST(LatentAttention, InPartsIsTheSameUpToRoundingAloneAndOnAnyThreads) {
    Tensors make(6);
    ThreadPool one(1), three(3);
    for (const Isa isa : isas())
        for (const auto& [heads, c, r] : {Shape{16, 64, 16}, Shape{64, 32, 16}})
            for (const int64_t block : {0, 64, 100}) {
                const Problem p(make, heads, c, r, {3, 1, 40}, 1100);
                CpuOps exact(one, isa), alone(one, isa, false), ops(three, isa, false);
                p.run(exact);
                const Tensor u = make.empty(DType::kF32, {44, heads, c}), lse = make.empty(DType::kF32, {44, heads});
                Tensor latents = p.latents;
                const Spans spans = block == 0 ? p.spans : paged(make, exact, p, DType::kF32, block, latents);
                ops.latent_attention(u, lse, p.q, latents, spans, p.scale);
                for (int64_t i = 0; i < u.size(); ++i) ASSERT_NEAR(u.as<float>()[i], p.u.as<float>()[i], 2e-6);
                for (int64_t i = 0; i < lse.size(); ++i) ASSERT_NEAR(lse.as<float>()[i], p.lse.as<float>()[i], 4e-6);
                const std::string all = bytes_of(u);
                alone.latent_attention(u, lse, p.q, latents, spans, p.scale);
                EXPECT_EQ(all == bytes_of(u), true) << "one thread";
                // The last sequence's first 20 rows, without what follows and without the other sequences.
                if (block != 0) continue;
                const int64_t before = 2204;  // keys of the others
                const Tensor few = make.empty(DType::kF32, {20, heads, c}), few_lse = make.empty(DType::kF32, {20, heads});
                ops.latent_attention(few, few_lse, p.q.slice(0, 4, 24), p.latents.slice(0, before, before + 1120),
                                     make.spans({20}, 1100), p.scale);
                EXPECT_EQ(all.substr(static_cast<size_t>(4 * heads * c) * 4, static_cast<size_t>(20 * heads * c) * 4) ==
                              bytes_of(few),
                          true)
                    << "alone";
            }
}

}  // namespace
}  // namespace fathom
