// coded_bench: times products of few rows with weights of 4 and 8 bits (src/cuda/quant_rows.cu), the writing out of such
// weights and the quantizing of activations (quant.cu), in graphs of launches over weights that no cache holds. Needs a GPU;
// prints a line per case: microseconds, bytes of codes and scales over that time, and as a share of the copy ceiling, 2976
// GB/s.
#include <cuda_fp8.h>

#include <cstdio>
#include <exception>
#include <random>

#include "bench.cuh"
#include "cuda/hopper_gemm.h"
#include "cuda/quant.h"

namespace fathom::cuda {
namespace {

using hopper::Device;
constexpr double kCopyCeiling = 2976;
constexpr int64_t kUncached = int64_t{400} << 20;

struct Case {
    const char* what;
    int64_t rows, columns, m;
    int matrices;  // experts, or 1
};

CodeFormat format_of(CodeKind kind, const Case& c) {
    CodeFormat f;
    f.kind = kind;
    f.rows = c.rows;
    f.columns = c.columns;
    f.code_row = kind == CodeKind::kInt4 ? c.columns / 2 : c.columns;
    f.scale_row = c.columns / 128;
    f.group = 128;
    f.scale_type = kind == CodeKind::kFp8 ? DType::kF32 : DType::kBF16;
    return f;
}

// Microseconds of one of `count` launches in a graph, median of 11 replays.
template <class Launch>
double microseconds(int count, Launch&& launch) {
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    for (int i = 0; i < count; ++i) launch(stream, i);
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "capture");
    for (int i = 0; i < count; ++i) launch(stream, i);
    check_cuda(cudaStreamEndCapture(stream, &graph), "capture");
    check_cuda(cudaGraphInstantiate(&exec, graph, 0), "graph");
    cudaEvent_t a{}, b{};
    check_cuda(cudaEventCreate(&a), "event");
    check_cuda(cudaEventCreate(&b), "event");
    std::vector<float> times(11);
    for (float& t : times) {
        check_cuda(cudaEventRecord(a, stream), "event");
        check_cuda(cudaGraphLaunch(exec, stream), "graph");
        check_cuda(cudaEventRecord(b, stream), "event");
        check_cuda(cudaEventSynchronize(b), "event");
        check_cuda(cudaEventElapsedTime(&t, a, b), "event");
    }
    std::sort(times.begin(), times.end());
    return static_cast<double>(times[5]) * 1e3 / count;
}

// Rows of experts: m of them drawn evenly, or one row for each of the first m.
std::vector<int32_t> bounds(const Case& c) {
    std::vector<int32_t> offsets(static_cast<size_t>(c.matrices) + 1);
    std::mt19937 random(1);
    for (int64_t i = 0; i < c.m; ++i) {
        const auto expert = c.m < c.matrices ? i * c.matrices / c.m : static_cast<int64_t>(random() % c.matrices);
        ++offsets[static_cast<size_t>(expert) + 1];
    }
    for (size_t e = 1; e < offsets.size(); ++e) offsets[e] += offsets[e - 1];
    return offsets;
}

void time_case(CodeKind kind, const char* name, const Case& c) {
    const CodeFormat f = format_of(kind, c);
    const int64_t codes = f.rows * f.code_row, scales = f.rows * f.scale_row * (kind == CodeKind::kFp8 ? 4 : 2);
    const bool grouped = c.matrices > 1;
    const int copies = static_cast<int>(grouped ? 2 : std::max<int64_t>(2, kUncached / codes));
    const Device all_codes(codes * c.matrices * copies), all_scales(scales * c.matrices * copies);
    hopper::fill_random(all_codes.as<uint32_t>(), codes * c.matrices * copies / 4, 1, 1e9F);
    check_cuda(cudaMemset(all_scales.pointer, 0x3c, all_scales.bytes), "scales");
    const Device x(c.m * c.columns * 2), y(c.m * c.rows * 2), offsets(4 * (c.matrices + 1));
    hopper::fill_random(x.as<__nv_bfloat16>(), c.m * c.columns, 2);
    const std::vector<int32_t> cut = bounds(c);
    hopper::to_device(offsets.pointer, cut.data(), cut.size() * 4);
    CodedProduct p;
    p.format = f;
    p.x = x.pointer, p.x_row = c.columns;
    p.y = y.pointer, p.y_row = c.rows;
    p.m = c.m;
    p.groups = c.matrices;
    if (grouped) p.offsets = offsets.as<int32_t>();
    std::vector<CodeTable> tables(static_cast<size_t>(copies));
    for (int i = 0; i < copies; ++i)
        for (int g = 0; g < c.matrices; ++g) {
            tables[i].codes[g] = all_codes.as<uint8_t>() + (i * c.matrices + g) * codes;
            tables[i].scales[g] = all_scales.as<uint8_t>() + (i * c.matrices + g) * scales;
        }
    int64_t read = 1;
    if (grouped) read = std::count_if(cut.begin() + 1, cut.end(), [&](const int32_t& end) { return end > *(&end - 1); });
    const int launches = std::min(copies * 4, 60);
    const double us = microseconds(launches, [&](cudaStream_t s, int i) { run_coded_rows(s, "rows", p, tables[i % copies]); });
    const double rate = static_cast<double>((codes + scales) * read) / us / 1e3;
    std::printf("%s %-18s %4ld rows, out %6ld, in %5ld: %8.2f us %7.0f GB/s  %.2f", name, c.what, c.m, c.rows, c.columns, us,
                rate, rate / kCopyCeiling);
    if (c.m > 1) std::printf("  %6.1f TFLOP/s", 2e-6 * static_cast<double>(c.m * c.rows * c.columns) / us);
    std::printf("\n");
    if (!grouped || c.m < 700) return;
    const Device numbers(f.rows * f.columns * c.matrices * 2);
    const double wide = microseconds(4, [&](cudaStream_t s, int i) {
        expand_codes(s, "expand", numbers.pointer, DType::kBF16, f, tables[i % copies], c.matrices, p.offsets);
    });
    const double moved = static_cast<double>((codes + scales + 2 * f.rows * f.columns) * read);
    std::printf("%s   written out in bf16: %8.2f us %7.0f GB/s  %.2f\n", name, wide, moved / wide / 1e3,
                moved / wide / 1e3 / kCopyCeiling);
}

// The same product with activations in FP8, their quantizing included.
void time_fp8_gemm(const Case& c) {
    const int64_t codes = c.rows * c.columns, blocks = (c.columns + 127) / 128, grid = (c.rows + 127) / 128 * blocks;
    const int copies = static_cast<int>(c.matrices > 1 ? 2 : std::max<int64_t>(2, kUncached / codes));
    const int64_t scale_row = (c.m + 3) / 4 * 4;
    const Device w(codes * c.matrices * copies), w_scales(4 * grid * c.matrices * copies), x(c.m * c.columns * 2),
        q(c.m * c.columns), x_scales(4 * scale_row * blocks), y(c.m * c.rows * 2), offsets(4 * (c.matrices + 1));
    hopper::fill_random(w.as<__nv_fp8_e4m3>(), codes * c.matrices * copies, 1, 30.F);
    hopper::fill_random(x.as<__nv_bfloat16>(), c.m * c.columns, 2);
    check_cuda(cudaMemset(w_scales.pointer, 0x3c, w_scales.bytes), "scales");
    const std::vector<int32_t> cut = bounds(c);
    hopper::to_device(offsets.pointer, cut.data(), cut.size() * 4);
    hopper::GroupedGemm g;
    g.groups = c.matrices, g.rows = c.m, g.out = c.rows, g.in = c.columns;
    g.offsets = c.matrices > 1 ? offsets.as<int32_t>() : nullptr;
    g.x_row = c.columns, g.y_row = c.rows, g.w_row = c.columns, g.w_group = codes;
    const int launches = std::min(copies * 4, 60);
    const double us = microseconds(launches, [&](cudaStream_t s, int i) {
        quantize_activations(s, "quantize", q.pointer, x_scales.as<float>(), scale_row, x.pointer, c.columns, c.m, c.columns);
        hopper::Fp8Scales scales{x_scales.as<float>(), scale_row, w_scales.as<float>() + i % copies * grid * c.matrices, blocks,
                                 grid};
        hopper::grouped_matmul_fp8(y.pointer, q.pointer, w.as<uint8_t>() + i % copies * codes * c.matrices, scales, g, s);
    });
    const double rate = static_cast<double>(codes * c.matrices) / us / 1e3;
    std::printf("fp8 x fp8 %-12s %5ld rows, out %6ld, in %5ld: %8.2f us %7.0f GB/s  %.2f  %6.1f TFLOP/s\n", c.what, c.m, c.rows,
                c.columns, us, rate, rate / kCopyCeiling, 2e-6 * static_cast<double>(c.m * c.rows * c.columns) / us);
}

void time_quantizing(int64_t m, int64_t columns) {
    const Device x(m * columns * 2), q(m * columns), scales(4 * m * columns / 128 + 16 * columns);
    hopper::fill_random(x.as<__nv_bfloat16>(), m * columns, 2);
    const double us = microseconds(10, [&](cudaStream_t s, int) {
        quantize_activations(s, "quantize", q.pointer, scales.as<float>(), (m + 3) / 4 * 4, x.pointer, columns, m, columns);
    });
    std::printf("activations to FP8, %5ld x %5ld: %8.2f us %7.0f GB/s\n", m, columns, us,
                static_cast<double>(3 * m * columns) / us / 1e3);
}

}  // namespace
}  // namespace fathom::cuda

int main() {
    using namespace fathom::cuda;
    const Case cases[] = {
        {"q_proj", 3072, 2048, 1, 1},         {"o_proj", 2048, 2048, 1, 1},          {"kv_a", 576, 2048, 1, 1},
        {"shared gate+up", 5632, 2048, 1, 1}, {"shared down", 2048, 2816, 1, 1},     {"gate+up", 2816, 2048, 6, 64},
        {"down", 2048, 1408, 6, 64},          {"large", 16384, 8192, 1, 1},          {"large", 16384, 8192, 8, 1},
        {"large", 16384, 8192, 32, 1},        {"large", 16384, 8192, 64, 1},         {"gate+up", 2816, 2048, 48, 64},
        {"gate+up", 2816, 2048, 768, 64},     {"down", 2048, 1408, 768, 64},         {"gate+up", 2816, 2048, 3072, 64},
        {"q_proj", 3072, 2048, 128, 1},       {"shared gate+up", 5632, 2048, 128, 1}};
    try {
        for (const auto& [kind, name] :
             {std::pair{CodeKind::kInt4, "int4"}, {CodeKind::kInt8, "int8"}, {CodeKind::kFp8, "fp8 "}})
            for (const Case& c : cases) time_case(kind, name, c);
        const Case many[] = {{"gate+up", 2816, 2048, 768, 64},   {"down", 2048, 1408, 768, 64},
                             {"q_proj", 3072, 2048, 128, 1},     {"o_proj", 2048, 2048, 128, 1},
                             {"shared", 5632, 2048, 128, 1},     {"gate+up", 2816, 2048, 49152, 64},
                             {"dense down", 2048, 10944, 128, 1}};
        for (const Case& c : many) time_fp8_gemm(c);
        time_quantizing(128, 2048);
        time_quantizing(8192, 2048);
        time_quantizing(49152, 2048);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "coded_bench: %s\n", e.what());
        return 1;
    }
    return 0;
}
