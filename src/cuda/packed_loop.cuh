// Loops over elements of rows, 16 bytes per thread where the rows' places allow it. The result of an element is the same either
// way.
#pragma once

#include "cuda/device.cuh"

namespace fathom::cuda {

template <int kCount, class T>
struct alignas(kCount * sizeof(T)) Pack {
    T values[kCount];
};

template <int kCount, class T>
__device__ __forceinline__ void load_pack(float (&x)[kCount], const T* from) {
    const auto pack = *reinterpret_cast<const Pack<kCount, T>*>(from);
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = widen(pack.values[i]);
}
template <int kCount, class T>
__device__ __forceinline__ void store_pack(T* to, const float (&x)[kCount]) {
    Pack<kCount, T> pack;
#pragma unroll
    for (int i = 0; i < kCount; ++i) pack.values[i] = narrow<T>(x[i]);
    *reinterpret_cast<Pack<kCount, T>*>(to) = pack;
}

// Elements in 16 bytes.
template <class T>
constexpr int kPackOf = 16 / static_cast<int>(sizeof(T));

// Whether all rows begin at multiples of 16 bytes and have whole packs.
template <class... Tensors>
bool packable(const Tensors&... tensors) {
    const auto one = [](const Tensor& t) {
        bool whole = reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.dim(-1) * size_of(t.dtype) % 16 == 0;
        for (int axis = 0; axis + 1 < t.rank; ++axis)
            whole = whole && t.stride[static_cast<size_t>(axis)] * size_of(t.dtype) % 16 == 0;
        return whole;
    };
    return (one(tensors) && ...);
}

template <int kCount, class Body>
struct PackedBody {
    Body body;
    __device__ __forceinline__ void operator()(int64_t row, int64_t pack) const {
        body.template operator()<kCount>(row, pack * kCount);
    }
};

// body.operator()<kCount>(row, col): elements [col, col + kCount) of a row; kCount is kPackOf<T> if `packed`, else 1.
template <class T, class Body>
void packed_loop(cudaStream_t stream, const char* op, int64_t rows, int64_t cols, bool packed, const Body& body) {
    if (packed) {
        loop(stream, op, rows, cols / kPackOf<T>, PackedBody<kPackOf<T>, Body>{body});
    } else {
        loop(stream, op, rows, cols, PackedBody<1, Body>{body});
    }
}

// The same over tensors of one shape, as one long row where all are contiguous.
template <class T, class Body, class... Tensors>
void packed_loop_over(cudaStream_t stream, const char* op, const Body& body, const Tensor& y, const Tensors&... others) {
    const bool flat = (y.contiguous() && ... && others.contiguous());
    packed_loop<T>(stream, op, flat ? 1 : y.dim(0), flat ? y.size() : y.dim(1), packable(y, others...), body);
}

}  // namespace fathom::cuda
