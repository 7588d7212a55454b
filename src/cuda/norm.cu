// RMSNorm (Zhang and Sennrich 2019) and rotary embedding (Su et al. 2021). With r = 1 / sqrt(mean(x^2) + eps) and g = dy w:
//   y = w (r x),  dx = r g - x r^3 mean(g x),  dw = sum_i dy_i (r_i x_i).
// A row has one warp, a wide one a block: the choice and with it the order of its sums depends on the width (and on whether
// rows begin at multiples of 16 bytes) alone. A row of up to kHeld packs a thread is read once.
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/packed_loop.cuh"

namespace fathom {
namespace cuda {
namespace {

constexpr int64_t kWideRow = 1024;

// kCount neighbouring weights.
template <int kCount>
__device__ __forceinline__ void load_weights(float (&v)[kCount], const Vector& w, int64_t c) {
    if (w.type == DType::kF32) {
        load_pack(v, static_cast<const float*>(w.data) + c);
    } else if (w.type == DType::kBF16) {
        load_pack(v, static_cast<const Bf16*>(w.data) + c);
    } else {
#pragma unroll
        for (int j = 0; j < kCount; ++j) v[j] = w[c + j];
    }
}

// The rows to be normed: those of x, or, with `added`, of the sums x + added, which are left in `sum`.
template <class T, bool kAdds>
struct NormInput {
    Rows<T> x, added, sum;

    template <int kCount>
    __device__ __forceinline__ void load(float (&v)[kCount], int64_t i, int64_t c) const {
        load_pack(v, x.at(i) + c);
        if constexpr (kAdds) {
            float other[kCount];
            load_pack(other, added.at(i) + c);
#pragma unroll
            for (int j = 0; j < kCount; ++j) v[j] = widen(narrow<T>(v[j] + other[j]));
            store_pack(sum.at(i) + c, v);
        }
    }
    // A second time, by the same thread.
    template <int kCount>
    __device__ __forceinline__ void load_again(float (&v)[kCount], int64_t i, int64_t c) const {
        load_pack(v, (kAdds ? sum : x).at(i) + c);
    }
};

// Threads of one row: kThreads of them; a block of 256 threads has 256 / kThreads rows. kCount elements at a time; a thread
// keeps the first kHeld such packs, and reads the others of a row that has more of them again.
template <int kThreads, int kCount, class T, class Input>
__global__ void __launch_bounds__(256) rms_norm_kernel(Rows<T> y, Input input, Vector w, float eps, int64_t n, int64_t d) {
    begin_early();
    constexpr int kHeld = 4, kStep = kThreads * kCount;
    __shared__ float space[8];
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (256 / kThreads) + threadIdx.x / kThreads;
    if (i >= n) return;
    const int64_t first = static_cast<int64_t>(threadIdx.x % kThreads) * kCount;
    float held[kHeld][kCount], square = 0;
#pragma unroll
    for (int p = 0; p < kHeld; ++p)
        if (first + p * kStep < d) input.load(held[p], i, first + p * kStep);
    const auto add_squares = [&](const float(&v)[kCount]) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) square = fmaf(v[j], v[j], square);
    };
#pragma unroll
    for (int p = 0; p < kHeld; ++p)
        if (first + p * kStep < d) add_squares(held[p]);
    float v[kCount], weight[kCount];
    for (int64_t c = first + kHeld * kStep; c < d; c += kStep) {
        input.load(v, i, c);
        add_squares(v);
    }
    load_weights(weight, w, min(first, d - kCount));  // on its way while the sum is made
    square = block_sum<kThreads>(square, space);
    const float r = 1.0f / sqrtf(square / static_cast<float>(d) + eps);
    const auto put = [&](float(&values)[kCount], int64_t c) {
        if (c != first) load_weights(weight, w, c);
#pragma unroll
        for (int j = 0; j < kCount; ++j) values[j] = weight[j] * (r * values[j]);
        store_pack(y.at(i) + c, values);
    };
#pragma unroll
    for (int p = 0; p < kHeld; ++p)
        if (first + p * kStep < d) put(held[p], first + p * kStep);
    for (int64_t c = first + kHeld * kStep; c < d; c += kStep) {
        input.load_again(v, i, c);
        put(v, c);
    }
}

// Also leaves r for dw. Rows are read twice, the second time from L1 or L2.
template <int kThreads, int kCount, class T>
__global__ void __launch_bounds__(256)
    rms_norm_backward_kernel(Rows<T> dx, Rows<T> dy, Rows<T> x, Vector w, float eps, int64_t n, int64_t d, float* inverse) {
    __shared__ float space[8];
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (256 / kThreads) + threadIdx.x / kThreads;
    if (i >= n) return;
    constexpr int kStep = kThreads * kCount;
    const int64_t first = static_cast<int64_t>(threadIdx.x % kThreads) * kCount;
    const T *from = x.at(i), *grad = dy.at(i);
    float square = 0, mixed = 0, v[kCount], g[kCount], weight[kCount];
#pragma unroll 4
    for (int64_t c = first; c < d; c += kStep) {
        load_pack(v, from + c);
        load_pack(g, grad + c);
        load_weights(weight, w, c);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            square = fmaf(v[j], v[j], square);
            mixed = fmaf(g[j] * weight[j], v[j], mixed);
        }
    }
    square = block_sum<kThreads>(square, space);
    mixed = block_sum<kThreads>(mixed, space);
    const float r = 1.0f / sqrtf(square / static_cast<float>(d) + eps), shift = -(mixed / static_cast<float>(d)) * r * r * r;
#pragma unroll 4
    for (int64_t c = first; c < d; c += kStep) {
        load_pack(v, from + c);
        load_pack(g, grad + c);
        load_weights(weight, w, c);
#pragma unroll
        for (int j = 0; j < kCount; ++j) v[j] = fmaf(shift, v[j], r * g[j] * weight[j]);
        store_pack(dx.at(i) + c, v);
    }
    if (first == 0) inverse[i] = r;
}

// partial[b, c] = sum of dy r x over the rows of block b.
template <class T>
struct WeightGradient {
    Rows<T> dy, x;
    const float* inverse;
    float* partial;
    int64_t n, d;

    template <int kCount>
    __device__ __forceinline__ void operator()(int64_t b, int64_t c) const {
        float sum[kCount]{}, g[kCount], v[kCount];
        const int64_t end = min(n, (b + 1) * kRowsPerPartial);
#pragma unroll 4
        for (int64_t i = b * kRowsPerPartial; i < end; ++i) {
            load_pack(g, dy.at(i) + c);
            load_pack(v, x.at(i) + c);
            const float r = inverse[i];
#pragma unroll
            for (int j = 0; j < kCount; ++j) sum[j] = fmaf(g[j], r * v[j], sum[j]);
        }
#pragma unroll
        for (int j = 0; j < kCount; ++j) partial[b * d + c + j] = sum[j];
    }
};

// Threads of a row, and blocks of 256 of them.
bool is_wide(int64_t d) { return d > kWideRow; }
dim3 blocks_of(int64_t n, int64_t d) { return static_cast<unsigned>(is_wide(d) ? n : ceil_div(n, 256 / kWarp)); }

bool packable_weight(const Tensor& w) { return reinterpret_cast<uintptr_t>(w.data) % 32 == 0; }

template <class T, bool kAdds>
void rms_norm(cudaStream_t stream, const Tensor& y, const NormInput<T, kAdds>& input, bool packed, const Tensor& w,
              double eps) {
    using Input = NormInput<T, kAdds>;
    constexpr int kPack = kPackOf<T>;
    const int64_t n = y.dim(0), d = y.dim(1);
    packed = packed && packable(y) && packable_weight(w);
    const auto kernel = is_wide(d) ? (packed ? rms_norm_kernel<256, kPack, T, Input> : rms_norm_kernel<256, 1, T, Input>)
                                   : (packed ? rms_norm_kernel<kWarp, kPack, T, Input> : rms_norm_kernel<kWarp, 1, T, Input>);
    launch_early(kernel, blocks_of(n, d), 256, 0, stream, Rows<T>(y), input, Vector(w), static_cast<float>(eps), n, d);
    check_launch("rms_norm");
}

template <class T>
void rms_norm_backward(cudaStream_t stream, const Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& w, double eps,
                       float* inverse, float* partial, int64_t blocks) {
    constexpr int kPack = kPackOf<T>;
    const int64_t n = dx.dim(0), d = dx.dim(1);
    const Rows<T> to(dx), grad(dy), from(x);
    const bool packed = packable(dx, dy, x) && packable_weight(w);
    const auto kernel = is_wide(d)
                            ? (packed ? rms_norm_backward_kernel<256, kPack, T> : rms_norm_backward_kernel<256, 1, T>)
                            : (packed ? rms_norm_backward_kernel<kWarp, kPack, T> : rms_norm_backward_kernel<kWarp, 1, T>);
    kernel<<<blocks_of(n, d), 256, 0, stream>>>(to, grad, from, Vector(w), static_cast<float>(eps), n, d, inverse);
    check_launch("rms_norm_backward");
    packed_loop<T>(stream, "rms_norm_backward", blocks, d, packed, WeightGradient<T>{grad, from, inverse, partial, n, d});
}

// (a, b) -> (a cos - b sin, a sin + b cos) on the pairs (x[i first], x[i first + second]).
template <class T>
void rope(cudaStream_t stream, const Tensor& y, const Tensor& x, const Tensor& table, RopePairing pairing, bool inverse) {
    const Rows<T> to(y), from(x);
    const Rows<float> angles(table);
    const int64_t heads = x.dim(1), half = x.dim(2) / 2;
    const bool interleaved = pairing == RopePairing::kInterleaved;
    const float sign = inverse ? -1.0f : 1.0f;
    loop(stream, "rope", x.dim(0), heads * half, [=] __device__(int64_t i, int64_t c) {
        const int64_t pair = c % half, first = interleaved ? 2 * pair : pair, second = interleaved ? first + 1 : first + half;
        const T* head = from.at(i, c / half);
        T* rotated = to.at(i, c / half);
        const float a = widen(head[first]), b = widen(head[second]);
        const float cosine = angles.at(i)[pair], sine = sign * angles.at(i)[half + pair];
        rotated[first] = narrow<T>(a * cosine - b * sine);
        rotated[second] = narrow<T>(a * sine + b * cosine);
    });
}

}  // namespace
}  // namespace cuda

void CudaOps::rms_norm(const Tensor& y, const Tensor& x, const Tensor& w, double eps) {
    check_tensor("rms_norm", "y", y, {kAny, kAny});
    const int64_t n = y.dim(0), d = y.dim(1);
    check_tensor("rms_norm", "x", x, y.dtype, {n, d});
    check_tensor("rms_norm", "w", w, {d});
    if (y.size() == 0) return;
    cuda::with_activation("rms_norm", y.dtype, [&](auto type) {
        const cuda::Rows<decltype(type)> rows(x);
        cuda::rms_norm(lane_->stream, y, cuda::NormInput<decltype(type), false>{rows, rows, rows}, cuda::packable(x), w, eps);
    });
}

void CudaOps::add_rms_norm(const Tensor& y, const Tensor& sum, const Tensor& a, const Tensor& b, const Tensor& w, double eps) {
    check_tensor("add_rms_norm", "y", y, {kAny, kAny});
    const int64_t n = y.dim(0), d = y.dim(1);
    for (const Tensor* t : {&sum, &a, &b}) check_tensor("add_rms_norm", "a, b or their sum", *t, y.dtype, {n, d});
    check_tensor("add_rms_norm", "w", w, {d});
    if (y.size() == 0) return;
    cuda::with_activation("add_rms_norm", y.dtype, [&](auto type) {
        using Rows = cuda::Rows<decltype(type)>;
        cuda::rms_norm(lane_->stream, y, cuda::NormInput<decltype(type), true>{Rows(a), Rows(b), Rows(sum)},
                       cuda::packable(a, b, sum), w, eps);
    });
}

void CudaOps::rms_norm_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                                double eps) {
    check_tensor("rms_norm_backward", "dx", dx, {kAny, kAny});
    const int64_t n = dx.dim(0), d = dx.dim(1), blocks = cuda::ceil_div(n, cuda::kRowsPerPartial);
    check_tensor("rms_norm_backward", "dw", dw, DType::kF32, {d});
    check_tensor("rms_norm_backward", "dy", dy, dx.dtype, {n, d});
    check_tensor("rms_norm_backward", "x", x, dx.dtype, {n, d});
    check_tensor("rms_norm_backward", "w", w, {d});
    check(dx.data != dy.data || dx.size() == 0, "rms_norm_backward: dx may not be dy");
    if (dx.size() == 0) return;
    lane_->workspace.begin((n + blocks * d) * 4);
    auto *inverse = lane_->workspace.take<float>(n), *partial = lane_->workspace.take<float>(blocks * d);
    cuda::with_activation("rms_norm_backward", dx.dtype, [&](auto type) {
        cuda::rms_norm_backward<decltype(type)>(lane_->stream, dx, dy, x, w, eps, inverse, partial, blocks);
    });
    cuda::add_partials(lane_->stream, "rms_norm_backward", dw.as<float>(), partial, blocks, d);
}

// The product of position and frequency is rounded to f32, its cosine and sine are taken in f64: exact enough to be the CPU's.
void CudaOps::rope_table(const Tensor& table, const Tensor& positions, const Tensor& inv_freq, double magnitude) {
    check_tensor("rope_table", "table", table, DType::kF32, {kAny, kAny});
    const int64_t n = table.dim(0), half = table.dim(1) / 2;
    check(table.dim(1) % 2 == 0, "rope_table: an odd number of channels");
    check_tensor("rope_table", "positions", positions, DType::kI32, {n});
    check_tensor("rope_table", "inv_freq", inv_freq, DType::kF32, {half});
    const cuda::Rows<float> to(table);
    const auto* position = positions.as<int32_t>();
    const auto* frequency = inv_freq.as<float>();
    cuda::loop(lane_->stream, "rope_table", n, half, [=] __device__(int64_t i, int64_t j) {
        const double angle = static_cast<float>(position[i]) * frequency[j];
        to.at(i)[j] = static_cast<float>(magnitude * cos(angle));
        to.at(i)[half + j] = static_cast<float>(magnitude * sin(angle));
    });
}

void CudaOps::rope(const Tensor& y, const Tensor& x, const Tensor& table, RopePairing pairing, bool inverse) {
    check_tensor("rope", "x", x, {kAny, kAny, kAny});
    check_tensor("rope", "y", y, x.dtype, {x.dim(0), x.dim(1), x.dim(2)});
    check(x.dim(2) % 2 == 0, "rope: an odd number of channels");
    check_tensor("rope", "table", table, DType::kF32, {x.dim(0), x.dim(2)});
    cuda::with_activation("rope", x.dtype,
                          [&](auto type) { cuda::rope<decltype(type)>(lane_->stream, y, x, table, pairing, inverse); });
}

}  // namespace fathom
