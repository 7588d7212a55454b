// Matrix products against three roofs measured in the same, interleaved run: fused multiply-adds in registers, reading memory,
// and oneDNN's sgemm. Other work on the machine slows all of them alike; the best of all rounds counts.
//   gemm_bench [threads] [rounds] [only cases whose name contains this]
#include <fmt/format.h>
#include <time.h>
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/threads.h"
#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/roofline.h"
#include "cpu/scratch.h"
#include "onednn.h"
#include "tensor/tensor.h"

namespace fathom::bench {
namespace {

struct Case {
    std::string name;
    double operations = 0, bytes = 0;  // multiply and add counted as two; weights read once
    std::function<void()> run;
    double seconds = 1e30;
};

enum class Form : uint8_t { kForward, kPanels, kDgrad, kWgrad };  // kPanels: forward, cpu/number_panel.h

class Cases {
public:
    Cases(ThreadPool& pool, Isa isa, std::string only) : pool_(pool), isa_(isa), only_(std::move(only)), scratch_(pool.size()) {
        // Each byte 0x3c: a number near 1 or 0.01 in every format.
        for (const Buffer* b : {&weights_, &activations_}) std::memset(b->data(), 0x3c, static_cast<size_t>(b->bytes()));
    }

    // `count` products of one kind: together in one call, or one call each as the layers of a model.
    void add(const std::string& name, Form form, DType weights, int64_t count, int64_t n, int64_t in, int64_t out,
             bool together) {
        if (name.find(only_) == std::string::npos) return;
        weights_used_ = activations_used_ = 0;  // cases share memory
        std::vector<GemmProduct> products;
        for (int64_t i = 0; i < count; ++i) products.push_back(product(form, weights, n, in, out));
        const double size = static_cast<double>(count * in * out);
        cases.push_back({name, 2 * size * static_cast<double>(n),
                         form == Form::kWgrad ? 0 : size * static_cast<double>(size_of(weights)), [this, products, together] {
                             if (together) return run_gemm(products, pool_, isa_, scratch_);
                             for (const GemmProduct& p : products) run_gemm({&p, 1}, pool_, isa_, scratch_);
                         }});
    }
    void add_roofs() {
        const RooflineKernels loops = has_avx512(isa_) ? roofline_kernels_avx512() : roofline_kernels_avx2();
        cases.push_back({"roof: fma", static_cast<double>(loops.multiply_add.operations_per_round) * kFmaRounds * pool_.size(),
                         0, [this, loops] {
                             pool_.parallel_for(pool_.size(), 1,
                                                [&](int64_t, int64_t, int) { sink_ = loops.multiply_add.run(kFmaRounds); });
                         }});
        cases.push_back({"roof: read", 0, static_cast<double>(weights_.bytes()), [this, loops] {
                             const auto* const from = static_cast<const float*>(weights_.data());
                             pool_.parallel_for(weights_.bytes() / 4, int64_t{1} << 20, [&](int64_t begin, int64_t end, int) {
                                 sink_ = loops.sum(from + begin, end - begin);
                             });
                         }});
        auto* const a = static_cast<float*>(weights_.data());
        auto* const c = static_cast<float*>(activations_.data());
        const auto product = [=] { return onednn_product(c, a, a + 2048 * 2048, 2048, 2048, 2048); };
        if (product()) cases.push_back({"roof: oneDNN sgemm 2048^3", 2.0 * 2048 * 2048 * 2048, 0, [=] { (void)product(); }});
    }
    std::vector<Case> cases;

private:
    static constexpr int64_t kFmaRounds = 1'000'000;

    static void* take(const Buffer& from, int64_t& used, int64_t bytes) {
        check(used + bytes <= from.bytes(), "gemm_bench: a case needs more memory");
        return static_cast<std::byte*>(from.data()) + std::exchange(used, used + (bytes + 63) / 64 * 64);
    }
    float* activation(int64_t size) { return static_cast<float*>(take(activations_, activations_used_, size * 4)); }
    GemmProduct product(Form form, DType weights, int64_t n, int64_t in, int64_t out) {
        GemmProduct p;
        p.m = form == Form::kWgrad ? out : n;
        const bool forward = form == Form::kForward || form == Form::kPanels;
        p.n = forward ? out : in;
        p.k = forward ? in : form == Form::kDgrad ? out : n;
        p.c = activation(p.m * p.n);
        p.c_row = p.n;
        p.a = activation(p.m * p.k);
        p.a_row = form == Form::kWgrad ? 1 : p.k;
        p.a_k = form == Form::kWgrad ? p.m : 1;
        p.b = {take(weights_, weights_used_, p.n * p.k * size_of(weights)), weights, form == Form::kForward ? p.k : p.n,
               form == Form::kForward};
        if (form == Form::kPanels) p.b.panels = true, p.b.stride = Weight::kPanelRows * p.k;
        p.accumulate = form == Form::kWgrad;
        return p;
    }

    ThreadPool& pool_;
    Isa isa_;
    std::string only_;
    Scratch scratch_;
    Buffer weights_ = Buffer::host(int64_t{512} << 20), activations_ = Buffer::host(int64_t{64} << 20);
    int64_t weights_used_ = 0, activations_used_ = 0;
    std::atomic<float> sink_ = 0;  // what the roofs computed, so that they must
};

// Seconds that the work took: of the clock, or with one thread of the processor, whatever else the machine did meanwhile.
double now(int threads) {
    timespec time{};
    clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void add_products(Cases& cases) {
    const auto f32 = DType::kF32, bf16 = DType::kBF16;
    cases.add("2048^3 forward", Form::kForward, f32, 1, 2048, 2048, 2048, true);
    cases.add("2048^3 dgrad", Form::kDgrad, f32, 1, 2048, 2048, 2048, true);
    cases.add("2048^3 wgrad", Form::kWgrad, f32, 1, 2048, 2048, 2048, true);
    cases.add("2048^3 forward bf16", Form::kForward, bf16, 1, 2048, 2048, 2048, true);
    for (const auto& [form, name] : {std::pair{Form::kForward, "forward"}, {Form::kDgrad, "dgrad"}, {Form::kWgrad, "wgrad"}}) {
        for (const int64_t n : {2048, 8192})
            cases.add(fmt::format("[{}, 256] -> 768 {}", n, name), form, f32, 1, n, 256, 768, true);
        cases.add(fmt::format("[2048, 256] -> 192 {}", name), form, f32, 1, 2048, 256, 192, true);
        cases.add(fmt::format("[2048, 1024] -> 256 {}", name), form, f32, 1, 2048, 1024, 256, true);
        cases.add(fmt::format("32 experts x 512 rows 256 -> 128 {}", name), form, f32, 32, 512, 256, 128, true);
        cases.add(fmt::format("32 experts x 512 rows 128 -> 256 {}", name), form, f32, 32, 512, 128, 256, true);
    }
    cases.add("32 experts x 512 rows 256 -> 128 bf16", Form::kForward, bf16, 32, 512, 256, 128, true);
    cases.add("32 experts x 12 rows 2048 -> 1408 bf16", Form::kForward, bf16, 32, 12, 2048, 1408, true);
    for (const int64_t n : {1, 2, 4, 8, 12, 16, 24, 32})
        cases.add(fmt::format("{} rows 16 x [4096, 4096] bf16", n), Form::kForward, bf16, 16, n, 4096, 4096, false);
    for (const int64_t n : {1, 2, 4, 8, 16, 24, 32, 512})
        cases.add(fmt::format("{} rows 16 x [4096, 4096] bf16 panels", n), Form::kPanels, bf16, n == 512 ? 1 : 16, n, 4096,
                  4096, false);
    cases.add("1 row 64 experts [2048, 1408] bf16 panels", Form::kPanels, bf16, 64, 1, 2048, 1408, true);
    cases.add("1 row 16 x [4096, 4096] f16 panels", Form::kPanels, DType::kF16, 16, 1, 4096, 4096, false);
    for (const int64_t n : {12, 48, 512})
        cases.add(fmt::format("{} rows [4096, 4096] f16 panels", n), Form::kPanels, DType::kF16, 1, n, 4096, 4096, false);
    cases.add("1 row 8 x [4096, 4096] f32", Form::kForward, DType::kF32, 8, 1, 4096, 4096, false);
    cases.add("1 row 16 x [4096, 4096] f16", Form::kForward, DType::kF16, 16, 1, 4096, 4096, false);
    cases.add("1 row 16 x [4096, 4096] fp8", Form::kForward, DType::kF8E4M3, 16, 1, 4096, 4096, false);
    cases.add("1 row 16 x [4096, 4096] bf16 dgrad", Form::kDgrad, bf16, 16, 1, 4096, 4096, false);
    cases.add("1 row 64 experts [2048, 1408] bf16", Form::kForward, bf16, 64, 1, 2048, 1408, true);
    cases.add("1 row 2048 heads [128, 512] bf16 dgrad", Form::kDgrad, bf16, 2048, 1, 512, 128, true);
}

void print(const std::vector<Case>& cases) {
    double fma = 0, read = 0, onednn = 0;
    for (const Case& c : cases) {
        if (c.name == "roof: fma") fma = c.operations / c.seconds;
        if (c.name.starts_with("roof: read")) read = c.bytes / c.seconds;
        if (c.name.starts_with("roof: oneDNN")) onednn = c.operations / c.seconds;
    }
    fmt::print("{:42} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8}\n", "", "ms", "GFLOP/s", "/fma", "/oneDNN", "GB/s", "/read");
    for (const Case& c : cases) {
        const double operations = c.operations / c.seconds, bytes = c.bytes / c.seconds;
        fmt::print("{:42} {:9.3f} {:8.1f} {:8.2f} {:8.2f} {:8.2f} {:8.2f}\n", c.name, c.seconds * 1e3, operations * 1e-9,
                   operations / fma, onednn > 0 ? operations / onednn : 0.0, bytes * 1e-9, bytes / read);
    }
}

int run(int threads, int rounds, const std::string& only) {
    ThreadPool pool(threads);
    const Isa isa = choose_isa();
    Cases cases(pool, isa, only);
    add_products(cases);
    cases.add_roofs();
    for (int round = 0; round < rounds; ++round)
        for (Case& c : cases.cases) {
            const double begin = now(pool.size());
            c.run();
            c.seconds = std::min(c.seconds, now(pool.size()) - begin);
        }
    fmt::print("{}, {} threads, best of {}\n", name_of(isa), pool.size(), rounds);
    print(cases.cases);
    return 0;
}

}  // namespace
}  // namespace fathom::bench

int main(int argc, char** argv) {
    const auto argument = [&](int i, const char* fallback) { return argc > i ? argv[i] : fallback; };
    return fathom::bench::run(std::atoi(argument(1, "0")), std::atoi(argument(2, "20")), argument(3, ""));
}
