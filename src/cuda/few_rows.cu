// Products of one to eight rows with weights, y = x w^T (its SwiGLU, and y = x w of heads): bound by reading the weights once.
// A warp has one column of the result: its lanes read 16 bytes each of the weight's row, neighbours side by side, several such
// pieces ahead, and of the rows of x, which stay in L1. Experts: one row of the result at a time, whose expert is found in the
// offsets; weights that several rows share come from L2. 2 m n k FLOP; bytes 2 n k per matrix.
#include "cuda/device.cuh"
#include "cuda/products.h"
#include "cuda/swiglu.cuh"

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

__device__ __forceinline__ void bring_to_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// The group that a row of sorted rows belongs to; -1 behind the last. By a warp.
__device__ int group_of(const int32_t* offsets, int groups, int64_t row) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int base = 0; base < groups; base += kWarp) {
        const unsigned behind = __ballot_sync(kAll, base + lane < groups && row < offsets[base + lane + 1]);
        if (behind != 0) return base + __ffs(static_cast<int>(behind)) - 1;
    }
    return -1;
}

// kRows rows of x at a time, from row blockIdx.y * kRows on; kGated: of w = [gate; up] a column of each, whose silu(gate) up is
// the result. A lane asks for kHeld pieces of the weight's row at once: of a dense product before the kernel ahead has ended,
// where nothing writes weights (`constant`), so that they arrive while it runs.
template <int kRows, bool kGated>
__global__ void __launch_bounds__(kColumnsPerBlock* kWarp)
    few_rows_kernel(const __grid_constant__ Product p, const __grid_constant__ GroupTable table, bool constant) {
    constexpr int kHeld = 4, kStep = kWarp * kPiece, kColumns = kGated ? 2 : 1;
    const bool early = constant && p.offsets == nullptr;
    if (!early) begin_early();
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnsPerBlock + threadIdx.x / kWarp, columns = p.n / kColumns;
    const int64_t first = static_cast<int64_t>(blockIdx.y) * kRows;
    int group = static_cast<int>(blockIdx.z);
    if (p.offsets != nullptr) group = group_of(p.offsets, p.groups, first);
    const bool none = column >= columns || group < 0 || (p.offsets != nullptr && first < p.offsets[0]);
    uint4 held[kColumns][kHeld];
    const Bf16* w[kColumns]{};
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
        if (!none) w[j] = static_cast<const Bf16*>(table.matrix[group]) + (column + j * columns) * table.row[group];
    const auto hold = [&](int64_t k) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
#pragma unroll
            for (int i = 0; i < kHeld; ++i)
                if (k + i * kStep < p.k) held[j][i] = __ldg(reinterpret_cast<const uint4*>(w[j] + k + i * kStep));
    };
    int64_t k = lane * kPiece;
    if (!none) hold(k);
    if (early) {
        for (int64_t at = k + kHeld * kStep; at < p.k && !none; at += kStep)
#pragma unroll
            for (int j = 0; j < kColumns; ++j) bring_to_l2(w[j] + at);
        begin_early();
    }
    if (none) return;
    const int64_t apart = p.offsets == nullptr ? group : 0;
    const auto* x = static_cast<const Bf16*>(p.a) + apart * p.a_group + first * p.a_m;
    float sum[kRows][kColumns]{};
    while (k < p.k) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const int64_t at = k + i * kStep;
            if (at >= p.k) continue;
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                if (first + r >= p.m) continue;
                const uint4 piece = *reinterpret_cast<const uint4*>(x + r * p.a_m + at);
#pragma unroll
                for (int j = 0; j < kColumns; ++j) multiply_add(sum[r][j], piece, held[j][i]);
            }
        }
        k += kHeld * kStep;
        hold(k);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sum[r][j] = warp_sum(sum[r][j]);
        if (lane != r || first + r >= p.m) continue;
        const float value = kGated ? swiglu_of_sums(sum[r][0], sum[r][kColumns - 1]) : sum[r][0];
        store(p.c, p.c_type, apart * p.c_group + (first + r) * p.c_m + column, value);
    }
}

// y = x w of heads, w stored [k, n]: absorbed queries. A block has 64 columns of one head and all rows of x, eight neighbouring
// columns and every 32nd k a thread; the 32 sums of a column are added in order.
constexpr int kSpanColumns = 64, kSlots = kColumnsPerBlock * kWarp / (kSpanColumns / kPiece);

template <int kRows>
__global__ void __launch_bounds__(kColumnsPerBlock* kWarp)
    few_rows_across_kernel(const __grid_constant__ Product p, const __grid_constant__ GroupTable table, bool constant) {
    constexpr int kHeld = 4;
    if (!constant) begin_early();
    __shared__ float sums[kSlots][kSpanColumns + 1];
    const int thread = static_cast<int>(threadIdx.x), slot = thread / (kSpanColumns / kPiece);
    const int in_span = thread % (kSpanColumns / kPiece) * kPiece;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kSpanColumns + in_span;
    const int64_t first = static_cast<int64_t>(blockIdx.y) * kRows, group = blockIdx.z;
    const auto* w = static_cast<const Bf16*>(table.matrix[group]) + column;
    const int64_t row = table.row[group];
    uint4 held[kHeld];
    const auto hold = [&](int64_t k) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
            if (k + i * kSlots < p.k && column < p.n)
                held[i] = __ldg(reinterpret_cast<const uint4*>(w + (k + i * kSlots) * row));
    };
    hold(slot);
    if (constant) begin_early();
    const auto* x = static_cast<const Bf16*>(p.a) + group * p.a_group + first * p.a_m;
    float sum[kRows][kPiece]{};
    for (int64_t k = slot; k < p.k && column < p.n; k += kHeld * kSlots) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const int64_t at = k + i * kSlots;
            if (at >= p.k) continue;
            const auto* const pairs = reinterpret_cast<const __nv_bfloat162*>(&held[i]);
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                if (first + r >= p.m) continue;
                const float left = widen(x[r * p.a_m + at]);
#pragma unroll
                for (int j = 0; j < kPiece / 2; ++j) {
                    const float2 right = __bfloat1622float2(pairs[j]);
                    sum[r][2 * j] = fmaf(left, right.x, sum[r][2 * j]);
                    sum[r][2 * j + 1] = fmaf(left, right.y, sum[r][2 * j + 1]);
                }
            }
        }
        hold(k + kHeld * kSlots);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < kPiece; ++j) sums[slot][in_span + j] = sum[r][j];
        __syncthreads();
        const int64_t out = static_cast<int64_t>(blockIdx.x) * kSpanColumns + thread;
        if (thread >= kSpanColumns || out >= p.n || first + r >= p.m) continue;
        float total = 0;
        for (const auto& part : sums) total += part[thread];
        store(p.c, p.c_type, group * p.c_group + (first + r) * p.c_m + out, total);
    }
}

}  // namespace

bool suits_few_rows(const Product& p, const GroupTable& table) {
    const bool across = p.form == ProductForm::kDgrad && p.offsets == nullptr;  // columns lie side by side
    if ((p.form != ProductForm::kForward && !across) || p.a_type != DType::kBF16 || p.b_type != DType::kBF16) return false;
    if (p.m > (p.offsets == nullptr ? kMostRows : kMostExpertRows) || (across ? p.n : p.k) % kPiece != 0) return false;
    bool all = across || aligned(p.a, p.a_m, p.a_group);
    for (int g = 0; g < p.groups; ++g) all = all && aligned(table.matrix[g], table.row[g]);
    return all;
}

void run_few_rows(cudaStream_t stream, const char* op, const Product& p, const GroupTable& table, bool constant_weights,
                  bool gated) {
    if (p.m == 0 || p.n == 0) return;
    const bool across = p.form == ProductForm::kDgrad;
    const int64_t columns = gated ? p.n / 2 : p.n;
    const auto launch = [&](auto kernel, int64_t rows) {
        const dim3 grid(static_cast<unsigned>(ceil_div(columns, across ? kSpanColumns : kColumnsPerBlock)),
                        static_cast<unsigned>(ceil_div(p.m, rows)),
                        p.offsets == nullptr ? static_cast<unsigned>(p.groups) : 1u);
        launch_early(kernel, grid, kColumnsPerBlock * kWarp, 0, stream, p, table, constant_weights);
    };
    if (across) {
        p.m == 1 ? launch(few_rows_across_kernel<1>, 1) : launch(few_rows_across_kernel<4>, 4);
    } else if (p.m == 1 || p.offsets != nullptr) {
        launch(gated ? few_rows_kernel<1, true> : few_rows_kernel<1, false>, 1);
    } else if (p.m == 2) {
        launch(gated ? few_rows_kernel<2, true> : few_rows_kernel<2, false>, 2);
    } else if (p.m <= 4) {
        launch(gated ? few_rows_kernel<4, true> : few_rows_kernel<4, false>, 4);
    } else {
        launch(gated ? few_rows_kernel<8, true> : few_rows_kernel<8, false>, 8);
    }
    check_launch(op);
}

}  // namespace fathom::cuda
