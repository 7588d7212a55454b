// One matrix product of the instruction set as the kernels see it: C[m, n] (+)= sum_k A[m, k] B[k, n].
//   forward  y  = x w^T      A = x,     B = w stored [n, k]
//   dgrad    dx = dy w       A = dy,    B = w stored [k, n]
//   wgrad    dw += dy^T x    A = dy^T,  B = x stored [k, n]
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/runtime.h"
#include "tensor/dtype.h"

namespace fathom::cuda {

enum class ProductForm : uint8_t { kForward, kDgrad, kWgrad };

// What a group of a product has of its own. A kernel gets the table as a parameter: nothing is copied to the device before it.
constexpr int kMaxGroups = 128;
struct GroupTable {
    void* matrix[kMaxGroups];  // the stored weight (forward, dgrad) or the gradient (wgrad)
    int64_t row[kMaxGroups];   // elements from one stored row to the next
};

struct Product {
    ProductForm form = ProductForm::kForward;
    const void* a = nullptr;
    DType a_type = DType::kF32;
    int64_t a_m = 0, a_k = 0;  // strides in elements
    const void* b = nullptr;   // wgrad only: x
    DType b_type = DType::kF32;
    int64_t b_row = 0;
    void* c = nullptr;  // not for wgrad
    DType c_type = DType::kF32;
    int64_t c_m = 0;  // c_n = 1
    int64_t m = 0, n = 0, k = 0;
    // Experts: rows [offsets[g], offsets[g + 1]) of A and C (wgrad: of A^T and B) belong to group g. Null: every group has all.
    const int32_t* offsets = nullptr;
    int groups = 1;
    int64_t a_group = 0, c_group = 0;  // heads: how far apart A and C of neighbouring groups are
    bool first = false;                // wgrad: = in place of +=
};

// Whether pieces of 16 bytes can be read of rows of bf16: where they begin, and elements from one row, and one group, to the
// next.
[[nodiscard]] inline bool aligned(const void* p, int64_t row, int64_t group = 0) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && row % 8 == 0 && group % 8 == 0;
}

// Where products run, and whether only the exact definition will do.
struct Where {
    cudaStream_t stream;
    Workspace& workspace;
    bool exact;             // activations are f32
    bool few;               // few rows may be added up in another order than many
    Workspace& numbers;     // weights in another form, for one product of `workspace`
    bool fp8;               // products of bf16 are multiplied in FP8
    bool constant_weights;  // nothing that is queued before writes to a weight, as in a recorded step
    int multiprocessors;    // that a large product may take; 0: all
};

// Chains of fused multiply-adds over ascending k in f32, any types: the exact definition of ops.h. With splits > 1 (wgrad
// without offsets) part i of the sum goes to partial[i] [m, n] instead.
void run_chain_product(cudaStream_t stream, const char* op, const Product& product, const GroupTable& table,
                       float* partial = nullptr, int splits = 1);

// dw += partial[0] + partial[1] + ..., in order; = where the product is the first.
void add_splits(cudaStream_t stream, const char* op, const Product& product, const GroupTable& table, const float* partial,
                int splits);

// The same on tensor cores, for what suits them: bf16 operands whose rows begin at multiples of 16 bytes.
[[nodiscard]] bool suits_tensor_cores(const Product& product, const GroupTable& table);
void run_tensor_product(cudaStream_t stream, const char* op, const Product& product, const GroupTable& table, float* partial,
                        int splits);

// y = x w^T (of heads also y = x w) of so few rows that reading the weights is all the work: bf16, f32 sums in an order of
// their own. Constant weights are read before the kernel ahead has ended.
[[nodiscard]] bool suits_few_rows(const Product& product, const GroupTable& table);
// `gated`: the product is [gate | up], and c [m, n / 2] becomes silu(gate) up of both rounded to bf16.
void run_few_rows(cudaStream_t stream, const char* op, const Product& product, const GroupTable& table, bool constant_weights,
                  bool gated = false);

// y = x w^T of few columns and no more than a few thousand rows: bf16, f32 sums in an order of their own.
[[nodiscard]] bool suits_few_columns(const Product& product, const GroupTable& table);
void run_few_columns(cudaStream_t stream, const char* op, const Product& product, const GroupTable& table,
                     bool constant_weights);

// Operands in f32 as two of bf16: x = high + low, to 2^-17 of x. halves [rows, 2 width] = [high | low].
void split_in_halves(cudaStream_t stream, const char* op, void* halves, const float* x, int64_t x_row, int64_t rows,
                     int64_t width);
// to [2 rows, width] = [from; from], bf16.
void repeat_matrix(cudaStream_t stream, const char* op, void* to, const void* from, int64_t from_row, int64_t rows,
                   int64_t width);

// The same on Hopper's tensor cores (hopper_gemm.h), for what suits them: besides, widths are multiples of 8 and not narrow,
// and the groups' matrices lie at equal distances. Rows do not matter, so that neither does a row's batch.
[[nodiscard]] bool suits_hopper(const Product& product, const GroupTable& table);
// silu(gate) up of a forward product [gate | up] that suits_hopper, into y [m, n / 2] bf16; c is not written. False, with
// nothing done, where that is not the faster way.
[[nodiscard]] bool run_hopper_gated(const Where& where, const Product& product, const GroupTable& table, void* y,
                                    int64_t y_row);
// Into how many parts such a wgrad without offsets cuts its sum, from the shape alone.
[[nodiscard]] int hopper_splits(const Product& product);
void run_hopper_product(const Where& where, const Product& product, const GroupTable& table, float* partial, int splits);

}  // namespace fathom::cuda
