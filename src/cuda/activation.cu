// SwiGLU, the cross-entropy over a vocabulary, AdamW and the gradient norm: all bound by memory.
#include <climits>
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/packed_loop.cuh"
#include "cuda/softmax.cuh"
#include "cuda/swiglu.cuh"
#include "ops/adamw_factors.h"

namespace fathom {
namespace cuda {
namespace {

template <class T>
struct SwiGlu {
    Rows<T> y, gate, up;

    template <int kCount>
    __device__ __forceinline__ void operator()(int64_t i, int64_t c) const {
        float g[kCount], u[kCount];
        load_pack(g, gate.at(i) + c);
        load_pack(u, up.at(i) + c);
#pragma unroll
        for (int j = 0; j < kCount; ++j) g[j] = swiglu(g[j], u[j]);
        store_pack(y.at(i) + c, g);
    }
};

// silu'(g) = s + g s (1 - s), s = sigmoid(g).
template <class T>
struct SwiGluBackward {
    Rows<T> dgate, dup, dy, gate, up;

    template <int kCount>
    __device__ __forceinline__ void operator()(int64_t i, int64_t c) const {
        float d[kCount], g[kCount], u[kCount];
        load_pack(d, dy.at(i) + c);
        load_pack(g, gate.at(i) + c);
        load_pack(u, up.at(i) + c);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            const float s = sigmoid(g[j]), silu = g[j] * s;
            g[j] = d[j] * u[j] * fmaf(silu, 1.0f - s, s);
            u[j] = d[j] * silu;
        }
        store_pack(dgate.at(i) + c, g);
        store_pack(dup.at(i) + c, u);
    }
};

__global__ void __launch_bounds__(kSoftmaxThreads)
    cross_entropy_kernel(float* loss, Rows<float> logits, const int32_t* targets, int64_t vocab, int* fault) {
    __shared__ float space[kSoftmaxThreads / kWarp];
    const int32_t target = targets[blockIdx.x];
    if (target < 0 || target >= vocab) {
        if (threadIdx.x == 0) loss[blockIdx.x] = 0;
        if (target >= vocab) *fault = kTarget;
        return;
    }
    const LogitRow z{logits.at(blockIdx.x)};
    const RowSoftmax row = softmax_of(z, vocab, space);
    // log s is added to the small difference, not to the large maximum.
    if (threadIdx.x == 0)
        loss[blockIdx.x] = static_cast<float>(log(static_cast<double>(row.sum)) +
                                              (static_cast<double>(row.top) - static_cast<double>(z(target))));
}

// dlogits may be of the compute type, or logits itself: a thread reads what it then writes.
template <class T>
__global__ void __launch_bounds__(kSoftmaxThreads)
    cross_entropy_backward_kernel(Rows<T> dlogits, Rows<float> logits, const int32_t* targets, int64_t vocab, float scale,
                                  int* fault) {
    __shared__ float space[kSoftmaxThreads / kWarp];
    const int32_t target = targets[blockIdx.x];
    T* dz = dlogits.at(blockIdx.x);
    if (target < 0 || target >= vocab) {
        for (int64_t c = threadIdx.x; c < vocab; c += kSoftmaxThreads) dz[c] = narrow<T>(0);
        if (target >= vocab) *fault = kTarget;
        return;
    }
    const LogitRow z{logits.at(blockIdx.x)};
    const RowSoftmax row = softmax_of(z, vocab, space);
    const float factor = scale / row.sum;
    constexpr int kFours = 4;
    const bool packed = reinterpret_cast<uintptr_t>(dz) % (4 * sizeof(T)) == 0;
    for (int64_t first = 4 * static_cast<int64_t>(threadIdx.x); first < vocab; first += 4 * kFours * kSoftmaxThreads) {
        float v[kFours][4];
#pragma unroll
        for (int i = 0; i < kFours; ++i) four_of(v[i], z, first + 4 * kSoftmaxThreads * i, vocab);
#pragma unroll
        for (int i = 0; i < kFours; ++i) {
            const int64_t c = first + 4 * kSoftmaxThreads * i;
#pragma unroll
            for (int j = 0; j < 4; ++j) v[i][j] = factor * expf(v[i][j] - row.top) - (c + j == target ? scale : 0.0f);
            if (packed && c + 4 <= vocab) {
                store_pack(dz + c, v[i]);
            } else {
                for (int j = 0; j < 4 && c + j < vocab; ++j) dz[c + j] = narrow<T>(v[i][j]);
            }
        }
    }
}

// A larger number wins, then the lower index. Both are the same for all threads in the end.
struct Best {
    float value;
    int32_t index;
    __device__ __forceinline__ void take(float v, int32_t at) {
        if (v > value || (v == value && at < index)) value = v, index = at;
    }
};

// One block per row. NaN is larger than anything, and then no index.
__global__ void __launch_bounds__(1024) argmax_kernel(int32_t* index, Rows<float> logits, int64_t vocab) {
    begin_early();
    __shared__ Best found[32];
    const LogitRow z{logits.at(blockIdx.x)};
    Best best{-INFINITY, INT_MAX};
    bool broken = false;
    constexpr int kFours = 4;
    for (int64_t first = 4 * static_cast<int64_t>(threadIdx.x); first < vocab; first += 4 * kFours * 1024) {
        float v[kFours][4];
#pragma unroll
        for (int i = 0; i < kFours; ++i) four_of(v[i], z, first + 4 * 1024 * i, vocab);
#pragma unroll
        for (int i = 0; i < kFours * 4; ++i) {
            broken = broken || isnan(v[i / 4][i % 4]);
            best.take(v[i / 4][i % 4], static_cast<int32_t>(first) + 4 * 1024 * (i / 4) + i % 4);
        }
    }
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2)
        best.take(__shfl_xor_sync(kAll, best.value, step), __shfl_xor_sync(kAll, best.index, step));
    if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = best;
    broken = __syncthreads_or(broken);
    if (threadIdx.x != 0) return;
    for (const Best& other : found) best.take(other.value, other.index);
    index[blockIdx.x] = broken || isinf(best.value) ? -1 : best.index;
}

int64_t check_cross_entropy(const char* op, const Tensor& logits, const Tensor& targets) {
    check_tensor(op, "logits", logits, DType::kF32, {kAny, kAny});
    check_tensor(op, "targets", targets, DType::kI32, {logits.dim(0)});
    return logits.dim(1);
}

constexpr int64_t kElementsPerPartial = 4096;  // the norm is summed in blocks of this many, then over blocks in order

__global__ void __launch_bounds__(256) square_partials_kernel(double* partial, const void* x, DType type, int64_t n) {
    __shared__ double space[8];
    const int64_t end = min(n, (static_cast<int64_t>(blockIdx.x) + 1) * kElementsPerPartial);
    double sum = 0;
    for (int64_t i = blockIdx.x * kElementsPerPartial + threadIdx.x; i < end; i += 256) {
        const double v = load(x, type, i);
        sum = fma(v, v, sum);
    }
    sum = block_sum<256>(sum, space);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(256) add_square_partials_kernel(double* sum, const double* partial, int64_t count) {
    __shared__ double space[8];
    double part = 0;
    for (int64_t i = threadIdx.x; i < count; i += 256) part += partial[i];
    part = block_sum<256>(part, space);
    if (threadIdx.x == 0) sum[0] += part;
}

// One AdamW step of some elements; Moment: what m and v are kept in.
template <class Moment>
struct AdamWUpdate {
    void* copy;  // the parameter, where it is not the master itself
    DType copy_type;
    float* master;
    Moment *first, *second;
    const float* gradient;
    AdamWFactors factors;

    template <int kCount>
    __device__ __forceinline__ void operator()(int64_t, int64_t i) const {
        float p[kCount], m[kCount], v[kCount], g[kCount];
        load_pack(p, master + i);
        load_pack(m, first + i);
        load_pack(v, second + i);
        load_pack(g, gradient + i);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            g[j] *= factors.grad_scale;
            m[j] = fmaf(factors.one_minus_beta1, g[j], factors.beta1 * m[j]);
            v[j] = fmaf(factors.one_minus_beta2 * g[j], g[j], factors.beta2 * v[j]);
            p[j] = factors.decay * p[j] - factors.step_size * m[j] / (sqrtf(v[j] * factors.second_unbias) + factors.epsilon);
        }
        store_pack(master + i, p);
        store_pack(first + i, m);
        store_pack(second + i, v);
        if (copy == nullptr) return;
        if (copy_type == DType::kBF16) return store_pack(static_cast<Bf16*>(copy) + i, p);
#pragma unroll
        for (int j = 0; j < kCount; ++j) store(copy, copy_type, i + j, p[j]);
    }
};

}  // namespace
}  // namespace cuda

void CudaOps::swiglu(const Tensor& y, const Tensor& gate, const Tensor& up) {
    check_tensor("swiglu", "y", y, {kAny, kAny});
    check_tensor("swiglu", "gate", gate, y.dtype, {y.dim(0), y.dim(1)});
    check_tensor("swiglu", "up", up, y.dtype, {y.dim(0), y.dim(1)});
    cuda::with_activation("swiglu", y.dtype, [&](auto type) {
        using T = decltype(type);
        cuda::packed_loop_over<T>(lane_->stream, "swiglu",
                                  cuda::SwiGlu<T>{cuda::Rows<T>(y), cuda::Rows<T>(gate), cuda::Rows<T>(up)}, y, gate, up);
    });
}

void CudaOps::swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy, const Tensor& gate, const Tensor& up) {
    check_tensor("swiglu_backward", "dy", dy, {kAny, kAny});
    for (const Tensor* t : {&dgate, &dup, &gate, &up})
        check_tensor("swiglu_backward", "an argument", *t, dy.dtype, {dy.dim(0), dy.dim(1)});
    cuda::with_activation("swiglu_backward", dy.dtype, [&](auto type) {
        using T = decltype(type);
        cuda::packed_loop_over<T>(lane_->stream, "swiglu_backward",
                                  cuda::SwiGluBackward<T>{cuda::Rows<T>(dgate), cuda::Rows<T>(dup), cuda::Rows<T>(dy),
                                                          cuda::Rows<T>(gate), cuda::Rows<T>(up)},
                                  dy, dgate, dup, gate, up);
    });
}

void CudaOps::argmax(const Tensor& index, const Tensor& logits) {
    check_tensor("argmax", "logits", logits, DType::kF32, {kAny, kAny});
    check_tensor("argmax", "index", index, DType::kI32, {logits.dim(0)});
    if (logits.dim(0) == 0) return;
    cuda::launch_early(cuda::argmax_kernel, dim3(static_cast<unsigned>(logits.dim(0))), 1024, 0, lane_->stream,
                       index.as<int32_t>(), cuda::Rows<float>(logits), logits.dim(1));
    cuda::check_launch("argmax");
}

void CudaOps::cross_entropy(const Tensor& loss, const Tensor& logits, const Tensor& targets) {
    const int64_t n = logits.dim(0), vocab = cuda::check_cross_entropy("cross_entropy", logits, targets);
    check_tensor("cross_entropy", "loss", loss, DType::kF32, {n});
    if (n == 0) return;
    cuda::cross_entropy_kernel<<<static_cast<unsigned>(n), cuda::kSoftmaxThreads, 0, lane_->stream>>>(
        loss.as<float>(), cuda::Rows<float>(logits), targets.as<int32_t>(), vocab, fault_.device());
    cuda::check_launch("cross_entropy");
}

void CudaOps::cross_entropy_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets, double scale) {
    const int64_t n = logits.dim(0), vocab = cuda::check_cross_entropy("cross_entropy_backward", logits, targets);
    check_tensor("cross_entropy_backward", "dlogits", dlogits, {n, vocab});
    if (n == 0) return;
    cuda::with_activation("cross_entropy_backward", dlogits.dtype, [&](auto type) {
        cuda::cross_entropy_backward_kernel<decltype(type)>
            <<<static_cast<unsigned>(n), cuda::kSoftmaxThreads, 0, lane_->stream>>>(
                cuda::Rows<decltype(type)>(dlogits), cuda::Rows<float>(logits), targets.as<int32_t>(), vocab,
                static_cast<float>(scale), fault_.device());
    });
    cuda::check_launch("cross_entropy_backward");
}

void CudaOps::adamw(const Tensor& param, const Tensor& master, const Tensor& m, const Tensor& v, const Tensor& grad,
                    const AdamWStep& step) {
    check_adamw(param, master, m, v, grad);
    const auto in_packs = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; };
    const bool packed = in_packs(param) && in_packs(master) && in_packs(m) && in_packs(v) && in_packs(grad) &&
                        master.size() % cuda::kPackOf<float> == 0;
    cuda::with_activation("adamw", m.dtype, [&](auto type) {
        using Moment = decltype(type);
        const cuda::AdamWUpdate<Moment> update{param.data == master.data ? nullptr : param.data,
                                               param.dtype,
                                               master.as<float>(),
                                               m.as<Moment>(),
                                               v.as<Moment>(),
                                               grad.as<const float>(),
                                               adamw_factors(step)};
        cuda::packed_loop<float>(lane_->stream, "adamw", 1, master.size(), packed, update);
    });
}

void CudaOps::square_norm(const Tensor& sum, const Tensor& x) {
    check_tensor("square_norm", "sum", sum, DType::kF64, {1});
    check(x.contiguous(), "square_norm: x must be contiguous");
    const int64_t n = x.size(), blocks = cuda::ceil_div(n, cuda::kElementsPerPartial);
    if (n == 0) return;
    lane_->workspace.begin(blocks * 8);
    auto* partial = lane_->workspace.take<double>(blocks);
    cuda::square_partials_kernel<<<static_cast<unsigned>(blocks), 256, 0, lane_->stream>>>(partial, x.data, x.dtype, n);
    cuda::add_square_partials_kernel<<<1, 256, 0, lane_->stream>>>(sum.as<double>(), partial, blocks);
    cuda::check_launch("square_norm");
}

}  // namespace fathom
