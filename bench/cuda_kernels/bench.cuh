// What the checks and timings of the Hopper kernels share: device buffers with reproducible random contents, comparison with a
// plain reference kernel, medians over CUDA events. Needs a GPU; prints one line per case.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/hopper_launch.h"

namespace fathom::hopper {

using bf16 = __nv_bfloat16;

struct Device {  // owns device memory
    void* pointer = nullptr;
    size_t bytes = 0;
    explicit Device(size_t size) : bytes(size) { require(cudaMalloc(&pointer, std::max<size_t>(size, 16)), "cudaMalloc"); }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    ~Device() { cudaFree(pointer); }
    void poison() const { require(cudaMemset(pointer, 0xff, bytes), "cudaMemset"); }  // NaN in bf16 and f32
    template <typename T>
    T* as() const {
        return static_cast<T*>(pointer);
    }
};

inline __device__ __host__ uint32_t mix(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return static_cast<uint32_t>((x ^ (x >> 31)) >> 32);
}

// Approximately normal: the sum of four uniforms, scaled to unit variance.
template <typename T>
__global__ void fill_random_kernel(T* y, int64_t count, uint64_t seed, float scale) {
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
        const uint32_t a = mix(seed * 0x100000001ULL + i);
        const float u = static_cast<float>(a & 255) + static_cast<float>(a >> 8 & 255) + static_cast<float>(a >> 16 & 255) +
                        static_cast<float>(a >> 24);
        y[i] = T((u - 510.F) * (1.F / 147.8F) * scale);
    }
}
template <typename T>
void fill_random(T* y, int64_t count, uint64_t seed, float scale = 1.F) {
    if (count == 0) return;
    fill_random_kernel<<<1024, 256>>>(y, count, seed, scale);
    require(cudaGetLastError(), "fill_random");
}

template <typename T>
std::vector<T> to_host(const void* device, size_t count) {
    std::vector<T> v(count);
    require(cudaMemcpy(v.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return v;
}
inline void to_device(void* device, const void* host, size_t bytes) {
    require(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
}

struct Comparison {
    double error = 0;       // ||a - ref|| / ||ref||
    int64_t misplaced = 0;  // written where the reference is not, or not written where it is (NaN marks "not written")
};
template <typename T>
Comparison compare(const void* got, const void* reference, size_t count) {
    const auto a = to_host<T>(got, count);
    const auto r = to_host<float>(reference, count);
    double difference = 0, norm = 0;
    Comparison c;
    for (size_t i = 0; i < count; ++i) {
        const double x = static_cast<double>(static_cast<float>(a[i])), y = r[i];
        if (std::isnan(x) != std::isnan(y)) {
            ++c.misplaced;
        } else if (!std::isnan(y)) {
            difference += (x - y) * (x - y);
            norm += y * y;
        }
    }
    c.error = norm > 0 ? std::sqrt(difference / norm) : difference;
    return c;
}
inline bool same_bytes(const void* a, const void* b, size_t bytes) {
    return to_host<uint8_t>(a, bytes) == to_host<uint8_t>(b, bytes);
}

// Prints the verdict; counts failures for the exit code.
inline int failures = 0;
inline void verdict(const std::string& name, const Comparison& c, double tolerance, bool repeats) {
    const bool good = c.misplaced == 0 && c.error <= tolerance && repeats;
    failures += good ? 0 : 1;
    std::printf("%s %-64s error %.2e (<= %.0e)%s%s\n", good ? "ok  " : "FAIL", name.c_str(), c.error, tolerance,
                c.misplaced != 0 ? (", misplaced " + std::to_string(c.misplaced)).c_str() : "", repeats ? "" : ", runs differ");
    std::fflush(stdout);
}

// Median milliseconds of `f` over `rounds` timings.
template <typename F>
double median_ms(F&& f, int rounds = 21, int warm_up = 3) {
    cudaEvent_t a{}, b{};
    cudaEventCreate(&a);
    cudaEventCreate(&b);
    for (int i = 0; i < warm_up; ++i) f();
    std::vector<float> times(rounds);
    for (float& t : times) {
        cudaEventRecord(a);
        f();
        cudaEventRecord(b);
        require(cudaEventSynchronize(b), "cudaEventSynchronize");
        cudaEventElapsedTime(&t, a, b);
    }
    cudaEventDestroy(a);
    cudaEventDestroy(b);
    std::sort(times.begin(), times.end());
    return times[rounds / 2];
}

void check_gemm();
void time_gemm();
void check_fp8();
void time_fp8();
void check_promotion();
void check_mla();
void time_mla();
void check_attention();
void time_attention();

}  // namespace fathom::hopper
