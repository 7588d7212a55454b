#include "cpu/roofline.h"

#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>

#include "cpu/isa.h"
#include "tensor/tensor.h"

namespace fathom {
namespace {

constexpr int64_t kMinBuffer = int64_t{256} << 20, kMaxBuffer = int64_t{512} << 20;  // bytes
constexpr int64_t kChunk = int64_t{1} << 20;                                         // floats a thread reads at a time
constexpr int kRounds = 7;
constexpr int64_t kMultiplyAdds = 2'000'000;  // rounds per chunk: about 10 ms

constexpr int64_t kShort = 20'000;  // rounds of f32 in a comparison: about 0.1 ms
constexpr double kWorth = 1.2;      // how much faster products that round must be

// The shortest of kRounds runs, in seconds.
template <class Work>
double best_seconds(Work&& work) {
    double best = 1e30;
    for (int round = 0; round < kRounds; ++round) {
        const auto start = std::chrono::steady_clock::now();
        work();
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best;
}

// Is `loop` kWorth times as fast as f32?
bool pays(const ProductLoop& loop) {
    std::atomic<float> sink{0};
    const ProductLoop loops[] = {loop, roofline_kernels_avx512().multiply_add};
    double rates[2] = {};
    for (int round = 0; round < kRounds; ++round)  // in turn, so that a disturbance meets both
        for (const size_t i : {0, 1}) {
            const int64_t rounds =
                std::max(kShort * loops[1].operations_per_round / loops[i].operations_per_round, kShort / 20);
            const auto start = std::chrono::steady_clock::now();
            sink.store(loops[i].run(rounds), std::memory_order_relaxed);
            const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            rates[i] = std::max(rates[i], static_cast<double>(rounds * loops[i].operations_per_round) / seconds);
        }
    return rates[0] > kWorth * rates[1];
}

}  // namespace

Roofline measure_roofline(ThreadPool& threads) {
    const RooflineKernels kernels = has_avx512(choose_isa()) ? roofline_kernels_avx512() : roofline_kernels_avx2();
    std::atomic<float> sink{0};  // keeps the results alive, so that the loops are not removed

    const int64_t last_cache = std::max<int64_t>(::sysconf(_SC_LEVEL3_CACHE_SIZE), 0);
    const Buffer buffer = Buffer::host(std::clamp(4 * last_cache, kMinBuffer, kMaxBuffer));
    auto* const values = static_cast<float*>(buffer.data());
    const int64_t count = buffer.bytes() / static_cast<int64_t>(sizeof(float)) / kChunk * kChunk;
    // Pages that nobody wrote to are all one page of zeros, which the cache holds: reading them went at 160 GB/s.
    threads.parallel_for(count, kChunk,
                         [&](int64_t begin, int64_t end, int) { std::fill(values + begin, values + end, 1.0f); });
    const double reading = best_seconds([&] {
        threads.parallel_for(count, kChunk, [&](int64_t begin, int64_t end, int) {
            sink.store(kernels.sum(values + begin, end - begin), std::memory_order_relaxed);
        });
    });

    const int64_t chunks = 4 * threads.size();  // several each: a thread that starts late costs little
    const auto rate_of = [&](const ProductLoop& loop, int64_t rounds = kMultiplyAdds) {
        const double seconds = best_seconds([&] {
            threads.parallel_for(chunks, 1, [&](int64_t begin, int64_t end, int) {
                for (int64_t i = begin; i < end; ++i) sink.store(loop.run(rounds), std::memory_order_relaxed);
            });
        });
        return static_cast<double>(chunks * rounds * loop.operations_per_round) / seconds;
    };
    Roofline result{static_cast<double>(count) * sizeof(float) / reading, rate_of(kernels.multiply_add)};
    if (supports(Isa::kAvx512Bf16)) result.bf16_flops_per_second = rate_of(bf16_loop_avx512());
    if (supports(Isa::kAvx512) && __builtin_cpu_supports("avx512vnni"))
        result.int8_ops_per_second = rate_of(int8_loop_avx512());
    if (supports(Isa::kAvx512Fp16)) result.fp16_flops_per_second = rate_of(fp16_loop_avx512());
    if (supports(Isa::kAmx)) {
        result.bf16_tile_flops_per_second = rate_of(bf16_loop_amx(), kMultiplyAdds / 10);
        result.int8_tile_ops_per_second = rate_of(int8_loop_amx(), kMultiplyAdds / 10);
    }
    return result;
}

bool bf16_pairs_pay() {
    static const bool kPay = pays(bf16_loop_avx512());
    return kPay;
}

bool bf16_tiles_pay() {
    static const bool kPay = pays(bf16_loop_amx());
    return kPay;
}

bool halves_pay() {
    static const bool kPay = pays(fp16_loop_avx512());
    return kPay;
}

}  // namespace fathom
