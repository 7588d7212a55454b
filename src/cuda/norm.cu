// RMSNorm (Zhang and Sennrich 2019) and rotary embedding (Su et al. 2021). With r = 1 / sqrt(mean(x^2) + eps) and g = dy w:
//   y = w (r x),  dx = r g - x r^3 mean(g x),  dw = sum_i dy_i (r_i x_i).
// A row has one warp, a wide one a block: the choice and with it the order of its sums depends on the width alone.
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"

namespace fathom {
namespace cuda {
namespace {

constexpr int64_t kWideRow = 1024;

// Threads of one row: kThreads of them; a block of 256 threads has 256 / kThreads rows.
template <int kThreads, class T>
__global__ void __launch_bounds__(256) rms_norm_kernel(Rows<T> y, Rows<T> x, Vector w, float eps, int64_t n, int64_t d) {
    begin_early();
    __shared__ float space[8];
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (256 / kThreads) + threadIdx.x / kThreads;
    if (i >= n) return;
    const int lane = static_cast<int>(threadIdx.x) % kThreads;
    const T* from = x.at(i);
    float square = 0;
    for (int64_t c = lane; c < d; c += kThreads) square = fmaf(widen(from[c]), widen(from[c]), square);
    square = block_sum<kThreads>(square, space);
    const float r = 1.0f / sqrtf(square / static_cast<float>(d) + eps);
    for (int64_t c = lane; c < d; c += kThreads) y.at(i)[c] = narrow<T>(w[c] * (r * widen(from[c])));
}

// Also leaves r for dw.
template <int kThreads, class T>
__global__ void __launch_bounds__(256)
    rms_norm_backward_kernel(Rows<T> dx, Rows<T> dy, Rows<T> x, Vector w, float eps, int64_t n, int64_t d, float* inverse) {
    __shared__ float space[8];
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (256 / kThreads) + threadIdx.x / kThreads;
    if (i >= n) return;
    const int lane = static_cast<int>(threadIdx.x) % kThreads;
    const T *from = x.at(i), *grad = dy.at(i);
    float square = 0, mixed = 0;
    for (int64_t c = lane; c < d; c += kThreads) {
        const float v = widen(from[c]);
        square = fmaf(v, v, square);
        mixed = fmaf(widen(grad[c]) * w[c], v, mixed);
    }
    square = block_sum<kThreads>(square, space);
    mixed = block_sum<kThreads>(mixed, space);
    const float r = 1.0f / sqrtf(square / static_cast<float>(d) + eps), shift = -(mixed / static_cast<float>(d)) * r * r * r;
    for (int64_t c = lane; c < d; c += kThreads)
        dx.at(i)[c] = narrow<T>(fmaf(shift, widen(from[c]), r * widen(grad[c]) * w[c]));
    if (lane == 0) inverse[i] = r;
}

template <class T>
void rms_norm(cudaStream_t stream, const Tensor& y, const Tensor& x, const Tensor& w, double eps) {
    const int64_t n = y.dim(0), d = y.dim(1);
    const Rows<T> to(y), from(x);
    const Vector weight(w);
    if (d > kWideRow) {
        launch_early(rms_norm_kernel<256, T>, dim3(static_cast<unsigned>(n)), 256, 0, stream, to, from, weight,
                     static_cast<float>(eps), n, d);
    } else {
        launch_early(rms_norm_kernel<kWarp, T>, dim3(static_cast<unsigned>(ceil_div(n, 8))), 256, 0, stream, to, from, weight,
                     static_cast<float>(eps), n, d);
    }
    check_launch("rms_norm");
}

template <class T>
void rms_norm_backward(cudaStream_t stream, const Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& w, double eps,
                       float* inverse, float* partial, int64_t blocks) {
    const int64_t n = dx.dim(0), d = dx.dim(1);
    const Rows<T> to(dx), grad(dy), from(x);
    const Vector weight(w);
    if (d > kWideRow) {
        rms_norm_backward_kernel<256, T>
            <<<static_cast<unsigned>(n), 256, 0, stream>>>(to, grad, from, weight, static_cast<float>(eps), n, d, inverse);
    } else {
        rms_norm_backward_kernel<kWarp, T><<<static_cast<unsigned>(ceil_div(n, 8)), 256, 0, stream>>>(
            to, grad, from, weight, static_cast<float>(eps), n, d, inverse);
    }
    check_launch("rms_norm_backward");
    loop(stream, "rms_norm_backward", blocks, d, [=] __device__(int64_t b, int64_t c) {
        float sum = 0;
        const int64_t end = min(n, (b + 1) * kRowsPerPartial);
        for (int64_t i = b * kRowsPerPartial; i < end; ++i)
            sum = fmaf(widen(grad.at(i)[c]), inverse[i] * widen(from.at(i)[c]), sum);
        partial[b * d + c] = sum;
    });
}

// (a, b) -> (a cos - b sin, a sin + b cos) on the pairs (x[i first], x[i first + second]).
template <class T>
void rope(cudaStream_t stream, const Tensor& x, const Tensor& table, RopePairing pairing, bool inverse) {
    const Rows<T> at(x);
    const Rows<float> angles(table);
    const int64_t heads = x.dim(1), half = x.dim(2) / 2;
    const bool interleaved = pairing == RopePairing::kInterleaved;
    const float sign = inverse ? -1.0f : 1.0f;
    loop(stream, "rope", x.dim(0), heads * half, [=] __device__(int64_t i, int64_t c) {
        const int64_t pair = c % half, first = interleaved ? 2 * pair : pair, second = interleaved ? first + 1 : first + half;
        T* head = at.at(i, c / half);
        const float a = widen(head[first]), b = widen(head[second]);
        const float cosine = angles.at(i)[pair], sine = sign * angles.at(i)[half + pair];
        head[first] = narrow<T>(a * cosine - b * sine);
        head[second] = narrow<T>(a * sine + b * cosine);
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
    cuda::with_activation("rms_norm", y.dtype, [&](auto type) { cuda::rms_norm<decltype(type)>(stream_, y, x, w, eps); });
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
    workspace_.begin((n + blocks * d) * 4);
    auto *inverse = workspace_.take<float>(n), *partial = workspace_.take<float>(blocks * d);
    cuda::with_activation("rms_norm_backward", dx.dtype, [&](auto type) {
        cuda::rms_norm_backward<decltype(type)>(stream_, dx, dy, x, w, eps, inverse, partial, blocks);
    });
    cuda::add_partials(stream_, "rms_norm_backward", dw.as<float>(), partial, blocks, d);
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
    cuda::loop(stream_, "rope_table", n, half, [=] __device__(int64_t i, int64_t j) {
        const double angle = static_cast<float>(position[i]) * frequency[j];
        to.at(i)[j] = static_cast<float>(magnitude * cos(angle));
        to.at(i)[half + j] = static_cast<float>(magnitude * sin(angle));
    });
}

void CudaOps::rope(const Tensor& x, const Tensor& table, RopePairing pairing, bool inverse) {
    check_tensor("rope", "x", x, {kAny, kAny, kAny});
    check(x.dim(2) % 2 == 0, "rope: an odd number of channels");
    check_tensor("rope", "table", table, DType::kF32, {x.dim(0), x.dim(2)});
    cuda::with_activation("rope", x.dtype, [&](auto type) { cuda::rope<decltype(type)>(stream_, x, table, pairing, inverse); });
}

}  // namespace fathom
