// Matrix products of bf16 on tensor cores (mma.sync, Ampere and later), sums in f32. Tiles of 128 x 128 or 64 x 64, slices of
// 32 k in three stages of cp.async. Every element adds its products in ascending steps of 16 k, whatever the tile, so that a
// row's bits do not depend on its batch; only wgrad splits its sum (over rows), at places that follow from the shape, added in
// order.
#include "cuda/device.cuh"
#include "cuda/find_tile.cuh"
#include "cuda/mma.cuh"
#include "cuda/products.h"

namespace fathom::cuda {
namespace {

constexpr int kDepth = 32, kStages = 3;

// A slice of one operand in shared memory: kRows x kDepth with k contiguous, or kDepth x kRows with rows contiguous. The
// padding lets the 8 rows of a matrix begin in different banks.
template <int kRows, bool kByK>
struct OperandSlice {
    static constexpr int kStride = kByK ? kDepth + 8 : kRows + 8;
    static constexpr int kElements = (kByK ? kRows : kDepth) * kStride;

    // Rows [row0, row_end) and k [k0, k_end) of memory whose k-th (kByK: row-th) line is `line` elements after the one before.
    static __device__ void fetch(Bf16* to, const Bf16* from, int64_t line, int64_t row0, int64_t row_end, int64_t k0,
                                 int64_t k_end) {
        constexpr int kChunks = (kByK ? kDepth : kRows) / 8, kLines = kByK ? kRows : kDepth;
#pragma unroll
        for (int i = 0; i < kChunks * kLines / 256; ++i) {
            const int e = static_cast<int>(threadIdx.x) + 256 * i, l = e / kChunks, c = e % kChunks * 8;
            const int64_t at_line = (kByK ? row0 : k0) + l, at = (kByK ? k0 : row0) + c;
            const int64_t left = at_line < (kByK ? row_end : k_end) ? (kByK ? k_end : row_end) - at : 0;
            const int bytes = left >= 8 ? 16 : left > 0 ? static_cast<int>(left) * 2 : 0;
            copy_async(to + l * kStride + c, bytes > 0 ? from + at_line * line + at : from, bytes);
        }
    }
    // Four 8 x 8 matrices: of A rows 16, k 16; of B 16 columns, k 16, where the first two registers are columns 0 to 7.
    static __device__ void fragment(uint32_t (&r)[4], const Bf16* slice, int row, int k, bool b) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp, q = lane / 8, in = lane % 8;
        const int at_row = row + (b ? q / 2 : q % 2) * 8, at_k = k + (b ? q % 2 : q / 2) * 8;
        load_matrices<!kByK>(r, kByK ? slice + (at_row + in) * kStride + at_k : slice + (at_k + in) * kStride + at_row);
    }
};

template <int kTile, bool kAByK, bool kBByK>
__global__ void __launch_bounds__(256)
    tensor_kernel(const __grid_constant__ Product p, const __grid_constant__ GroupTable table, float* partial, int splits) {
    using A = OperandSlice<kTile, kAByK>;
    using B = OperandSlice<kTile, kBByK>;
    constexpr bool kWgrad = !kAByK;
    constexpr int kRows = kTile / 2, kColumns = kTile / 4, kTilesM = kRows / 16, kTilesN = kColumns / 8;  // of a warp
    extern __shared__ __align__(16) Bf16 space[];
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
    const int warp_row = warp / 4 * kRows, warp_column = warp % 4 * kColumns;
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
        const int64_t each = (p.k + int64_t{splits} * kDepth - 1) / (int64_t{splits} * kDepth) * kDepth;
        k_begin = split * each;
        k_end = min(p.k, k_begin + each);
    }
    const int64_t column_begin = static_cast<int64_t>(blockIdx.x) * kTile;
    const auto* a = static_cast<const Bf16*>(p.a) + (p.offsets == nullptr ? group * p.a_group : 0);
    const auto* b = static_cast<const Bf16*>(kWgrad ? p.b : table.matrix[group]);
    const int64_t a_line = kAByK ? p.a_m : p.a_k, b_line = kWgrad ? p.b_row : table.row[group];

    const auto fetch = [&](int64_t slice) {
        const int64_t k0 = k_begin + slice * kDepth;
        Bf16* to = space + slice % kStages * (A::kElements + B::kElements);
        if (k0 < k_end) {
            A::fetch(to, a, a_line, row_begin, row_end, k0, k_end);
            B::fetch(to + A::kElements, b, b_line, column_begin, p.n, k0, k_end);
        }
        asm volatile("cp.async.commit_group;");
    };
    float sum[kTilesM][kTilesN][4]{};
    const int64_t slices = (k_end - k_begin + kDepth - 1) / kDepth;
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) fetch(i);
    for (int64_t slice = 0; slice < slices; ++slice) {
        asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
        __syncthreads();
        fetch(slice + kStages - 1);
        const Bf16* a_slice = space + slice % kStages * (A::kElements + B::kElements);
        const Bf16* b_slice = a_slice + A::kElements;
#pragma unroll
        for (int k = 0; k < kDepth; k += 16) {
            uint32_t left[kTilesM][4], right[kTilesN / 2][4];
#pragma unroll
            for (int i = 0; i < kTilesM; ++i) A::fragment(left[i], a_slice, warp_row + 16 * i, k, false);
#pragma unroll
            for (int j = 0; j < kTilesN / 2; ++j) B::fragment(right[j], b_slice, warp_column + 16 * j, k, true);
#pragma unroll
            for (int i = 0; i < kTilesM; ++i)
#pragma unroll
                for (int j = 0; j < kTilesN; ++j)
                    multiply_add(sum[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
        }
    }

    void* const c = kWgrad ? (splits > 1 ? partial : table.matrix[group]) : p.c;
    const int64_t c_row = splits > 1 ? p.n : kWgrad ? table.row[group] : p.c_m;
    const int64_t c_base = splits > 1 ? split * p.m * p.n : p.offsets == nullptr ? group * p.c_group : 0;
    const int64_t odd = reinterpret_cast<uintptr_t>(c) / 2 % 2;  // C may be a slice that begins between two pairs of bf16
#pragma unroll
    for (int i = 0; i < kTilesM; ++i)
#pragma unroll
        for (int j = 0; j < kTilesN; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int64_t row = row_begin + warp_row + 16 * i + lane / 4 + 8 * half;
                const int64_t column = column_begin + warp_column + 8 * j + lane % 4 * 2;
                if (row >= row_end || column >= p.n) continue;
                const int64_t at = c_base + row * c_row + column;
                const float x = sum[i][j][2 * half], y = sum[i][j][2 * half + 1];
                const bool two = column + 1 < p.n;
                if (kWgrad) {
                    auto* to = static_cast<float*>(c) + at;
                    to[0] = splits > 1 ? x : to[0] + x;
                    if (two) to[1] = splits > 1 ? y : to[1] + y;
                } else if (two && (at + odd) % 2 == 0 && p.c_type == DType::kBF16) {
                    *reinterpret_cast<__nv_bfloat162*>(static_cast<Bf16*>(c) + at) = __floats2bfloat162_rn(x, y);
                } else {
                    store(c, p.c_type, at, x);
                    if (two) store(c, p.c_type, at + 1, y);
                }
            }
}

template <int kTile, bool kAByK, bool kBByK>
void launch(cudaStream_t stream, const Product& p, const GroupTable& table, dim3 grid, float* partial, int splits) {
    constexpr int kBytes = kStages * 2 * (OperandSlice<kTile, kAByK>::kElements + OperandSlice<kTile, kBByK>::kElements);
    const auto kernel = tensor_kernel<kTile, kAByK, kBByK>;
    static const bool raised = [&] {  // above 48 KiB only when asked for
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "shared memory");
        return true;
    }();
    (void)raised;
    kernel<<<grid, 256, kBytes, stream>>>(p, table, partial, splits);
}

template <bool kAByK, bool kBByK>
void launch(cudaStream_t stream, const Product& p, const GroupTable& table, float* partial, int splits) {
    const bool by_rows = p.offsets != nullptr && kAByK;
    const auto grid = [&](int64_t tile) {
        const int64_t row_tiles = by_rows ? ceil_div(p.m, tile) + p.groups : ceil_div(p.m, tile);
        return dim3(static_cast<unsigned>(ceil_div(p.n, tile)), static_cast<unsigned>(row_tiles),
                    by_rows ? 1u : static_cast<unsigned>(p.groups * splits));
    };
    const dim3 large = grid(128);
    constexpr int64_t kEnough = 120;  // blocks: about one for each multiprocessor of an H100
    if (int64_t{large.x} * large.y * large.z >= kEnough && p.n > 64 && (!by_rows || p.m / p.groups > 64)) {
        launch<128, kAByK, kBByK>(stream, p, table, large, partial, splits);
    } else {
        launch<64, kAByK, kBByK>(stream, p, table, grid(64), partial, splits);
    }
}

}  // namespace

bool suits_tensor_cores(const Product& p, const GroupTable& table) {
    if (p.a_type != DType::kBF16 || p.b_type != DType::kBF16) return false;
    const bool wgrad = p.form == ProductForm::kWgrad;
    if (!aligned(p.a, wgrad ? p.a_k : p.a_m, p.a_group)) return false;
    if (wgrad) return aligned(p.b, p.b_row);
    for (int g = 0; g < p.groups; ++g)
        if (!aligned(table.matrix[g], table.row[g])) return false;
    return true;
}

void run_tensor_product(cudaStream_t stream, const char* op, const Product& p, const GroupTable& table, float* partial,
                        int splits) {
    if (p.m == 0 || p.n == 0) return;
    switch (p.form) {
        case ProductForm::kForward:
            launch<true, true>(stream, p, table, partial, splits);
            break;
        case ProductForm::kDgrad:
            launch<true, false>(stream, p, table, partial, splits);
            break;
        case ProductForm::kWgrad:
            launch<false, false>(stream, p, table, partial, splits);
            break;
    }
    check_launch(op);
}

}  // namespace fathom::cuda
