// Products with weights of few bits as their kernels see them: y = x w^T, w = scale (code - zero) in groups of columns (int4,
// int8), or e4m3 codes with a scale per 128 x 128 block.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <span>

#include "cuda/products.h"
#include "cuda/runtime.h"
#include "tensor/tensor.h"

namespace fathom::cuda {

enum class CodeKind : uint8_t { kInt4, kInt8, kFp8 };

// What all matrices of a call have in common.
struct CodeFormat {
    CodeKind kind = CodeKind::kInt4;
    int64_t rows = 0, columns = 0;
    int64_t code_row = 0;   // bytes from one stored row to the next
    int64_t scale_row = 0;  // elements; FP8: from one row of blocks to the next
    int64_t zero_row = 0;   // bytes
    int64_t group = 0;      // columns per scale
    DType scale_type = DType::kF32;
    bool has_zeros = false;

    bool operator==(const CodeFormat&) const = default;
};

// What each of them has of its own. Kernels get the table as a parameter.
constexpr int kMaxCoded = 128;
struct CodeTable {
    const uint8_t* codes[kMaxCoded];
    const void* scales[kMaxCoded];
    const uint8_t* zeros[kMaxCoded];
    int32_t first_row[kMaxCoded];  // FP8: where the matrix begins in the grid of scales
};

// Of a weight of the scheme kGroups or kFp8Block. LogicError naming `op` where it is not what its scheme says.
[[nodiscard]] CodeFormat code_format(const Weight& w, const char* op);
[[nodiscard]] CodeTable code_table(std::span<const Weight> w);  // at most kMaxCoded

// ---- which kernels take a product (matmul_quant.cpp) ----
// A call of the instruction set: y = x w^T or, for a product by the transpose, another form of the same groups.
struct CodedCall {
    Tensor y, x;  // of rank 2, or 3 for heads
    std::span<const Weight> w;
    Tensor offsets;  // [w.size() + 1], for experts; else absent
};
// Whether weights are of the schemes above.
[[nodiscard]] bool is_coded(std::span<const Weight> w);
// y = x w^T, if kernels of this file or the Hopper FP8 product can; false with nothing done.
[[nodiscard]] bool run_coded(const Where& where, const char* op, const CodedCall& call);
// The same for plain bf16 weights where the back end was asked to multiply in FP8 (matmul_fp8.cpp): y = x w^T, or for kDgrad
// y = x w. Weights and activations are quantized on the way.
[[nodiscard]] bool run_in_fp8(const Where& where, const char* op, ProductForm form, const CodedCall& call);
// Calls `multiply` with parts of the call (experts, heads) whose weights are plain: the codes' numbers, in where.numbers.
void with_numbers(const Where& where, const char* op, const CodedCall& call,
                  const std::function<void(const CodedCall& part)>& multiply);

// ---- few rows ----
// Rows [offsets[g], offsets[g + 1]) of x and y belong to matrix g; without offsets every matrix has all m rows, of x and y
// x_group and y_group elements apart.
struct CodedProduct {
    CodeFormat format;
    const void* x = nullptr;  // bf16 [m, columns]
    int64_t x_row = 0, x_group = 0;
    void* y = nullptr;  // f32 or bf16 [m, rows]
    DType y_type = DType::kBF16;
    int64_t y_row = 0, y_group = 0;
    int64_t m = 0;
    const int32_t* offsets = nullptr;
    int groups = 1;
};

// Whether run_coded_rows can: whole chunks of columns, and everything at multiples of the bytes it is read by.
[[nodiscard]] bool suits_coded_rows(const CodedProduct& product, const CodeTable& table);
// Codes, scales and zero points must not be what the kernel before this one in the stream writes: they are read before it ends.
// y = x w^T with exact codes: sums of codes and bf16 in f32 per group, times the scale, added up in f32. An element's bits
// depend on its row of x and on the matrix, on nothing else.
void run_coded_rows(cudaStream_t stream, const char* op, const CodedProduct& product, const CodeTable& table);

// ---- many rows ----
// to[g] [rows, columns] = the numbers of matrix g, rounded to `type` (f32 or bf16), one after the other. With offsets, those
// of matrices without rows are left alone.
void expand_codes(cudaStream_t stream, const char* op, void* to, DType type, const CodeFormat& format, const CodeTable& table,
                  int groups, const int32_t* offsets);

// Activations in FP8 (V3 3.3.2): q [m, columns] e4m3, columns a multiple of 4; scales [ceil(columns / 128), scale_row] f32
// with scale_row >= m: a row's largest |x| of 128 columns becomes 448. x bf16.
void quantize_activations(cudaStream_t stream, const char* op, void* q, float* scales, int64_t scale_row, const void* x,
                          int64_t x_row, int64_t m, int64_t columns);

// Weights in FP8: codes[g] [rows, columns] e4m3, or [columns, rows] if `transposed`, one after the other, with f32 scales of
// 128 x 128 blocks [ceil(rows / 128), ceil(columns / 128)], or transposed too: a block's largest |w| becomes 448. The table's
// matrices: bf16 [rows, columns], columns a multiple of 8.
void quantize_weights(cudaStream_t stream, const char* op, void* codes, float* scales, const GroupTable& table, int groups,
                      int64_t rows, int64_t columns, bool transposed);

}  // namespace fathom::cuda
