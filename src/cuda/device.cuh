// What every kernel of this folder uses: number types, conversions, reductions in a fixed order, and the launch of plain loops.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/runtime.h"
#include "ops/shape_check.h"
#include "tensor/tensor.h"

namespace fathom::cuda {

using Bf16 = __nv_bfloat16;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(Bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ Bf16 narrow<Bf16>(float x) {
    return __float2bfloat16_rn(x);
}

// Element i of memory whose type is known at run time only; the branch is the same for all threads.
__device__ __forceinline__ float load(const void* p, DType type, int64_t i) {
    switch (type) {
        case DType::kF32:
            return static_cast<const float*>(p)[i];
        case DType::kBF16:
            return __bfloat162float(static_cast<const Bf16*>(p)[i]);
        case DType::kF16:
            return __half2float(static_cast<const __half*>(p)[i]);
        default:
            return static_cast<float>(static_cast<const __nv_fp8_e4m3*>(p)[i]);
    }
}
__device__ __forceinline__ void store(void* p, DType type, int64_t i, float value) {
    switch (type) {
        case DType::kF32:
            static_cast<float*>(p)[i] = value;
            break;
        case DType::kBF16:
            static_cast<Bf16*>(p)[i] = __float2bfloat16_rn(value);
            break;
        case DType::kF16:
            static_cast<__half*>(p)[i] = __float2half_rn(value);
            break;
        default:
            static_cast<__nv_fp8_e4m3*>(p)[i] = __nv_fp8_e4m3(value);
    }
}

// Rows [n, d] or [n, h, d] of one type; the last dimension is contiguous.
template <class T>
struct Rows {
    T* data;
    int64_t row, head;

    explicit Rows(const Tensor& t) : data(t.as<T>()), row(t.rank > 0 ? t.stride[0] : 0), head(t.rank > 2 ? t.stride[1] : 0) {}
    __device__ __forceinline__ T* at(int64_t i) const { return data + i * row; }
    __device__ __forceinline__ T* at(int64_t i, int64_t j) const { return data + i * row + j * head; }
};

// A vector of parameters in any stored type.
struct Vector {
    const void* data;
    DType type;

    explicit Vector(const Tensor& t) : data(t.data), type(t.dtype) {}
    __device__ __forceinline__ float operator[](int64_t i) const { return load(data, type, i); }
};

// ---- reductions: butterflies, so that every lane holds the same bits ----
constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
    return x;
}

// Sum over a block of kThreads threads, given to all of them. `space` has kThreads / 32 elements.
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T x, T* space) {
    x = warp_sum(x);
    if constexpr (kThreads == kWarp) return x;
    __syncthreads();  // of an earlier use of `space`
    if (threadIdx.x % kWarp == 0) space[threadIdx.x / kWarp] = x;
    __syncthreads();
    T sum = 0;
#pragma unroll
    for (int i = 0; i < kThreads / kWarp; ++i) sum += space[i];
    return sum;
}
template <int kThreads>
__device__ __forceinline__ float block_max(float x, float* space) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) space[threadIdx.x / kWarp] = x;
    __syncthreads();
    float top = space[0];
#pragma unroll
    for (int i = 1; i < kThreads / kWarp; ++i) top = fmaxf(top, space[i]);
    return top;
}

// ---- early launches ----
// Short kernels in a row: the next one's blocks are placed while the one before still runs (programmatic dependent launch), and
// begin_early(), the first thing that all their threads do, waits until it has ended and its writes can be seen. It lets the
// next kernel be placed before it waits: several kernels may lie in wait behind the one that works. A kernel that is launched
// this way must call it; one that is not may.
__device__ __forceinline__ void begin_early() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// For small kernels behind which a large one waits: it is placed when this one begins. Placed earlier, its blocks would wait on
// multiprocessors that the kernels of the other stream (side_by_side) could use.
__device__ __forceinline__ void begin_before_large() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// The two halves, for kernels that have work to do before they wait, or let the next one in late.
__device__ __forceinline__ void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, int64_t threads, size_t shared_bytes, cudaStream_t stream,
                  const Arguments&... arguments) {
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = launches_early() ? 1 : 0;
    check_cuda(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "launching a kernel");
}

// ---- loops over elements ----
template <class Index, class Body>
__global__ void __launch_bounds__(256) loop_kernel(Index cols, Index total, Body body) {
    begin_early();
    const Index i = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (i < total) body(static_cast<int64_t>(i / cols), static_cast<int64_t>(i % cols));
}

// body(row, col) for every element of a matrix, one thread each.
template <class Body>
void loop(cudaStream_t stream, const char* op, int64_t rows, int64_t cols, const Body& body) {
    const int64_t total = rows * cols;
    if (total == 0) return;
    const auto blocks = static_cast<unsigned>(ceil_div(total, 256));
    if (total < (int64_t{1} << 31)) {  // 32-bit division is several times cheaper
        launch_early(loop_kernel<uint32_t, Body>, dim3(blocks), 256, 0, stream, static_cast<uint32_t>(cols),
                     static_cast<uint32_t>(total), body);
    } else {
        launch_early(loop_kernel<int64_t, Body>, dim3(blocks), 256, 0, stream, cols, total, body);
    }
    check_launch(op);
}

// Gradients of parameters are summed in blocks of this many rows, and then over blocks in order.
constexpr int64_t kRowsPerPartial = 64;

// sums[c] += sum over b of partial[b, c], in an order that follows from `blocks`: [d], [blocks, d]. Overwrites `partial`.
void add_partials(cudaStream_t stream, const char* op, float* sums, float* partial, int64_t blocks, int64_t d);

// Calls f(T{}) with the element type of an activation.
template <class F>
void with_activation(const char* op, DType type, F&& f) {
    if (type == DType::kF32) return f(float{});
    if (type == DType::kBF16) return f(Bf16{});
    check(false, std::string(op) + ": activations are F32 or BF16");
}

}  // namespace fathom::cuda
