// Codes as numbers, and activations as codes: what products of many rows need (quant.h). Bound by memory: expanding int4 to
// bf16 moves 2.5 bytes per number, quantizing activations 3.
#include "cuda/packed_loop.cuh"
#include "cuda/quant.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kLargest = 448;  // of e4m3

// kCount columns per thread, which have one scale.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) expand_kernel(T* to, const __grid_constant__ CodeFormat f,
                                                          const __grid_constant__ CodeTable table, const int32_t* offsets) {
    begin_early();
    const int matrix = static_cast<int>(blockIdx.y);
    if (offsets != nullptr && offsets[matrix] == offsets[matrix + 1]) return;
    const auto packs = static_cast<uint32_t>(f.columns / kCount), i = blockIdx.x * kThreads + threadIdx.x, row = i / packs;
    if (row >= f.rows) return;
    const uint32_t column = i % packs * kCount, group = column / static_cast<uint32_t>(f.group);
    const int64_t scale_row = f.kind == CodeKind::kFp8 ? (table.first_row[matrix] + row) / kFp8Block : row;
    const float scale = load(table.scales[matrix], f.scale_type, scale_row * f.scale_row + group);
    int zero = f.kind == CodeKind::kInt4 ? 8 : 0;
    if (f.has_zeros) zero = table.zeros[matrix][row * f.zero_row + group];
    const uint8_t* codes = table.codes[matrix] + row * f.code_row;
    float numbers[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        const uint32_t at = column + j;
        if (f.kind == CodeKind::kFp8) {
            numbers[j] = load(codes, DType::kF8E4M3, at) * scale;
        } else {
            const int code = f.kind == CodeKind::kInt4 ? (codes[at / 2] >> (at % 2 * 4)) & 15 : static_cast<int8_t>(codes[at]);
            numbers[j] = scale * static_cast<float>(code - zero);
        }
    }
    store_pack<kCount>(to + (matrix * f.rows + row) * f.columns + column, numbers);
}

template <class T>
void expand(cudaStream_t stream, T* to, const CodeFormat& f, const CodeTable& table, int groups, const int32_t* offsets) {
    constexpr int kCount = 8;
    const bool packed = f.columns % kCount == 0 && f.group % kCount == 0;
    check(ceil_div(f.columns, packed ? kCount : 1) * f.rows + kThreads < (int64_t{1} << 32), "a matrix is too large to expand");
    const dim3 grid(static_cast<unsigned>(ceil_div(f.rows * f.columns / (packed ? kCount : 1), kThreads)),
                    static_cast<unsigned>(groups));
    if (packed) {
        launch_early(expand_kernel<T, kCount>, grid, kThreads, 0, stream, to, f, table, offsets);
    } else {
        launch_early(expand_kernel<T, 1>, grid, kThreads, 0, stream, to, f, table, offsets);
    }
}

// A warp has 128 channels of a row, or what is left of it: a multiple of 4.
__global__ void __launch_bounds__(kThreads) quantize_kernel(uint8_t* q, float* scales, int64_t scale_row, const Bf16* x,
                                                            int64_t x_row, int64_t m, int64_t columns, int64_t blocks) {
    constexpr int kLane = static_cast<int>(kFp8Block) / kWarp;
    begin_early();
    const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
    if (i >= m * blocks) return;
    const int64_t row = i / blocks, block = i % blocks;
    const int64_t column = block * kFp8Block + static_cast<int64_t>(threadIdx.x) % kWarp * kLane;
    const bool inside = column < columns;
    float numbers[kLane]{};
    if (inside) load_pack<kLane>(numbers, x + row * x_row + column);
    float top = 0;
#pragma unroll
    for (const float number : numbers) top = fmaxf(top, fabsf(number));
    top = warp_max(top);
    const float up = top > 0 ? kLargest / top : 0;
    uchar4 codes;
    const auto code = [&](float number) { return __nv_cvt_float_to_fp8(number * up, __NV_SATFINITE, __NV_E4M3); };
    codes.x = code(numbers[0]), codes.y = code(numbers[1]), codes.z = code(numbers[2]), codes.w = code(numbers[3]);
    if (inside) *reinterpret_cast<uchar4*>(q + row * columns + column) = codes;
    if (threadIdx.x % kWarp == 0) scales[block * scale_row + row] = top / kLargest;
}

// A block has one 128 x 128 block of one matrix: read as it lies, turned in shared memory if need be.
template <bool kTransposed>
__global__ void __launch_bounds__(kThreads)
    quantize_weights_kernel(uint8_t* codes, float* scales, const __grid_constant__ GroupTable table, int64_t rows,
                            int64_t columns) {
    constexpr int kSide = static_cast<int>(kFp8Block), kPack = 8, kPacks = kSide / kPack, kEach = kSide * kPacks / kThreads;
    __shared__ uint8_t tile[kSide][kSide + 4];
    __shared__ float space[kThreads / kWarp];
    begin_early();
    const int64_t row0 = int64_t{blockIdx.y} * kSide, column0 = int64_t{blockIdx.x} * kSide, matrix = blockIdx.z;
    const auto* w = static_cast<const Bf16*>(table.matrix[matrix]);
    float numbers[kEach][kPack]{};
    float top = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        const int e = static_cast<int>(threadIdx.x) + i * kThreads;
        const int64_t row = row0 + e / kPacks, column = column0 + e % kPacks * kPack;
        if (row < rows && column < columns) load_pack<kPack>(numbers[i], w + row * table.row[matrix] + column);
#pragma unroll
        for (int j = 0; j < kPack; ++j) top = fmaxf(top, fabsf(numbers[i][j]));
    }
    top = block_max<kThreads>(top, space);
    const float up = top > 0 ? kLargest / top : 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        const int e = static_cast<int>(threadIdx.x) + i * kThreads, row = e / kPacks, column = e % kPacks * kPack;
#pragma unroll
        for (int j = 0; j < kPack; ++j) {
            const auto code = static_cast<uint8_t>(__nv_cvt_float_to_fp8(numbers[i][j] * up, __NV_SATFINITE, __NV_E4M3));
            (kTransposed ? tile[column + j][row] : tile[row][column + j]) = code;
        }
    }
    __syncthreads();
    const int64_t out_rows = kTransposed ? columns : rows, out_columns = kTransposed ? rows : columns;
    const int64_t to_row = kTransposed ? column0 : row0, to_column = kTransposed ? row0 : column0;
    for (int e = static_cast<int>(threadIdx.x); e < kSide * kSide / 4; e += kThreads) {
        const int r = e / (kSide / 4), c = e % (kSide / 4) * 4;
        if (to_row + r >= out_rows || to_column + c >= out_columns) continue;  // out_columns is a multiple of 8
        *reinterpret_cast<uint32_t*>(codes + (matrix * out_rows + to_row + r) * out_columns + to_column + c) =
            *reinterpret_cast<const uint32_t*>(&tile[r][c]);
    }
    const int64_t grid_columns = kTransposed ? gridDim.y : gridDim.x;
    const int64_t at =
        kTransposed ? int64_t{blockIdx.x} * grid_columns + blockIdx.y : int64_t{blockIdx.y} * grid_columns + blockIdx.x;
    if (threadIdx.x == 0) scales[matrix * gridDim.x * gridDim.y + at] = top / kLargest;
}

}  // namespace

void quantize_weights(cudaStream_t stream, const char* op, void* codes, float* scales, const GroupTable& table, int groups,
                      int64_t rows, int64_t columns, bool transposed) {
    if (groups == 0 || rows == 0 || columns == 0) return;
    const dim3 grid(static_cast<unsigned>(ceil_div(columns, kFp8Block)), static_cast<unsigned>(ceil_div(rows, kFp8Block)),
                    static_cast<unsigned>(groups));
    launch_early(transposed ? quantize_weights_kernel<true> : quantize_weights_kernel<false>, grid, kThreads, 0, stream,
                 static_cast<uint8_t*>(codes), scales, table, rows, columns);
    check_launch(op);
}

void expand_codes(cudaStream_t stream, const char* op, void* to, DType type, const CodeFormat& format, const CodeTable& table,
                  int groups, const int32_t* offsets) {
    if (groups == 0 || format.rows == 0 || format.columns == 0) return;
    if (type == DType::kF32) {
        expand(stream, static_cast<float*>(to), format, table, groups, offsets);
    } else {
        expand(stream, static_cast<Bf16*>(to), format, table, groups, offsets);
    }
    check_launch(op);
}

void quantize_activations(cudaStream_t stream, const char* op, void* q, float* scales, int64_t scale_row, const void* x,
                          int64_t x_row, int64_t m, int64_t columns) {
    const int64_t blocks = ceil_div(columns, kFp8Block);
    if (m == 0 || blocks == 0) return;
    launch_early(quantize_kernel, dim3(static_cast<unsigned>(ceil_div(m * blocks, kThreads / kWarp))), kThreads, 0, stream,
                 static_cast<uint8_t*>(q), scales, scale_row, static_cast<const Bf16*>(x), x_row, m, columns, blocks);
    check_launch(op);
}

}  // namespace fathom::cuda
