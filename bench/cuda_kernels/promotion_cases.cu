// What adding up in f32 registers every 128 channels ("promotion", V3 3.3.2) is for: FP8 products whose sums stay in the tensor
// cores for 128, 512 or all channels, against float64. No scales: one small kernel that differs in nothing else.
#include <cuda_fp8.h>

#include "bench.cuh"
#include "cuda/hopper_ptx.cuh"

namespace fathom::hopper {
namespace {

using fp8 = __nv_fp8_e4m3;
constexpr int kRows = 64, kCols = 128, kSlice = 128;  // one warpgroup's tile; a slice of channels fills a 128-byte row

// Rows of 128 bytes in the order that the tensor cores expect: 16-byte pieces exchanged by row modulo 8.
__device__ void load_slice(uint8_t* to, const uint8_t* from, int rows, int64_t row_bytes) {
    for (int i = static_cast<int>(threadIdx.x); i < rows * 8; i += 128) {
        const int row = i / 8, piece = i % 8;
        *reinterpret_cast<uint4*>(to + row * kSlice + (piece ^ row % 8) * 16) =
            *reinterpret_cast<const uint4*>(from + row * row_bytes + piece * 16);
    }
}

// y = x w^T: [m, n], [m, k], [n, k]; m, n and k multiples of 64, 128 and 128. Every `promoted` slices the sums leave the tensor
// cores' accumulators.
__global__ void __launch_bounds__(128)
    fp8_product_kernel(float* y, const uint8_t* x, const uint8_t* w, int64_t n, int64_t k, int promoted) {
    __shared__ alignas(1024) uint8_t x_slice[kRows * kSlice];
    __shared__ alignas(1024) uint8_t w_slice[kCols * kSlice];
    const int64_t row = int64_t{blockIdx.y} * kRows, col = int64_t{blockIdx.x} * kCols;
    float sums[kCols / 2], slice[kCols / 2];
    clear_registers(sums);
    const int slices = static_cast<int>(k / kSlice);
    for (int s = 0; s < slices; ++s) {
        load_slice(x_slice, x + row * k + s * kSlice, kRows, k);
        load_slice(w_slice, w + col * k + s * kSlice, kCols, k);
        async_proxy_fence();
        __syncthreads();
        pin_registers(slice);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kSlice / 32; ++step)
            wgmma_e4m3(slice, matrix_descriptor(smem_address(x_slice) + step * 32),
                       matrix_descriptor(smem_address(w_slice) + step * 32), s % promoted > 0 || step > 0 ? 1 : 0);
        wgmma_commit();
        wgmma_wait<0>();
        pin_registers(slice);
        if (s % promoted == promoted - 1 || s == slices - 1) {
#pragma unroll
            for (int i = 0; i < kCols / 2; ++i) sums[i] += slice[i];
        }
        __syncthreads();
    }
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    for (int i = 0; i < kCols / 2; ++i) {
        const int64_t r = row + warp * 16 + lane / 4 + i / 2 % 2 * 8, c = col + i / 4 * 8 + lane % 4 * 2 + i % 2;
        y[r * n + c] = sums[i];
    }
}

__global__ void exact_product_kernel(float* y, const fp8* x, const fp8* w, int64_t n, int64_t k, int64_t total) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= total) return;
    double sum = 0;
    for (int64_t c = 0; c < k; ++c)
        sum += static_cast<double>(static_cast<float>(x[i / n * k + c])) *
               static_cast<double>(static_cast<float>(w[i % n * k + c]));
    y[i] = static_cast<float>(sum);
}

__global__ void drop_signs_kernel(uint8_t* codes, int64_t count) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < count) codes[i] &= 0x7f;
}

// Largest |y - exact| / |exact|, where exact is not small.
double worst(const Device& y, const Device& exact, size_t count) {
    const auto a = to_host<float>(y.pointer, count), r = to_host<float>(exact.pointer, count);
    double square = 0, most = 0;
    for (const float v : r) square += static_cast<double>(v) * v;
    const double typical = std::sqrt(square / static_cast<double>(count));
    for (size_t i = 0; i < count; ++i)
        if (std::fabs(r[i]) > typical) most = std::max(most, std::fabs(static_cast<double>(a[i]) - r[i]) / std::fabs(r[i]));
    return most;
}

void promotion_case(int64_t k, bool positive) {
    constexpr int64_t kM = 512, kN = 512;
    const Device x(kM * k), w(kN * k), y(kM * kN * 4), exact(kM * kN * 4);
    fill_random(x.as<fp8>(), kM * k, 1, 30.F);
    fill_random(w.as<fp8>(), kN * k, 2, 30.F);
    const auto blocks = [](int64_t count) { return static_cast<unsigned>((count + 255) / 256); };
    if (positive) {
        drop_signs_kernel<<<blocks(kM * k), 256>>>(x.as<uint8_t>(), kM * k);
        drop_signs_kernel<<<blocks(kN * k), 256>>>(w.as<uint8_t>(), kN * k);
    }
    exact_product_kernel<<<blocks(kM * kN), 256>>>(exact.as<float>(), x.as<fp8>(), w.as<fp8>(), kN, k, kM * kN);
    const int all = static_cast<int>(k / kSlice);
    double promoted_error = 0;
    for (const int promoted : {1, 4, all}) {
        y.poison();
        fp8_product_kernel<<<dim3(kN / kCols, kM / kRows), 128>>>(y.as<float>(), x.as<uint8_t>(), w.as<uint8_t>(), kN, k,
                                                                  promoted);
        require(cudaDeviceSynchronize(), "fp8_product_kernel");
        const double error = compare<float>(y.pointer, exact.pointer, kM * kN).error;
        if (promoted == 1) promoted_error = error;
        std::printf("fp8 sums of %5ld channels, %s, promoted every %5d: error %.2e (%.0f x), at most %.2e\n",
                    static_cast<long>(k), positive ? "positive numbers" : "normal numbers  ", promoted * kSlice, error,
                    error / promoted_error, worst(y, exact, kM * kN));
    }
    std::fflush(stdout);
    failures += promoted_error < 1e-3 ? 0 : 1;
}

}  // namespace

void check_promotion() {
    for (const int64_t k : {4096, 7168, 16384})
        for (const bool positive : {false, true}) promotion_case(k, positive);
}

}  // namespace fathom::hopper
