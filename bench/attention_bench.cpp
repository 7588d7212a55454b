// Attention on the CPU: GFLOP/s of the causal products (pairs that meet, nothing else) against the f32 multiply-add roof, in
// one run. Time is the process's CPU time divided by its threads, so that other work on the machine does not count; caches and
// memory are shared with it all the same, so the best of several rounds is taken.
//   attention_bench [threads] [latent]
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <string_view>
#include <vector>

#include "base/rng.h"
#include "base/threads.h"
#include "cpu/cpu_ops.h"
#include "cpu/isa.h"
#include "cpu/roofline.h"

namespace fathom {
namespace {

double cpu_seconds() {
    timespec now{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

class Bench {
public:
    explicit Bench(int threads) : pool_(threads), ops_(pool_), rounding_ops_(pool_, false) {}

    Tensor random(std::initializer_list<int64_t> dims, DType type = DType::kF32) {
        Tensor t(nullptr, type, dims);
        memory_.push_back(Buffer::host(t.bytes()));
        t.data = memory_.back().data();
        if (type == DType::kF32)
            for (int64_t i = 0; i < t.size(); ++i) t.as<float>()[i] = static_cast<float>(rng_.uniform() - 0.5);
        return t;
    }
    Spans spans(const std::vector<int32_t>& queries, const std::vector<int32_t>& keys) {
        const auto cumulate = [&](const std::vector<int32_t>& lengths) {
            const Tensor t = random({static_cast<int64_t>(lengths.size()) + 1}, DType::kI32);
            std::partial_sum(lengths.begin(), lengths.end(), t.as<int32_t>() + 1);
            return t;
        };
        return {cumulate(queries), cumulate(keys), {}, *std::ranges::max_element(queries), *std::ranges::max_element(keys)};
    }

    void expanded(int64_t h, int64_t d_k, int64_t d_s, int64_t d_v, const std::vector<int32_t>& lengths) {
        const int64_t n = std::accumulate(lengths.begin(), lengths.end(), int64_t{0}), d_q = d_k + d_s;
        double pairs = 0;  // (query, key) that meet
        for (const int64_t length : lengths) pairs += static_cast<double>(length) * static_cast<double>(length + 1) / 2;
        const Tensor q = random({n, h, d_q}), kv = random({n, h, d_k + d_v}), k_shared = random({n, d_s});
        const Tensor k = kv.slice(2, 0, d_k), v = kv.slice(2, d_k, d_k + d_v), dkv = random({n, h, d_k + d_v});
        const Tensor o = random({n, h, d_v}), lse = random({n, h}), dout = random({n, h, d_v}), dq = random({n, h, d_q});
        const Tensor dk = dkv.slice(2, 0, d_k), dv = dkv.slice(2, d_k, d_k + d_v), dk_shared = random({n, d_s});
        const Spans all = spans(lengths, lengths);
        const double before = fma_rate(), flops = 2 * pairs * static_cast<double>(h);
        const double forward = seconds_of([&] { ops_.attention(o, lse, q, k, k_shared, v, all, 0.1); });
        const double rounding = seconds_of([&] { rounding_ops_.attention(o, lse, q, k, k_shared, v, all, 0.1); });
        const double backward =
            seconds_of([&] { ops_.attention_backward(dq, dk, dk_shared, dv, dout, q, k, k_shared, v, o, lse, all, 0.1); });
        const double roof = std::max(before, fma_rate());
        const double f = flops * static_cast<double>(d_q + d_v) / forward,
                     b = flops * static_cast<double>(3 * d_q + 2 * d_v) / backward;
        fmt::print(
            "{} heads, {}/{}, {} x {:4}: forward {:5.0f} GFLOP/s ({:2.0f} %), not deterministic {:5.0f}, backward {:5.0f} "
            "GFLOP/s "
            "({:2.0f} %), roof {:.0f}\n",
            h, d_q, d_v, lengths.size(), lengths[0], f / 1e9, 100 * f / roof, f / 1e9 * forward / rounding, b / 1e9,
            100 * b / roof, roof / 1e9);
    }

    void latent(int64_t h, int64_t c, int64_t r, DType type, int32_t rows, int32_t keys) {
        latent(ops_, h, c, r, random({keys, c + r}, type), name_of(type), rows, keys);
    }
    // int8 or int4 blocks, in f32 and in whole numbers.
    void latent(int64_t h, int64_t c, int64_t r, BlockType type, int32_t rows, int32_t keys) {
        const Tensor latents = random({keys, c + r}), all = random({keys}, DType::kI32);
        std::iota(all.as<int32_t>(), all.as<int32_t>() + keys, 0);
        const Weight blocks(random({keys, (c + r) / 32 * traits_of(type).bytes}, DType::kU8), type);
        ops_.scatter_weight_rows(blocks, latents, all);
        latent(ops_, h, c, r, blocks, traits_of(type).name, rows, keys);
        latent(rounding_ops_, h, c, r, blocks, fmt::format("{} in whole numbers", traits_of(type).name), rows, keys);
    }

private:
    void latent(CpuOps& ops, int64_t h, int64_t c, int64_t r, const Weight& latents, std::string_view type, int32_t rows,
                int32_t keys) {
        const Tensor q = random({rows, h, c + r}), u = random({rows, h, c}), lse = random({rows, h});
        const Spans all = spans({rows}, {keys});
        const double roof = fma_rate();
        const double time = seconds_of([&] { ops.latent_attention(u, lse, q, latents, all, 0.1); });
        const double pairs = static_cast<double>(rows) * (keys - 0.5 * (rows - 1));
        const double flops = 2 * pairs * static_cast<double>(h * (2 * c + r)) / time;
        fmt::print(
            "latent, {} heads, {}+{} {}, {} x {}: {:.0f} us, {:.0f} GFLOP/s ({:.0f} % of {:.0f}), {:.1f} GB/s of latents\n", h,
            c, r, type, rows, keys, time * 1e6, flops / 1e9, 100 * flops / roof, roof / 1e9,
            static_cast<double>(latents.codes.bytes()) / time / 1e9);
    }

    double seconds_of(const std::function<void()>& call) {
        double best = 1e30, total = 0;
        for (int round = 0; round < 4 || (total < 1 && round < 100); ++round) {
            const double start = cpu_seconds();
            call();
            const double time = (cpu_seconds() - start) / pool_.size();
            best = std::min(best, time);
            total += time;
        }
        return best;
    }
    // FLOP/s of all threads from registers.
    double fma_rate() {
        constexpr int64_t kRounds = 2'000'000;
        const RooflineKernels loops = has_avx512(choose_isa()) ? roofline_kernels_avx512() : roofline_kernels_avx2();
        const double time = seconds_of([&] {
            pool_.parallel_for(pool_.size(), 1, [&](int64_t, int64_t, int) { sink_ = loops.multiply_add.run(kRounds); });
        });
        return static_cast<double>(loops.multiply_add.operations_per_round * kRounds * pool_.size()) / time;
    }

    std::atomic<float> sink_ = 0;

    ThreadPool pool_;
    CpuOps ops_, rounding_ops_;
    Rng rng_{1};
    std::vector<Buffer> memory_;
};

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
    fathom::Bench bench(argc > 1 ? std::atoi(argv[1]) : 0);
    if (argc < 3) {
        bench.expanded(8, 64, 32, 64, {1024});
        bench.expanded(8, 64, 32, 64, std::vector<int32_t>(4, 1024));
        bench.expanded(8, 128, 64, 128, {1024});
        bench.expanded(8, 64, 32, 64, std::vector<int32_t>(16, 200));
    }
    bench.latent(16, 512, 64, fathom::DType::kBF16, 1, 8192);
    bench.latent(16, 512, 64, fathom::DType::kF32, 1, 8192);
    bench.latent(16, 512, 64, fathom::BlockType::kQ80, 1, 8192);
    bench.latent(16, 512, 64, fathom::BlockType::kQ40, 1, 8192);
    bench.latent(128, 512, 64, fathom::BlockType::kQ80, 1, 8192);
    bench.latent(128, 512, 64, fathom::DType::kBF16, 1, 8192);
    bench.latent(16, 512, 64, fathom::DType::kBF16, 256, 2048);
    bench.latent(8, 64, 16, fathom::DType::kF32, 1024, 1024);
    return 0;
}
