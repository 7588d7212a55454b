// Products of few columns, y = x w^T: a router's. Tiles for large products would be so few that most of the card waits for
// them. A block has 16 rows and 32 columns; its warps share out the channels, 32 at a time, and their sums are added in order.
// The tensor cores do not care which channel is which as long as both operands agree, so a lane reads 16 bytes of its rows at
// once. 2 m n k FLOP; x and w are read from L2.
#include "cuda/mma.cuh"
#include "cuda/products.h"

namespace fathom::cuda {
namespace {

constexpr int kRows = 16, kColumns = 32, kWarps = 8, kChunk = 32, kPiece = 8;  // kPiece: bf16 in 16 bytes
constexpr int64_t kMostRows = 2048, kMostColumns = 256;

__global__ void __launch_bounds__(kWarps* kWarp)
    few_columns_kernel(const __grid_constant__ Product p, const Bf16* w, int64_t w_row, bool constant) {
    constexpr int kHeld = 8, kTiles = kColumns / 8;
    __shared__ float sums[kWarps][kRows][kColumns + 4];
    if (!constant) wait_for_earlier();
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows, first_column = static_cast<int64_t>(blockIdx.y) * kColumns;
    const int64_t chunks = p.k / kChunk, at = lane % 4 * kPiece;
    // Of w alone, which nothing writes meanwhile, through the read-only cache: the kernel ahead may still be writing x.
    const auto piece = [&](const Bf16* row, int64_t chunk) {
        return reinterpret_cast<const uint4*>(row + chunk * kChunk + at);
    };
    const uint4 zeros = make_uint4(0, 0, 0, 0);
    uint4 held[kHeld][kTiles];
    const auto hold = [&](int64_t chunk) {
#pragma unroll
        for (int h = 0; h < kHeld; ++h)
#pragma unroll
            for (int j = 0; j < kTiles; ++j) {
                const int64_t column = first_column + 8 * j + lane / 4, from = chunk + h * kWarps;
                held[h][j] = column < p.n && from < chunks ? __ldg(piece(w + column * w_row, from)) : zeros;
            }
    };
    hold(warp);
    if (constant) wait_for_earlier();
    const auto* const x = static_cast<const Bf16*>(p.a);
    float sum[kTiles][4]{};
    for (int64_t chunk = warp; chunk < chunks; chunk += kHeld * kWarps) {
        uint4 rows[kHeld][2];
#pragma unroll
        for (int h = 0; h < kHeld; ++h)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int64_t row = first + 8 * half + lane / 4, from = chunk + h * kWarps;
                rows[h][half] = row < p.m && from < chunks ? *piece(x + row * p.a_m, from) : zeros;
            }
#pragma unroll
        for (int h = 0; h < kHeld; ++h) {
            const uint4 &high = rows[h][0], &low = rows[h][1];
#pragma unroll
            for (int j = 0; j < kTiles; ++j) {
                multiply_add(sum[j], {high.x, low.x, high.y, low.y}, held[h][j].x, held[h][j].y);
                multiply_add(sum[j], {high.z, low.z, high.w, low.w}, held[h][j].z, held[h][j].w);
            }
        }
        hold(chunk + kHeld * kWarps);
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[warp][lane / 4 + i / 2 * 8][8 * j + lane % 4 * 2 + i % 2] = sum[j][i];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += kWarps * kWarp) {
        const int row = i / kColumns, column = i % kColumns;
        if (first + row >= p.m || first_column + column >= p.n) continue;
        float total = 0;
#pragma unroll
        for (const auto& part : sums) total += part[row][column];
        store(p.c, p.c_type, (first + row) * p.c_m + first_column + column, total);
    }
    let_next_begin();  // not earlier: its blocks would hold room that the other stream can use
}

}  // namespace

bool suits_few_columns(const Product& p, const GroupTable& table) {
    return p.form == ProductForm::kForward && p.offsets == nullptr && p.groups == 1 && p.a_type == DType::kBF16 &&
           p.b_type == DType::kBF16 && p.m <= kMostRows && p.n <= kMostColumns && p.k % kChunk == 0 && aligned(p.a, p.a_m) &&
           aligned(table.matrix[0], table.row[0]);
}

void run_few_columns(cudaStream_t stream, const char* op, const Product& p, const GroupTable& table, bool constant_weights) {
    if (p.m == 0 || p.n == 0) return;
    const dim3 grid(static_cast<unsigned>(ceil_div(p.m, kRows)), static_cast<unsigned>(ceil_div(p.n, kColumns)));
    launch_early(few_columns_kernel, grid, kWarps * kWarp, 0, stream, p, static_cast<const Bf16*>(table.matrix[0]),
                 table.row[0], constant_weights);
    check_launch(op);
}

}  // namespace fathom::cuda
