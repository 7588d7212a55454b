// Operands in f32 for tensor cores of bf16.
#include "cuda/device.cuh"
#include "cuda/products.h"

namespace fathom::cuda {

void split_in_halves(cudaStream_t stream, const char* op, void* halves, const float* x, int64_t x_row, int64_t rows,
                     int64_t width) {
    auto* const to = static_cast<Bf16*>(halves);
    loop(stream, op, rows, width, [=] __device__(int64_t i, int64_t c) {
        const float value = x[i * x_row + c];
        const Bf16 high = narrow<Bf16>(value);
        to[i * 2 * width + c] = high;
        to[i * 2 * width + width + c] = narrow<Bf16>(value - widen(high));
    });
}

void repeat_matrix(cudaStream_t stream, const char* op, void* to, const void* from, int64_t from_row, int64_t rows,
                   int64_t width) {
    auto* const out = static_cast<Bf16*>(to);
    const auto* const in = static_cast<const Bf16*>(from);
    loop(stream, op, rows, width,
         [=] __device__(int64_t i, int64_t c) { out[i * width + c] = out[(rows + i) * width + c] = in[i * from_row + c]; });
}

}  // namespace fathom::cuda
