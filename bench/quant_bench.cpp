// Products with quantized weights, by block type: one row (what decoding does), a few rows (an expert's), many (a prompt's),
// and packing at load. One thread, time of the processor, the best of several rounds.
//   quant_bench [rounds] [type, such as q4_k]
#include <fmt/format.h>
#include <time.h>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/rng.h"
#include "base/threads.h"
#include "cpu/cpu_ops.h"
#include "cpu/isa.h"
#include "cpu/quant_panel.h"
#include "tensor/tensor.h"

namespace fathom::bench {
namespace {

constexpr int64_t kOut = 1408, kIn = 2048, kMostRows = 512;

double now() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Seconds of one call, the best of `rounds` rounds of at least 20 ms.
template <class Work>
double seconds_of(int rounds, Work&& work) {
    double best = 1e30;
    for (int round = 0; round < rounds; ++round) {
        const double start = now();
        int calls = 0;
        double taken = 0;
        do {
            work();
            ++calls;
            taken = now() - start;
        } while (taken < 0.02);
        best = std::min(best, taken / calls);
    }
    return best;
}

Weight blocks(Arena& arena, BlockType type, int64_t out) {
    const BlockTraits& traits = traits_of(type);
    const Weight w(arena.allocate(DType::kU8, {out, kIn / traits.elements * traits.bytes}), type);
    std::memset(w.codes.data, 0x11, static_cast<size_t>(w.codes.bytes()));
    return w;
}

// One row times panels that no cache holds, in bytes per second.
double from_memory(BlockType type, int rounds, CpuOps& ops) {
    constexpr int64_t kBytes = int64_t{256} << 20;
    Arena arena("memory");
    const BlockTraits& traits = traits_of(type);
    const int64_t out = kBytes / (kIn / traits.elements * traits.panel_bytes) * Weight::kPanelRows;
    const Weight panels = ops.pack(blocks(arena, type, out), arena);
    const Tensor x = arena.allocate(DType::kF32, {1, kIn}), y = arena.allocate(DType::kF32, {1, out});
    std::fill_n(x.as<float>(), kIn, 1.0f);
    return static_cast<double>(panels.bytes()) / seconds_of(rounds, [&] { ops.matmul(y, x, panels); });
}

void measure(BlockType type, int rounds) {
    ThreadPool pool(1);
    CpuOps ops(pool, choose_isa(), false);
    Arena arena("bench");
    const BlockTraits& traits = traits_of(type);
    const Weight w = blocks(arena, type, kOut);
    const Tensor x = arena.allocate(DType::kF32, {kMostRows, kIn}), y = arena.allocate(DType::kF32, {kMostRows, kOut});
    Rng rng(1, 0);
    for (int64_t i = 0; i < x.size(); ++i) x.as<float>()[i] = static_cast<float>(rng.normal());
    Weight panels;
    const double packing = seconds_of(rounds, [&] {
        const ArenaScope scope(arena);
        panels = ops.pack(w, arena);
    });
    const auto of_rows = [&](int64_t rows) {
        return seconds_of(rounds, [&] { ops.matmul(y.slice(0, 0, rows), x.slice(0, 0, rows), panels); });
    };
    const double numbers = kOut * kIn, one = of_rows(1);
    fmt::print("{:8} {:>9.2f} {:>9.1f} {:>9.1f}", traits.name, packing / numbers * 1e9, from_memory(type, rounds, ops) * 1e-9,
               static_cast<double>(panels.bytes()) / one * 1e-9);
    for (const int64_t rows : {4, 12, 48, 512})
        fmt::print(" {:>9.0f}", 2 * numbers * static_cast<double>(rows) / of_rows(rows) * 1e-9);
    fmt::print("\n");
}

}  // namespace
}  // namespace fathom::bench

int main(int argc, char** argv) {
    using namespace fathom;
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 7;
    const auto only = argc > 2 ? block_type_from_name(argv[2]) : std::nullopt;
    fmt::print("[{}, {}], one thread\n{:8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n", bench::kOut, bench::kIn, "",
               "pack ns/n", "1: memory", "cache", "4: Gop/s", "12", "48", "512");
    for (int i = 1; i <= static_cast<int>(BlockType::kMxfp4); ++i)
        if (!only || *only == static_cast<BlockType>(i)) bench::measure(static_cast<BlockType>(i), rounds);
    return 0;
}
