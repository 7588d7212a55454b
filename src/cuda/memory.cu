// Copies, sums and row movements: all bound by memory. One thread per element, neighbours in a row side by side.
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/packed_loop.cuh"

namespace fathom {
namespace cuda {
namespace {

// A tensor of rank <= 4 with leading dimensions of 1.
struct Strided {
    void* data;
    DType type;
    int64_t dim[4], stride[4];

    explicit Strided(const Tensor& t) : data(t.data), type(t.dtype) {
        for (int i = 0; i < 4; ++i) {
            const int from = i - (4 - t.rank);
            dim[i] = from < 0 ? 1 : t.dim(from);
            stride[i] = from < 0 ? 0 : t.stride[static_cast<size_t>(from)];
        }
    }
    // Offset of the element that comes i-th in row-major order.
    template <class Index>
    __device__ int64_t offset(Index i) const {
        int64_t at = 0;
#pragma unroll
        for (int axis = 3; axis > 0; --axis) {
            const auto size = static_cast<Index>(dim[axis]);
            const Index next = i / size;
            at += static_cast<int64_t>(i - next * size) * stride[axis];
            i = next;
        }
        return at + static_cast<int64_t>(i) * stride[0];
    }
};

template <class Index>
__global__ void __launch_bounds__(256) copy_kernel(Strided y, Strided x, Index total, int bytes) {
    begin_early();
    const Index i = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (i >= total) return;
    const int64_t to = y.offset(i), from = x.offset(i);
    switch (y.type == x.type ? bytes : 0) {
        case 1:
            static_cast<uint8_t*>(y.data)[to] = static_cast<const uint8_t*>(x.data)[from];
            break;
        case 2:
            static_cast<uint16_t*>(y.data)[to] = static_cast<const uint16_t*>(x.data)[from];
            break;
        case 4:
            static_cast<uint32_t*>(y.data)[to] = static_cast<const uint32_t*>(x.data)[from];
            break;
        case 8:
            static_cast<uint64_t*>(y.data)[to] = static_cast<const uint64_t*>(x.data)[from];
            break;
        default:
            store(y.data, y.type, to, load(x.data, x.type, from));
    }
}

template <class Index>
__global__ void __launch_bounds__(256) fill_kernel(Strided y, double value, Index total) {
    const Index i = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (i >= total) return;
    const int64_t at = y.offset(i);
    switch (y.type) {
        case DType::kF64:
            static_cast<double*>(y.data)[at] = value;
            break;
        case DType::kI64:
            static_cast<int64_t*>(y.data)[at] = static_cast<int64_t>(value);
            break;
        case DType::kI32:
            static_cast<int32_t*>(y.data)[at] = static_cast<int32_t>(value);
            break;
        default:
            store(y.data, y.type, at, static_cast<float>(value));
    }
}

bool is_float(DType type) {
    return type == DType::kF32 || type == DType::kBF16 || type == DType::kF16 || type == DType::kF8E4M3;
}

template <class T>
struct Add {
    Rows<T> y, a, b;

    template <int kCount>
    __device__ __forceinline__ void operator()(int64_t i, int64_t c) const {
        float left[kCount], right[kCount];
        load_pack(left, a.at(i) + c);
        load_pack(right, b.at(i) + c);
#pragma unroll
        for (int j = 0; j < kCount; ++j) left[j] += right[j];
        store_pack(y.at(i) + c, left);
    }
};

template <class T>
void add_bias(cudaStream_t stream, const Tensor& y, const Tensor& bias) {
    const Rows<T> to(y);
    const Vector b(bias);
    loop(stream, "add_bias", y.dim(0), y.dim(1),
         [=] __device__(int64_t i, int64_t c) { to.at(i)[c] = narrow<T>(widen(to.at(i)[c]) + b[c]); });
}

template <class T>
void sum_heads(cudaStream_t stream, const Tensor& y, const Tensor& x) {
    const Rows<T> to(y), from(x);
    const int64_t heads = x.dim(1);
    loop(stream, "sum_heads", y.dim(0), y.dim(1), [=] __device__(int64_t i, int64_t c) {
        float sum = 0;
        for (int64_t j = 0; j < heads; ++j) sum += widen(from.at(i, j)[c]);
        to.at(i)[c] = narrow<T>(sum);
    });
}

// Blocks of one output row each. The first row that names a target adds up all that do, in their order; the others leave.
template <class T>
__global__ void __launch_bounds__(256) gather_backward_kernel(float* dx, int64_t dx_row, int64_t table, Rows<T> dy, int64_t n,
                                                              int64_t d, const int32_t* rows, int* fault) {
    __shared__ int32_t found[256];
    __shared__ int warp_count[8];
    const int64_t first = blockIdx.x;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
    const int32_t target = rows[first];
    if (target < 0 || target >= table) {
        if (thread == 0) *fault = kRowIndex;
        return;
    }
    bool earlier = false;
    for (int64_t i = thread; i < first; i += 256) earlier = earlier || rows[i] == target;
    if (__syncthreads_or(earlier)) return;
    for (int64_t begin = first; begin < n; begin += 256) {
        const int64_t i = begin + thread;
        const bool mine = i < n && rows[i] == target;
        const unsigned mask = __ballot_sync(kAll, mine);
        if (lane == 0) warp_count[warp] = __popc(mask);
        __syncthreads();
        int at = __popc(mask & ((1u << lane) - 1)), count = 0;
        for (int w = 0; w < 8; ++w) {
            if (w < warp) at += warp_count[w];
            count += warp_count[w];
        }
        if (mine) found[at] = static_cast<int32_t>(i);
        __syncthreads();
        for (int64_t c = thread; c < d && count > 0; c += 256) {
            float sum = dx[target * dx_row + c];
            for (int k = 0; k < count; ++k) sum += widen(dy.at(found[k])[c]);
            dx[target * dx_row + c] = sum;
        }
        __syncthreads();
    }
}

// y[to] = x[from] with from = rows[i] (gather) or to = rows[i] (scatter).
void move_rows(cudaStream_t stream, const char* op, const Tensor& y, const Tensor& x, const Tensor& rows, bool gather,
               int* fault) {
    const int64_t table = gather ? x.dim(0) : y.dim(0);
    const auto* index = rows.as<int32_t>();
    const Tensor to = y, from = x;
    const int64_t y_row = y.stride[0], x_row = x.stride[0];
    if (y.dtype == x.dtype && packable(x, y)) {  // 16 bytes at a time
        const int64_t scale = size_of(y.dtype), packs = y.dim(1) * scale / 16, y_packs = y_row * scale / 16,
                      x_packs = x_row * scale / 16;
        constexpr int64_t kTogether = 4, kManyRows = 512;  // loads in flight where threads abound
        const int64_t quarter = packs / kTogether;
        if (rows.dim(0) >= kManyRows && packs % kTogether == 0) {
            loop(stream, op, rows.dim(0), quarter, [=] __device__(int64_t i, int64_t c) {
                const int64_t other = index[i];
                if (other < 0 || other >= table) {
                    *fault = kRowIndex;
                    return;
                }
                uint4* const target = static_cast<uint4*>(to.data) + (gather ? i : other) * y_packs + c;
                const uint4* const source = static_cast<const uint4*>(from.data) + (gather ? other : i) * x_packs + c;
                uint4 held[kTogether];
#pragma unroll
                for (int k = 0; k < kTogether; ++k) held[k] = source[k * quarter];
#pragma unroll
                for (int k = 0; k < kTogether; ++k) target[k * quarter] = held[k];
            });
            return;
        }
        loop(stream, op, rows.dim(0), packs, [=] __device__(int64_t i, int64_t c) {
            const int64_t other = index[i];
            if (other < 0 || other >= table) {
                *fault = kRowIndex;
                return;
            }
            static_cast<uint4*>(to.data)[(gather ? i : other) * y_packs + c] =
                static_cast<const uint4*>(from.data)[(gather ? other : i) * x_packs + c];
        });
        return;
    }
    loop(stream, op, rows.dim(0), y.dim(1), [=] __device__(int64_t i, int64_t c) {
        const int64_t other = index[i];
        if (other < 0 || other >= table) {
            *fault = kRowIndex;
            return;
        }
        const int64_t at = (gather ? i : other) * y_row + c, source = (gather ? other : i) * x_row + c;
        store(to.data, to.dtype, at, load(from.data, from.dtype, source));
    });
}

}  // namespace

void add_partials(cudaStream_t stream, const char* op, float* sums, float* partial, int64_t blocks, int64_t d) {
    // Sixteen neighbours at a time where there are many, each sum in the place of its first: one thread per column alone would
    // leave the GPU idle.
    constexpr int64_t kTogether = 16;
    int64_t step = 1;
    for (; ceil_div(blocks, step) > kTogether; step *= kTogether) {
        loop(stream, op, ceil_div(blocks, step * kTogether), d, [=] __device__(int64_t group, int64_t c) {
            const int64_t first = group * step * kTogether, end = min(blocks, first + step * kTogether);
            float sum = partial[first * d + c];
            for (int64_t b = first + step; b < end; b += step) sum += partial[b * d + c];
            partial[first * d + c] = sum;
        });
    }
    loop(stream, op, 1, d, [=] __device__(int64_t, int64_t c) {
        float sum = sums[c];
        for (int64_t b = 0; b < blocks; b += step) sum += partial[b * d + c];
        sums[c] = sum;
    });
}

namespace {

template <class T>
void column_sums(cudaStream_t stream, float* partial, const Tensor& x, int64_t blocks) {
    const Rows<T> from(x);
    const int64_t n = x.dim(0), d = x.dim(1);
    loop(stream, "add_bias_backward", blocks, d, [=] __device__(int64_t b, int64_t c) {
        float sum = 0;
        const int64_t end = min(n, (b + 1) * kRowsPerPartial);
        for (int64_t i = b * kRowsPerPartial; i < end; ++i) sum += widen(from.at(i)[c]);
        partial[b * d + c] = sum;
    });
}

}  // namespace
}  // namespace cuda

void CudaOps::fill(const Tensor& y, double value) {
    if (y.size() == 0) return;
    if (value == 0 && y.contiguous()) {
        cuda::check_cuda(cudaMemsetAsync(y.data, 0, static_cast<size_t>(y.bytes()), lane_->stream), "fill");
        return;
    }
    check(cuda::is_float(y.dtype) || y.dtype == DType::kF64 || y.dtype == DType::kI32 || y.dtype == DType::kI64,
          "fill: not for this type");
    const cuda::Strided to(y);
    const auto blocks = static_cast<unsigned>(cuda::ceil_div(y.size(), 256));
    if (y.size() < (int64_t{1} << 31)) {
        cuda::fill_kernel<uint32_t><<<blocks, 256, 0, lane_->stream>>>(to, value, static_cast<uint32_t>(y.size()));
    } else {
        cuda::fill_kernel<int64_t><<<blocks, 256, 0, lane_->stream>>>(to, value, y.size());
    }
    cuda::check_launch("fill");
}

void CudaOps::copy(const Tensor& y, const Tensor& x) {
    check(y.rank == x.rank && y.shape == x.shape, "copy: y is " + y.describe() + ", x is " + x.describe());
    check(y.dtype == x.dtype || (cuda::is_float(y.dtype) && cuda::is_float(x.dtype)),
          "copy: from " + x.describe() + " to " + y.describe());
    if (y.size() == 0) return;
    if (y.dtype == x.dtype && y.contiguous() && x.contiguous()) {
        cuda::check_cuda(
            cudaMemcpyAsync(y.data, x.data, static_cast<size_t>(y.bytes()), cudaMemcpyDeviceToDevice, lane_->stream), "copy");
        return;
    }
    const cuda::Strided to(y), from(x);
    const auto blocks = static_cast<unsigned>(cuda::ceil_div(y.size(), 256));
    const int bytes = static_cast<int>(size_of(y.dtype));
    if (y.size() < (int64_t{1} << 31)) {
        cuda::launch_early(cuda::copy_kernel<uint32_t>, dim3(blocks), 256, 0, lane_->stream, to, from,
                           static_cast<uint32_t>(y.size()), bytes);
    } else {
        cuda::launch_early(cuda::copy_kernel<int64_t>, dim3(blocks), 256, 0, lane_->stream, to, from, y.size(), bytes);
    }
    cuda::check_launch("copy");
}

void CudaOps::add(const Tensor& y, const Tensor& a, const Tensor& b) {
    check_tensor("add", "y", y, {kAny, kAny});
    check_tensor("add", "a", a, y.dtype, {y.dim(0), y.dim(1)});
    check_tensor("add", "b", b, y.dtype, {y.dim(0), y.dim(1)});
    cuda::with_activation("add", y.dtype, [&](auto type) {
        using T = decltype(type);
        cuda::packed_loop_over<T>(lane_->stream, "add", cuda::Add<T>{cuda::Rows<T>(y), cuda::Rows<T>(a), cuda::Rows<T>(b)}, y,
                                  a, b);
    });
}

void CudaOps::add_bias(const Tensor& y, const Tensor& bias) {
    check_tensor("add_bias", "y", y, {kAny, kAny});
    check_tensor("add_bias", "bias", bias, {y.dim(1)});
    cuda::with_activation("add_bias", y.dtype, [&](auto type) { cuda::add_bias<decltype(type)>(lane_->stream, y, bias); });
}

void CudaOps::add_bias_backward(const Tensor& dbias, const Tensor& dy) {
    check_tensor("add_bias_backward", "dy", dy, {kAny, kAny});
    const int64_t n = dy.dim(0), d = dy.dim(1), blocks = cuda::ceil_div(n, cuda::kRowsPerPartial);
    check_tensor("add_bias_backward", "dbias", dbias, DType::kF32, {d});
    lane_->workspace.begin(blocks * d * 4);
    auto* partial = lane_->workspace.take<float>(blocks * d);
    cuda::with_activation("add_bias_backward", dy.dtype,
                          [&](auto type) { cuda::column_sums<decltype(type)>(lane_->stream, partial, dy, blocks); });
    cuda::add_partials(lane_->stream, "add_bias_backward", dbias.as<float>(), partial, blocks, d);
}

void CudaOps::sum_heads(const Tensor& y, const Tensor& x) {
    check_tensor("sum_heads", "x", x, {kAny, kAny, kAny});
    check_tensor("sum_heads", "y", y, x.dtype, {x.dim(0), x.dim(2)});
    cuda::with_activation("sum_heads", y.dtype, [&](auto type) { cuda::sum_heads<decltype(type)>(lane_->stream, y, x); });
}

void CudaOps::gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
    check_tensor("gather_rows", "y", y, {kAny, kAny});
    check_tensor("gather_rows", "x", x, {kAny, y.dim(1)});
    check_tensor("gather_rows", "rows", rows, DType::kI32, {y.dim(0)});
    cuda::move_rows(lane_->stream, "gather_rows", y, x, rows, true, fault_.device());
}

void CudaOps::gather_rows_backward(const Tensor& dx, const Tensor& dy, const Tensor& rows) {
    check_tensor("gather_rows_backward", "dy", dy, {kAny, kAny});
    const int64_t n = dy.dim(0), d = dy.dim(1);
    check_tensor("gather_rows_backward", "dx", dx, DType::kF32, {kAny, d});
    check_tensor("gather_rows_backward", "rows", rows, DType::kI32, {n});
    if (dy.size() == 0) return;
    cuda::with_activation("gather_rows_backward", dy.dtype, [&](auto type) {
        cuda::gather_backward_kernel<decltype(type)><<<static_cast<unsigned>(n), 256, 0, lane_->stream>>>(
            dx.as<float>(), dx.stride[0], dx.dim(0), cuda::Rows<decltype(type)>(dy), n, d, rows.as<int32_t>(), fault_.device());
    });
    cuda::check_launch("gather_rows_backward");
}

void CudaOps::scatter_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
    check_tensor("scatter_rows", "x", x, {kAny, kAny});
    check_tensor("scatter_rows", "y", y, {kAny, x.dim(1)});
    check_tensor("scatter_rows", "rows", rows, DType::kI32, {x.dim(0)});
    cuda::move_rows(lane_->stream, "scatter_rows", y, x, rows, false, fault_.device());
}

}  // namespace fathom
