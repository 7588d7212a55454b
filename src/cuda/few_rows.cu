// Products of one to eight rows with weights, y = x w^T: bound by reading the weights once. A warp has one column of the
// result: its lanes read 16 bytes each of the weight's row, neighbours side by side, several such pieces ahead, and of the rows
// of x, which stay in L1. Experts: one row of the result at a time, whose expert is found in the offsets; weights that several
// rows share come from L2. 2 m n k FLOP; bytes 2 n k per matrix.
#include "cuda/device.cuh"
#include "cuda/products.h"

namespace fathom::cuda {
namespace {

constexpr int kColumnsPerBlock = 8, kPiece = 8;  // warps of a block; bf16 in 16 bytes
constexpr int64_t kMostRows = 8, kMostExpertRows = 32;

__device__ __forceinline__ void multiply_add(float& sum, const uint4& a, const uint4& b) {
    const auto* x = reinterpret_cast<const __nv_bfloat162*>(&a);
    const auto* w = reinterpret_cast<const __nv_bfloat162*>(&b);
#pragma unroll
    for (int i = 0; i < kPiece / 2; ++i) {
        const float2 left = __bfloat1622float2(x[i]), right = __bfloat1622float2(w[i]);
        sum = fmaf(left.x, right.x, sum);
        sum = fmaf(left.y, right.y, sum);
    }
}

// The group that a row of sorted rows belongs to; -1 behind the last. By a warp.
__device__ int group_of(const int32_t* offsets, int groups, int64_t row) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int base = 0; base < groups; base += kWarp) {
        const unsigned behind = __ballot_sync(kAll, base + lane < groups && row < offsets[base + lane + 1]);
        if (behind != 0) return base + __ffs(static_cast<int>(behind)) - 1;
    }
    return -1;
}

// kRows rows of x at a time, from row blockIdx.y * kRows on.
template <int kRows>
__global__ void __launch_bounds__(kColumnsPerBlock* kWarp)
    few_rows_kernel(const __grid_constant__ Product p, const __grid_constant__ GroupTable table) {
    begin_early();
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnsPerBlock + threadIdx.x / kWarp;
    const int64_t first = static_cast<int64_t>(blockIdx.y) * kRows;
    if (column >= p.n) return;
    int group = static_cast<int>(blockIdx.z);
    if (p.offsets != nullptr) group = group_of(p.offsets, p.groups, first);
    if (group < 0 || (p.offsets != nullptr && first < p.offsets[0])) return;
    const int64_t apart = p.offsets == nullptr ? group : 0;
    const auto* w = static_cast<const Bf16*>(table.matrix[group]) + column * table.row[group];
    const auto* x = static_cast<const Bf16*>(p.a) + apart * p.a_group + first * p.a_m;
    float sum[kRows]{};
#pragma unroll 4
    for (int64_t k = lane * kPiece; k < p.k; k += kWarp * kPiece) {
        const uint4 right = __ldg(reinterpret_cast<const uint4*>(w + k));
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            if (first + i < p.m) multiply_add(sum[i], __ldg(reinterpret_cast<const uint4*>(x + i * p.a_m + k)), right);
        }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        sum[i] = warp_sum(sum[i]);
        if (lane == i && first + i < p.m) store(p.c, p.c_type, apart * p.c_group + (first + i) * p.c_m + column, sum[i]);
    }
}

bool aligned(const void* p, int64_t row, int64_t group) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && row % 8 == 0 && group % 8 == 0;
}

}  // namespace

bool suits_few_rows(const Product& p, const GroupTable& table) {
    if (p.form != ProductForm::kForward || p.a_type != DType::kBF16 || p.b_type != DType::kBF16) return false;
    if (p.m > (p.offsets == nullptr ? kMostRows : kMostExpertRows) || p.k % kPiece != 0) return false;
    bool all = aligned(p.a, p.a_m, p.a_group);
    for (int g = 0; g < p.groups; ++g) all = all && aligned(table.matrix[g], table.row[g], 0);
    return all;
}

void run_few_rows(cudaStream_t stream, const char* op, const Product& p, const GroupTable& table) {
    if (p.m == 0 || p.n == 0) return;
    const auto launch = [&](auto kernel, int64_t rows) {
        const dim3 grid(static_cast<unsigned>(ceil_div(p.n, kColumnsPerBlock)), static_cast<unsigned>(ceil_div(p.m, rows)),
                        p.offsets == nullptr ? static_cast<unsigned>(p.groups) : 1u);
        launch_early(kernel, grid, kColumnsPerBlock * kWarp, 0, stream, p, table);
    };
    if (p.m == 1 || p.offsets != nullptr) {
        launch(few_rows_kernel<1>, 1);
    } else if (p.m == 2) {
        launch(few_rows_kernel<2>, 2);
    } else if (p.m <= 4) {
        launch(few_rows_kernel<4>, 4);
    } else {
        launch(few_rows_kernel<8>, 8);
    }
    check_launch(op);
}

}  // namespace fathom::cuda
