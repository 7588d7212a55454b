// Matrix products without tensor cores: each element is one chain of fused multiply-adds over ascending k, so that tiles do not
// matter to the bits. Blocks of 256 threads own a tile of 64 x 64 or 128 x 128, threads 4 x 4 or 8 x 8 of it; slices of 16 k go
// through shared memory while the next ones are on their way. Any type is widened as it is loaded.
#include "cuda/device.cuh"
#include "cuda/find_tile.cuh"
#include "cuda/products.h"

namespace fathom::cuda {
namespace {

constexpr int kDepth = 16;

// Element (n, k) of B of one group.
struct StoredMatrix {
    const void* data;
    DType type;
    int64_t n_stride, k_stride;

    __device__ __forceinline__ float operator()(int64_t n, int64_t k) const {
        return load(data, type, n * n_stride + k * k_stride);
    }
};

template <int kTile, bool kWgrad, bool kForward>
__global__ void __launch_bounds__(256)
    chain_kernel(Product p, const __grid_constant__ GroupTable table, float* partial, int splits) {
    constexpr int kMicro = kTile / 16, kLoads = kTile * kDepth / 256;
    __shared__ __align__(16) float a_tile[kDepth][kTile + 4];
    __shared__ __align__(16) float b_tile[kDepth][kTile + 4];
    const int thread = static_cast<int>(threadIdx.x), tx = thread % 16, ty = thread / 16;
    int group = static_cast<int>(blockIdx.z) / splits;
    const int split = static_cast<int>(blockIdx.z) % splits;
    int64_t row_begin = static_cast<int64_t>(blockIdx.y) * kTile, row_end = min(p.m, row_begin + kTile), k_begin = 0,
            k_end = p.k;
    if (p.offsets != nullptr && kWgrad) {
        k_begin = p.offsets[group];
        k_end = p.offsets[group + 1];
        if (k_begin == k_end) return;  // += 0
    } else if (p.offsets != nullptr) {
        const TileRows tile = find_tile<kTile>(p.offsets, p.groups, blockIdx.y);
        if (tile.group < 0) return;
        group = tile.group;
        row_begin = tile.begin;
        row_end = tile.end;
    } else if (splits > 1) {
        const int64_t each = (p.k + splits - 1) / splits;
        k_begin = split * each;
        k_end = min(p.k, k_begin + each);
    }
    const int64_t column_begin = static_cast<int64_t>(blockIdx.x) * kTile;
    const int64_t b_row = kWgrad ? p.b_row : table.row[group];
    const StoredMatrix b{kWgrad ? p.b : table.matrix[group], p.b_type, kForward ? b_row : 1, kForward ? 1 : b_row};
    const int64_t c_row = splits > 1 ? p.n : kWgrad ? table.row[group] : p.c_m;
    const int64_t a_base = p.offsets == nullptr ? group * p.a_group : 0;

    float a_next[kLoads], b_next[kLoads], sum[kMicro][kMicro];
    // Where the i-th element that this thread loads lies in a tile: neighbours in memory go to neighbouring threads.
    const auto fetch = [&](int64_t k0) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int e = thread + 256 * i;
            const int a_k = kWgrad ? e / kTile : e % kDepth, a_m = kWgrad ? e % kTile : e / kDepth;
            const int b_k = kForward ? e % kDepth : e / kTile, b_n = kForward ? e / kDepth : e % kTile;
            const bool a_in = k0 + a_k < k_end && row_begin + a_m < row_end,
                       b_in = k0 + b_k < k_end && column_begin + b_n < p.n;
            a_next[i] = a_in ? load(p.a, p.a_type, a_base + (row_begin + a_m) * p.a_m + (k0 + a_k) * p.a_k) : 0.0f;
            b_next[i] = b_in ? b(column_begin + b_n, k0 + b_k) : 0.0f;
        }
    };
    // Rows 4 t + i of each 64: four neighbours are one load of 16 bytes.
    const auto place = [](int t, int i) { return i / 4 * 64 + 4 * t + i % 4; };
    void* const c = kWgrad ? (splits > 1 ? partial : table.matrix[group]) : p.c;
    const int64_t c_base = splits > 1 ? split * p.m * p.n : p.offsets == nullptr ? group * p.c_group : 0;
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
        for (int j = 0; j < kMicro; ++j) {
            const int64_t row = row_begin + place(ty, i), column = column_begin + place(tx, j);
            sum[i][j] = kWgrad && splits == 1 && row < row_end && column < p.n
                            ? static_cast<const float*>(c)[row * c_row + column]
                            : 0.0f;
        }
    fetch(k_begin);
    for (int64_t k0 = k_begin; k0 < k_end; k0 += kDepth) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int e = thread + 256 * i;
            a_tile[kWgrad ? e / kTile : e % kDepth][kWgrad ? e % kTile : e / kDepth] = a_next[i];
            b_tile[kForward ? e % kDepth : e / kTile][kForward ? e / kDepth : e % kTile] = b_next[i];
        }
        __syncthreads();
        if (k0 + kDepth < k_end) fetch(k0 + kDepth);
#pragma unroll
        for (int k = 0; k < kDepth; ++k) {
            float left[kMicro], right[kMicro];
#pragma unroll
            for (int i = 0; i < kMicro; i += 4) {
                *reinterpret_cast<float4*>(left + i) = *reinterpret_cast<const float4*>(&a_tile[k][place(ty, i)]);
                *reinterpret_cast<float4*>(right + i) = *reinterpret_cast<const float4*>(&b_tile[k][place(tx, i)]);
            }
#pragma unroll
            for (int i = 0; i < kMicro; ++i)
#pragma unroll
                for (int j = 0; j < kMicro; ++j) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
        for (int j = 0; j < kMicro; ++j) {
            const int64_t row = row_begin + place(ty, i), column = column_begin + place(tx, j);
            if (row < row_end && column < p.n) store(c, p.c_type, c_base + row * c_row + column, sum[i][j]);
        }
}

// Large tiles where there are enough of them to fill the GPU.
template <bool kWgrad, bool kForward>
void launch(cudaStream_t stream, const Product& p, const GroupTable& table, float* partial, int splits) {
    const bool by_rows = p.offsets != nullptr && !kWgrad;
    const auto grid = [&](int64_t tile) {
        const int64_t row_tiles = by_rows ? ceil_div(p.m, tile) + p.groups : ceil_div(p.m, tile);
        return dim3(static_cast<unsigned>(ceil_div(p.n, tile)), static_cast<unsigned>(row_tiles),
                    by_rows ? 1u : static_cast<unsigned>(p.groups * splits));
    };
    const dim3 large = grid(128);
    constexpr int64_t kEnough = 200;
    if (p.n >= 96 && p.m >= 96 && int64_t{large.x} * large.y * large.z >= kEnough && (!by_rows || p.m / p.groups >= 96)) {
        chain_kernel<128, kWgrad, kForward><<<large, 256, 0, stream>>>(p, table, partial, splits);
    } else {
        chain_kernel<64, kWgrad, kForward><<<grid(64), 256, 0, stream>>>(p, table, partial, splits);
    }
}

}  // namespace

void run_chain_product(cudaStream_t stream, const char* op, const Product& product, const GroupTable& table, float* partial,
                       int splits) {
    if (product.m == 0 || product.n == 0) return;
    switch (product.form) {
        case ProductForm::kForward:
            launch<false, true>(stream, product, table, partial, splits);
            break;
        case ProductForm::kDgrad:
            launch<false, false>(stream, product, table, partial, splits);
            break;
        case ProductForm::kWgrad:
            launch<true, false>(stream, product, table, partial, splits);
            break;
    }
    check_launch(op);
}

void add_splits(cudaStream_t stream, const char* op, const Product& product, const GroupTable& table, const float* partial,
                int splits) {
    auto* const dw = static_cast<float*>(table.matrix[0]);
    const int64_t row = table.row[0], n = product.n, size = product.m * product.n;
    const bool first = product.first;
    loop(stream, op, product.m, n, [=] __device__(int64_t i, int64_t c) {
        float sum = partial[i * n + c];
        for (int s = 1; s < splits; ++s) sum += partial[s * size + i * n + c];
        dw[i * row + c] = first ? sum : dw[i * row + c] + sum;
    });
}

}  // namespace fathom::cuda
