#include "ops/op_test.h"

#include <algorithm>

namespace fathom {
namespace {

// Ragged sequences, chunks whose keys begin earlier than their queries, and pages in any order.
class AttentionOps : public OpTest {
protected:
    // Cumulated lengths of a batch.
    struct Lengths {
        std::vector<int64_t> cu_q{0}, cu_k{0};
        int64_t max_q = 0, max_k = 0;
        void add(int64_t queries, int64_t keys) {
            cu_q.push_back(cu_q.back() + queries);
            cu_k.push_back(cu_k.back() + keys);
            max_q = std::max(max_q, queries);
            max_k = std::max(max_k, keys);
        }
    };

    // `past`: sequences may have keys before their first query.
    Lengths random_lengths(bool past) {
        Lengths lengths;
        for (int64_t s = integer(0, 4); s >= 0; --s) {
            const int64_t queries = coin() ? integer(1, 3) : integer(1, 90);
            lengths.add(queries, queries + (past ? integer(0, 2) * integer(0, 80) : 0));
        }
        return lengths;
    }

    SpansPair spans(const Lengths& lengths, const Pair& block_table = {}) {
        const auto sequences = static_cast<int64_t>(lengths.cu_q.size());
        const Pair cu_q = ints({sequences}, lengths.cu_q), cu_k = ints({sequences}, lengths.cu_k);
        return {{cu_q.device, cu_k.device, block_table.device, lengths.max_q, lengths.max_k},
                {cu_q.reference, cu_k.reference, block_table.reference, lengths.max_q, lengths.max_k}};
    }

    // Gives every sequence distinct pages of a cache of `blocks` pages in random order.
    Pair block_table(const Lengths& lengths, int64_t block, int64_t& blocks) {
        const auto sequences = static_cast<int64_t>(lengths.cu_k.size()) - 1;
        const int64_t width = (lengths.max_k + block - 1) / block + integer(0, 2);
        blocks = sequences * width + integer(0, 3);
        return ints({sequences, width}, distinct(sequences * width, blocks));
    }
};
using Attention = AttentionOps;
INSTANTIATE_TEST_SUITE_P(, Attention, testing::ValuesIn(backends()), backend_name);

TEST_P(Attention, AQuerySeesItsOwnKeyAndAllEarlierOnesOfItsSequence) {
    for (int i = 0; i < kCases; ++i) {
        const Lengths lengths = random_lengths(coin());
        const int64_t n = lengths.cu_q.back(), m = lengths.cu_k.back(), h = integer(1, 5);
        const int64_t d_k = width(), shared = coin() ? 0 : integer(1, 20), d_v = width();
        const Pair q = random({n, h, d_k + shared}), k = random({m, h, d_k}), v = random({m, h, d_v});
        const Pair k_shared = shared > 0 ? random({m, shared}) : Pair(), o = empty({n, h, d_v}), lse = empty({n, h});
        const SpansPair visible = spans(lengths);
        const double scale = 1 / std::sqrt(static_cast<double>(d_k + shared));
        run([&](Ops& to, Side at) { to.attention(at(o), at(lse), at(q), at(k), at(k_shared), at(v), at(visible), scale); });
        expect_close(o);
        expect_close(lse);
    }
}

TEST_P(Attention, SharpScoresDoNotOverflow) {
    Lengths lengths;
    lengths.add(70, 70);
    const Pair q = random({70, 2, 24}, 30), k = random({70, 2, 24}, 30), v = random({70, 2, 16});
    const Pair o = empty({70, 2, 16}), lse = empty({70, 2});
    const SpansPair visible = spans(lengths);
    run([&](Ops& to, Side at) { to.attention(at(o), at(lse), at(q), at(k), {}, at(v), at(visible), 1); });
    expect_close(lse);
    expect_close(o, 300);  // scores of some thousands are rounded before exp sees them
}

TEST_P(Attention, BackwardFollowsItsFormula) {
    for (int i = 0; i < kCases; ++i) {
        const Lengths lengths = random_lengths(i % 3 == 0);
        const int64_t n = lengths.cu_q.back(), m = lengths.cu_k.back(), h = integer(1, 5);
        const int64_t d_k = width(), shared = coin() ? 0 : integer(1, 20), d_v = width();
        const Pair q = random({n, h, d_k + shared}), k = random({m, h, d_k}), v = random({m, h, d_v});
        const Pair k_shared = shared > 0 ? random({m, shared}) : Pair(), o = empty({n, h, d_v}), lse = empty({n, h});
        const Pair dout = random({n, h, d_v}), dq = empty({n, h, d_k + shared}), dk = empty({m, h, d_k}),
                   dv = empty({m, h, d_v});
        const Pair dk_shared = shared > 0 ? empty({m, shared}) : Pair();
        const SpansPair visible = spans(lengths);
        const double scale = 1 / std::sqrt(static_cast<double>(d_k + shared));
        run([&](Ops& to, Side at) {
            to.attention(at(o), at(lse), at(q), at(k), at(k_shared), at(v), at(visible), scale);
            to.attention_backward(at(dq), at(dk), at(dk_shared), at(dv), at(dout), at(q), at(k), at(k_shared), at(v), at(o),
                                  at(lse), at(visible), scale);
        });
        for (const Pair& gradient : {dq, dk, dv}) expect_close(gradient, 2);
        if (shared > 0) expect_close(dk_shared, 2);
    }
}

TEST_P(Attention, LatentsServeAsKeysAndValuesOfAllHeads) {
    for (int i = 0; i < kCases; ++i) {
        const Lengths lengths = random_lengths(coin());
        const int64_t n = lengths.cu_q.back(), m = lengths.cu_k.back(), h = integer(1, 5), c = width(), r = integer(0, 20);
        const Pair q = random({n, h, c + r}), latents = random({m, c + r}), u = empty({n, h, c}), lse = empty({n, h});
        const SpansPair visible = spans(lengths);
        run([&](Ops& to, Side at) { to.latent_attention(at(u), at(lse), at(q), at(latents), at(visible), 0.1); });
        expect_close(u);
        expect_close(lse);
    }
}

TEST_P(Attention, PagesOfAnyTypeMayLieAnywhere) {
    for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
        for (int i = 0; i < kCases; ++i) {
            const Lengths lengths = random_lengths(true);
            const int64_t n = lengths.cu_q.back(), h = integer(1, 5), c = width(), r = integer(1, 20), block = integer(1, 40);
            int64_t blocks = 0;
            const Pair table = block_table(lengths, block, blocks);
            const Pair q = random({n, h, c + r}), pages = random({blocks, block, c + r}, 1, 0, type, true);
            const Pair u = empty({n, h, c}), lse = empty({n, h});
            const SpansPair visible = spans(lengths, table);
            run([&](Ops& to, Side at) { to.latent_attention(at(u), at(lse), at(q), at(pages), at(visible), 0.1); });
            expect_close(u);
            expect_close(lse);
        }
    }
}

// ---- the same bits ----

TEST_P(Attention, ChunksGiveTheBitsOfOneShot) {
    const int64_t length = 150, h = 3, d_k = 24, r = 8, d_v = 20;
    const Pair q = random({length, h, d_k + r}), k = random({length, h, d_k}), k_shared = random({length, r});
    const Pair v = random({length, h, d_v}), latents = random({length, 40}), q_latent = random({length, h, 40});
    const auto attend = [&](const std::vector<int64_t>& chunks) {
        const Pair o = empty({length, h, d_v}), lse = empty({length, h}), u = empty({length, h, 32}),
                   lse_u = empty({length, h});
        int64_t begin = 0;
        for (const int64_t chunk : chunks) {
            Lengths lengths;
            lengths.add(chunk, begin + chunk);
            const SpansPair visible = spans(lengths);
            const auto now = [&](const Pair& x) { return x.device.slice(0, begin, begin + chunk); };
            const auto so_far = [&](const Pair& x) { return x.device.slice(0, 0, begin + chunk); };
            ops->attention(now(o), now(lse), now(q), so_far(k), so_far(k_shared), so_far(v), visible.device, 0.2);
            ops->latent_attention(now(u), now(lse_u), now(q_latent), so_far(latents), visible.device, 0.2);
            begin += chunk;
        }
        std::vector<double> all;
        for (const Pair& x : {o, lse, u, lse_u}) std::ranges::copy(device_values(x).data, std::back_inserter(all));
        return all;
    };
    const auto once = attend({length});
    EXPECT_EQ(once, attend({1, 1, 1, 147}));
    EXPECT_EQ(once, attend({64, 64, 22}));
    EXPECT_EQ(once, attend({37, 99, 13, 1}));
}

TEST_P(Attention, PagesGiveTheBitsOfContiguousLatents) {
    const int64_t length = 101, h = 3, width = 40, block = 16;
    Lengths lengths;
    lengths.add(5, length);
    int64_t blocks = 0;
    const Pair table = block_table(lengths, block, blocks), q = random({5, h, width});
    const Pair latents = random({length, width}), pages = random({blocks, block, width}, 1, 0, DType::kF32, true);
    const auto page = Values<int64_t>(table.reference).data;
    for (int64_t j = 0; j < length; ++j) {
        const int64_t at = page[static_cast<size_t>(j / block)];
        ops->copy(pages.device.slice(0, at, at + 1).view({block, width}).slice(0, j % block, j % block + 1),
                  latents.device.slice(0, j, j + 1));
    }
    const Pair u = empty({5, h, 32}), lse = empty({5, h}), u_paged = empty({5, h, 32}), lse_paged = empty({5, h});
    ops->latent_attention(u.device, lse.device, q.device, latents.device, spans(lengths).device, 0.3);
    ops->latent_attention(u_paged.device, lse_paged.device, q.device, pages.device, spans(lengths, table).device, 0.3);
    EXPECT_EQ(device_values(u).data, device_values(u_paged).data);
    EXPECT_EQ(device_values(lse).data, device_values(lse_paged).data);
}

TEST_P(Attention, NeighboursInTheBatchChangeNothing) {
    const int64_t h = 2, d = 24;
    Lengths alone, together;
    alone.add(30, 45);
    together.add(7, 7);
    together.add(30, 45);
    together.add(1, 80);
    const Pair q = random({38, h, d}), k = random({132, h, d}), v = random({132, h, d});
    const Pair o = empty({38, h, d}), lse = empty({38, h}), o_alone = empty({30, h, d}), lse_alone = empty({30, h});
    ops->attention(o.device, lse.device, q.device, k.device, {}, v.device, spans(together).device, 0.2);
    ops->attention(o_alone.device, lse_alone.device, q.device.slice(0, 7, 37), k.device.slice(0, 7, 52), {},
                   v.device.slice(0, 7, 52), spans(alone).device, 0.2);
    const auto all = device_values(o), one = device_values(o_alone);
    EXPECT_TRUE(std::equal(one.data.begin(), one.data.end(), all.data.begin() + 7 * h * d));
}

}  // namespace
}  // namespace fathom
