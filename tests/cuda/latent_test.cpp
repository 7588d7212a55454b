// Absorbed attention on tensor cores, at widths that only the kernel for any card takes.
#include "cuda/bf16_backend.h"
#include "ops/op_test.h"

namespace fathom {
namespace {

class Bf16Latent : public OpTest {
protected:
    struct Case {
        Pair q, latents, u, lse, table;
        std::vector<int64_t> cu_q{0}, cu_k{0};
        int64_t longest_q = 0, longest_k = 0;
    };

    // Sequences of random lengths, their latents in rows one after the other or in scattered pages.
    Case draw(int64_t sequences, int64_t longest, bool paged) {
        Case c;
        for (int64_t s = 0; s < sequences; ++s) {
            const int64_t queries = coin() ? 1 : integer(1, 9), keys = queries + integer(0, longest);
            c.cu_q.push_back(c.cu_q.back() + queries);
            c.cu_k.push_back(c.cu_k.back() + keys);
            c.longest_q = std::max(c.longest_q, queries);
            c.longest_k = std::max(c.longest_k, keys);
        }
        const int64_t h = integer(1, 20), values = 16 * integer(1, 32), width = values + 16 * integer(0, 4), n = c.cu_q.back();
        const auto dense = [&](const Dims& dims) { return random(dims, 1, 0, DType::kBF16, true); };
        c.q = dense({n, h, width});
        c.u = dense({n, h, values});  // to be written
        c.lse = random({n, h}, 1, 0, DType::kF32, true);
        if (!paged) {
            c.latents = dense({c.cu_k.back(), width});
            return c;
        }
        const int64_t block = integer(1, 70), wide = (c.longest_k + block - 1) / block + integer(0, 2),
                      blocks = sequences * wide + integer(0, 3);
        c.latents = dense({blocks, block, width});
        c.table = ints({sequences, wide}, distinct(sequences * wide, blocks));
        return c;
    }

    void attend(Ops& to, Side at, const Case& c, const Pair& cu_q, const Pair& cu_k) const {
        const Spans spans{at(cu_q), at(cu_k), c.table.device ? at(c.table) : Tensor(), c.longest_q, c.longest_k};
        to.latent_attention(at(c.u), at(c.lse), at(c.q), at(c.latents), spans, 0.09);
    }
};
class Bf16LatentInOneOrder : public Bf16Latent {};

INSTANTIATE_TEST_SUITE_P(, Bf16Latent, testing::ValuesIn(bf16_backend<false>("CudaBf16")), backend_name);
INSTANTIATE_TEST_SUITE_P(, Bf16LatentInOneOrder, testing::ValuesIn(bf16_backend<true>("CudaBf16Deterministic")), backend_name);

TEST_P(Bf16Latent, AllHeadsShareLatentsOfAnyWidth) {
    for (int i = 0; i < 24; ++i) {
        const Case c = draw(integer(1, 5), std::array{3, 70, 900}[static_cast<size_t>(i % 3)], coin());
        const Pair cu_q = ints({std::ssize(c.cu_q)}, c.cu_q), cu_k = ints({std::ssize(c.cu_k)}, c.cu_k);
        run([&](Ops& to, Side at) { attend(to, at, c, cu_q, cu_k); });
        expect_close(c.u, 2);
        expect_close(c.lse, 100);
    }
}

TEST_P(Bf16LatentInOneOrder, AQuerysBitsAreThoseOfItsSequenceAlone) {
    const Case c = draw(6, 400, false);
    const auto attend_all = [&](const Case& one) {
        attend(*ops, Side(true), one, ints({std::ssize(one.cu_q)}, one.cu_q), ints({std::ssize(one.cu_k)}, one.cu_k));
    };
    const auto results = [&] { return std::pair(device_values(c.u).data, device_values(c.lse).data); };
    attend_all(c);
    const auto first = results();
    for (size_t s = 0; s + 1 < c.cu_q.size(); ++s) {  // each alone, in the same memory
        const auto cut = [](Pair x, int64_t begin, int64_t end) {
            x.device = x.whole = x.device.slice(0, begin, end);
            return x;
        };
        Case one = c;
        for (Pair* x : {&one.q, &one.u, &one.lse}) *x = cut(*x, c.cu_q[s], c.cu_q[s + 1]);
        one.latents = cut(c.latents, c.cu_k[s], c.cu_k[s + 1]);
        one.longest_q = c.cu_q[s + 1] - c.cu_q[s], one.longest_k = c.cu_k[s + 1] - c.cu_k[s];
        one.cu_q = {0, one.longest_q};
        one.cu_k = {0, one.longest_k};
        attend_all(one);
    }
    EXPECT_EQ(results(), first);
}

}  // namespace
}  // namespace fathom
