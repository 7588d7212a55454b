// Grouped products: against a plain kernel that sums in f64, over random shapes with empty and single-row groups; then the
// rates.
#include <cuda_fp8.h>

#include "bench.cuh"
#include "cuda/hopper_gemm.h"

namespace fathom::hopper {

namespace {

enum class Form { kForward, kDgrad, kWgrad };

__device__ int group_of(const int32_t* offsets, int groups, int row) {
    for (int g = 0; g < groups; ++g)
        if (row < offsets[g + 1]) return g;
    return -1;
}

// One thread per element of y (forward) or dx (dgrad); rows of no group stay as they are.
__global__ void reference_rows(float* out, const bf16* a, const bf16* w, GroupedGemm g, bool dgrad) {
    const int64_t width = dgrad ? g.in : g.out, depth = dgrad ? g.out : g.in;
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const int64_t z = blockIdx.y, row = i / width, column = i % width;
    if (row >= g.rows) return;
    const int group =
        g.offsets == nullptr ? static_cast<int>(z) : group_of(g.offsets, static_cast<int>(g.groups), static_cast<int>(row));
    if (group < 0) return;
    const bf16* x = a + row * (dgrad ? g.y_row : g.x_row) + z * (dgrad ? g.y_group : g.x_group);
    double sum = 0;
    for (int64_t k = 0; k < depth; ++k) {
        const int64_t at = dgrad ? k * g.w_row + column : column * g.w_row + k;
        sum +=
            static_cast<double>(static_cast<float>(x[k])) * static_cast<double>(static_cast<float>(w[group * g.w_group + at]));
    }
    out[row * (dgrad ? g.x_row : g.y_row) + z * (dgrad ? g.x_group : g.y_group) + column] = static_cast<float>(sum);
}

__global__ void reference_wgrad(float* dw, const bf16* dy, const bf16* x, GroupedGemm g) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const int64_t z = blockIdx.y, o = i / g.in, c = i % g.in;
    if (o >= g.out) return;
    const int64_t first = g.offsets == nullptr ? 0 : g.offsets[z], last = g.offsets == nullptr ? g.rows : g.offsets[z + 1];
    double sum = dw[z * g.w_group + o * g.w_row + c];
    for (int64_t r = first; r < last; ++r)
        sum += static_cast<double>(static_cast<float>(dy[r * g.y_row + z * g.y_group + o])) *
               static_cast<double>(static_cast<float>(x[r * g.x_row + z * g.x_group + c]));
    dw[z * g.w_group + o * g.w_row + c] = static_cast<float>(sum);
}

unsigned blocks(int64_t threads) { return static_cast<unsigned>((threads + 255) / 256); }

// Which groups there are: random sizes, some empty, some of one row; `spare` rows behind the last belong to nobody.
std::vector<int32_t> random_offsets(int groups, int mean, std::mt19937& random) {
    std::vector<int32_t> offsets{0};
    for (int i = 0; i < groups; ++i) {
        const int kind = static_cast<int>(random() % 6);
        const int size = kind == 0 ? 0 : kind == 1 ? 1 : static_cast<int>(random() % (2 * mean + 1));
        offsets.push_back(offsets.back() + size);
    }
    return offsets;
}

struct Case {
    int groups, mean, out, in;
    bool batched;
};

void run(Form form, Output type, const GroupedGemm& g, void* out, const bf16* a, const bf16* b) {
    if (form == Form::kForward) grouped_matmul(out, type, a, b, g, nullptr);
    if (form == Form::kDgrad) grouped_dgrad(out, type, a, b, g, nullptr);
    if (form == Form::kWgrad) grouped_wgrad(static_cast<float*>(out), a, b, g, true, nullptr);
}

void check_case(const Case& c, Form form, Output type, uint64_t seed) {
    std::mt19937 random(static_cast<unsigned>(seed));
    const auto offsets = random_offsets(c.groups, c.mean, random);
    const Device device_offsets(offsets.size() * 4);
    to_device(device_offsets.pointer, offsets.data(), offsets.size() * 4);
    GroupedGemm g{.groups = c.groups, .rows = c.batched ? c.mean : offsets.back() + 3, .out = c.out, .in = c.in};
    g.offsets = c.batched ? nullptr : device_offsets.as<int32_t>();
    // Batched: groups beside each other in a row, as heads are. Otherwise rows with a little space between them.
    g.x_group = c.batched ? c.in : 0;
    g.y_group = c.batched ? c.out : 0;
    g.x_row = c.batched ? int64_t{c.groups} * c.in : c.in + 8;
    g.y_row = c.batched ? int64_t{c.groups} * c.out : c.out + 16;
    g.w_row = c.in + (form == Form::kWgrad ? 0 : 8);
    g.w_group = c.out * g.w_row + 64;
    const size_t x_count = g.rows * g.x_row, y_count = g.rows * g.y_row, w_count = c.groups * g.w_group;
    const Device x(x_count * 2), y(y_count * 2), w(w_count * 2);
    fill_random(x.as<bf16>(), x_count, seed + 1);
    fill_random(y.as<bf16>(), y_count, seed + 2);
    fill_random(w.as<bf16>(), w_count, seed + 3);

    const size_t count = form == Form::kForward ? y_count : form == Form::kDgrad ? x_count : w_count;
    const size_t bytes = count * (type == Output::kBf16 ? 2 : 4);
    const Device out(bytes), again(bytes), reference(count * 4);
    const unsigned depth = c.batched || form == Form::kWgrad ? c.groups : 1;
    if (form == Form::kWgrad) {  // accumulates: starts from something
        for (const Device* d : {&out, &again, &reference}) fill_random(d->as<float>(), count, seed + 4);
        reference_wgrad<<<dim3(blocks(int64_t{c.out} * c.in), depth), 256>>>(reference.as<float>(), y.as<bf16>(), x.as<bf16>(),
                                                                             g);
    } else {
        for (const Device* d : {&out, &again, &reference}) d->poison();
        const bool dgrad = form == Form::kDgrad;
        reference_rows<<<dim3(blocks(g.rows * (dgrad ? c.in : c.out)), depth), 256>>>(
            reference.as<float>(), dgrad ? y.as<bf16>() : x.as<bf16>(), w.as<bf16>(), g, dgrad);
    }
    const bf16* a = form == Form::kForward ? x.as<bf16>() : y.as<bf16>();
    const bf16* b = form == Form::kWgrad ? x.as<bf16>() : w.as<bf16>();
    run(form, type, g, out.pointer, a, b);
    run(form, type, g, again.pointer, a, b);
    require(cudaDeviceSynchronize(), "grouped product");
    const auto result = type == Output::kBf16 ? compare<bf16>(out.pointer, reference.pointer, count)
                                              : compare<float>(out.pointer, reference.pointer, count);
    const char* names[] = {"forward", "dgrad", "wgrad"};
    verdict(std::string("gemm ") + names[static_cast<int>(form)] + (type == Output::kBf16 ? " bf16 " : " f32 ") +
                (c.batched ? "batched " : "ragged ") + std::to_string(c.groups) + " x ~" + std::to_string(c.mean) + ", out " +
                std::to_string(c.out) + ", in " + std::to_string(c.in),
            result, type == Output::kBf16 ? 3e-3 : 2e-5, same_bytes(out.pointer, again.pointer, bytes));
}

// Groups of `rows_per_group` rows; `uneven`: on average, between a quarter and seven quarters and one in 16 twice as many
// again, as a router chooses.
void time_case(int groups, int rows_per_group, int out, int in, Form form, Output type, bool uneven = false) {
    std::vector<int32_t> offsets{0};
    for (int i = 0; i < groups; ++i) {
        const int sixteenths = uneven ? (i % 16 == 5 ? 40 : 3 + i * 7 % 16 * 23 / 16) : 16;
        offsets.push_back(offsets.back() + rows_per_group * sixteenths / 16);
    }
    const int64_t rows = offsets.back();
    const Device device_offsets(offsets.size() * 4);
    to_device(device_offsets.pointer, offsets.data(), offsets.size() * 4);
    const GroupedGemm g{.groups = groups,
                        .rows = rows,
                        .out = out,
                        .in = in,
                        .offsets = device_offsets.as<int32_t>(),
                        .x_row = in,
                        .y_row = out,
                        .w_row = in,
                        .w_group = int64_t{out} * in};
    const size_t w_count = static_cast<size_t>(groups) * out * in;
    const Device x(rows * in * 4), y(rows * out * 4), w(w_count * (form == Form::kWgrad ? 4 : 2));
    fill_random(x.as<bf16>(), rows * in, 1);
    fill_random(y.as<bf16>(), rows * out, 2);
    if (form != Form::kWgrad) fill_random(w.as<bf16>(), w_count, 3);
    if (form == Form::kWgrad) fill_random(w.as<float>(), w_count, 3);
    void* result = form == Form::kForward ? y.pointer : form == Form::kDgrad ? x.pointer : w.pointer;
    const bf16* a = form == Form::kForward ? x.as<bf16>() : y.as<bf16>();
    const bf16* b = form == Form::kWgrad ? x.as<bf16>() : w.as<bf16>();
    const double ms = median_ms([&] { run(form, type, g, result, a, b); });
    const double flops = 2.0 * static_cast<double>(rows) * out * in;
    const double bytes =
        2.0 * static_cast<double>(rows) * (out + in) + static_cast<double>(w_count) * (form == Form::kWgrad ? 8 : 2);
    const double floor_ms = std::max(flops / 779e9, bytes / 2976e6);
    const char* names[] = {"forward", "dgrad", "wgrad"};
    std::printf("TIME gemm %-7s %3d x %4d rows%s, out %4d, in %4d: %8.1f us %6.1f TFLOP/s, limit %6.1f, ratio %.3f\n",
                names[static_cast<int>(form)], groups, rows_per_group, uneven ? " (uneven)" : "", out, in, ms * 1e3,
                flops / ms / 1e9, flops / floor_ms / 1e9, floor_ms / ms);
    std::fflush(stdout);
}

using fp8 = __nv_fp8_e4m3;

__global__ void reference_fp8(float* y, const fp8* x, const fp8* w, Fp8Scales s, GroupedGemm g) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, row = i / g.out, o = i % g.out;
    if (row >= g.rows) return;
    const int group = group_of(g.offsets, static_cast<int>(g.groups), static_cast<int>(row));
    if (group < 0) return;
    double sum = 0;
    for (int64_t k = 0; k < g.in; ++k)
        sum += static_cast<double>(static_cast<float>(x[row * g.x_row + k])) *
               static_cast<double>(s.x[k / 128 * s.x_row + row]) *
               static_cast<double>(static_cast<float>(w[group * g.w_group + o * g.w_row + k])) *
               static_cast<double>(s.w[(group * ((g.out + 127) / 128) + o / 128) * (g.in / 128) + k / 128]);
    y[row * g.y_row + o] = static_cast<float>(sum);
}

// An FP8 case; timed when `sizes` are equal, else checked.
void fp8_case(const std::vector<int>& sizes, int out, int in, bool timed) {
    std::vector<int32_t> offsets{0};
    for (int size : sizes) offsets.push_back(offsets.back() + size);
    const Device device_offsets(offsets.size() * 4);
    to_device(device_offsets.pointer, offsets.data(), offsets.size() * 4);
    const int64_t rows = offsets.back() + (timed ? 0 : 3), groups = static_cast<int64_t>(sizes.size());
    const GroupedGemm g{.groups = groups,
                        .rows = rows,
                        .out = out,
                        .in = in,
                        .offsets = device_offsets.as<int32_t>(),
                        .x_row = in,
                        .y_row = out,
                        .w_row = in,
                        .w_group = int64_t{out} * in};
    const int64_t scale_row = (rows + 3) / 4 * 4, w_scales = groups * ((out + 127) / 128) * (in / 128);
    const Device x(rows * in), w(groups * out * in), y(rows * out * 2), y2(rows * out * 2), ref(rows * out * 4);
    const Device xs(scale_row * (in / 128) * 4), ws(w_scales * 4);
    fill_random(x.as<fp8>(), rows * in, 1, 30.F);
    fill_random(w.as<fp8>(), groups * out * in, 2, 30.F);
    fill_random(xs.as<float>(), scale_row * (in / 128), 3);
    fill_random(ws.as<float>(), w_scales, 4);
    const Fp8Scales scales{xs.as<float>(), scale_row, ws.as<float>(), in / 128, (out + 127) / 128 * (in / 128)};
    if (timed) {
        const double ms = median_ms([&] { grouped_matmul_fp8(y.pointer, x.pointer, w.pointer, scales, g, nullptr); });
        const double flops = 2.0 * static_cast<double>(rows) * out * in;
        std::printf("TIME gemm fp8 %3d x %4d rows, out %4d, in %4d: %8.1f us %6.1f TFLOP/s, limit 1383, ratio %.3f\n",
                    static_cast<int>(groups), sizes[0], out, in, ms * 1e3, flops / ms / 1e9, flops / ms / 1e9 / 1383);
        std::fflush(stdout);
        return;
    }
    for (const Device* d : {&y, &y2, &ref}) d->poison();
    grouped_matmul_fp8(y.pointer, x.pointer, w.pointer, scales, g, nullptr);
    grouped_matmul_fp8(y2.pointer, x.pointer, w.pointer, scales, g, nullptr);
    reference_fp8<<<blocks(rows * out), 256>>>(ref.as<float>(), x.as<fp8>(), w.as<fp8>(), scales, g);
    require(cudaDeviceSynchronize(), "FP8 product");
    verdict("gemm fp8 " + std::to_string(groups) + " groups, out " + std::to_string(out) + ", in " + std::to_string(in),
            compare<bf16>(y.pointer, ref.pointer, rows * out), 4e-3, same_bytes(y.pointer, y2.pointer, rows * out * 2));
}

}  // namespace

void check_fp8() {
    fp8_case({128}, 128, 128, false);
    fp8_case({100, 0, 1, 300, 77}, 264, 640, false);
    fp8_case(std::vector<int>(40, 13), 512, 1408, false);
}
void time_fp8() {
    fp8_case(std::vector<int>(8, 4096), 4096, 7168, true);
    fp8_case(std::vector<int>(64, 256), 2816, 2048, true);
    fp8_case(std::vector<int>(64, 1536), 1024, 1024, true);
}

void check_gemm() {
    const Case cases[] = {{1, 128, 256, 64, true},   {1, 200, 264, 72, true},    {3, 100, 128, 192, false},
                          {8, 300, 512, 320, false}, {64, 40, 136, 1408, false}, {5, 700, 1032, 104, false},
                          {16, 130, 128, 512, true}, {200, 5, 64, 256, false},   {32, 100, 1408, 256, false},
                          {9, 160, 1408, 72, false}};
    uint64_t seed = 100;
    for (const Case& c : cases)
        for (const auto& [form, type] : {std::pair{Form::kForward, Output::kBf16}, std::pair{Form::kForward, Output::kF32},
                                         std::pair{Form::kDgrad, Output::kBf16}, std::pair{Form::kDgrad, Output::kF32},
                                         std::pair{Form::kWgrad, Output::kF32}})
            check_case(c, form, type, seed += 10);
}

void time_gemm() {
    time_case(64, 256, 2816, 2048, Form::kForward, Output::kBf16);
    time_case(64, 256, 2048, 1408, Form::kForward, Output::kBf16);
    time_case(32, 256, 4096, 7168, Form::kForward, Output::kBf16);
    time_case(8, 4096, 4096, 7168, Form::kForward, Output::kBf16);
    time_case(1, 8192, 8192, 8192, Form::kForward, Output::kBf16);
    time_case(64, 1536, 1024, 1024, Form::kForward, Output::kBf16);  // the 1.3B training shape: gate and up in one, then down
    time_case(64, 1536, 1024, 1024, Form::kDgrad, Output::kBf16);
    time_case(64, 1536, 1024, 1024, Form::kWgrad, Output::kF32);
    time_case(64, 1536, 1024, 512, Form::kForward, Output::kBf16);
    time_case(8, 4096, 4096, 7168, Form::kDgrad, Output::kBf16);
    time_case(8, 4096, 4096, 7168, Form::kWgrad, Output::kF32);
    time_case(64, 12, 2816, 2048, Form::kForward, Output::kBf16);  // decoding 128 sequences
    for (const int rows : {60, 108}) {                             // beside one and two prompts' 512 rows
        time_case(64, rows, 2816, 2048, Form::kForward, Output::kBf16, true);
        time_case(64, rows, 2048, 1408, Form::kForward, Output::kBf16, true);
    }
}

}  // namespace fathom::hopper
