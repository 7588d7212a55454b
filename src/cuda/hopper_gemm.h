// Grouped matrix products in bf16 with f32 sums on Hopper's tensor cores (sm_90a). A dense product is one group.
//
// Groups: either rows [offsets[g], offsets[g + 1]) of x, y belong to group g (`offsets` [groups + 1] i32 lies on the device and
// is never read by the host; groups may be empty; rows from offsets[groups] on are neither read into a result nor written), or,
// with offsets = nullptr, every group has all `rows` rows and lies `*_group` elements from the one before (a batched product
// over heads; one group is a dense product). Every element is one sum in a fixed order over the summed index, whatever the rows
// around it: runs repeat byte for byte and a row's bits do not depend on the batch (wgrad: on the batch's order only). Nothing
// synchronises with the host. All matrices bf16 and contiguous along their last dimension unless said otherwise; addresses and
// row distances are multiples of 16 bytes (bf16: 8 elements). Errors: LogicError for shapes, Error(kDevice) for what CUDA
// refuses.
//
// wgrad may also cut one product along its rows (`group_rows`), so that a small gradient keeps the whole GPU busy: each part is
// a group with a result of its own, to be added up in order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fathom::hopper {

struct GroupedGemm {
    int64_t groups = 1;
    int64_t rows = 0;         // rows of x and y that exist (at least offsets[groups])
    int64_t out = 0, in = 0;  // w is [out, in]
    const int32_t* offsets = nullptr;
    int64_t x_row = 0, y_row = 0, w_row = 0;        // elements from one row to the next of x (dx), y (dy) and w (dw)
    int64_t x_group = 0, y_group = 0, w_group = 0;  // elements from one group to the next; x, y only without offsets
    int64_t group_rows =
        0;  // wgrad without offsets, if not 0: group g has rows [g group_rows, (g + 1) group_rows) below `rows`
    int multiprocessors = 0;  // that the product may take; 0: all
};

enum class Output { kBf16, kF32 };

// y = x w[g]^T: y [rows, out] (bf16 or f32), x [rows, in], w [groups][out, in].
void grouped_matmul(void* y, Output type, const void* x, const void* w, const GroupedGemm& g, cudaStream_t stream);
// y = silu(x gate[g]^T) (x up[g]^T): y [rows, out / 2] bf16, w [groups][gate; up]; y_row is y's. Both products are rounded to
// bf16, so that the bits are those of grouped_matmul() and silu(gate) up after it.
void gated_matmul(void* y, const void* x, const void* w, const GroupedGemm& g, cudaStream_t stream);
// Whether that is the tile which grouped_matmul() would choose.
[[nodiscard]] bool prefers_gated(const GroupedGemm& g);
// dx = dy w[g]: dx [rows, in] (bf16 or f32), dy [rows, out], w [groups][out, in].
void grouped_dgrad(void* dx, Output type, const void* dy, const void* w, const GroupedGemm& g, cudaStream_t stream);
// dw[g] += dy^T x over the group's rows: dw [groups][out, in] f32, dy [rows, out], x [rows, in]. Without `accumulate` = takes
// the place of +=, and groups without rows become 0.
void grouped_wgrad(float* dw, const void* dy, const void* x, const GroupedGemm& g, bool accumulate, cudaStream_t stream);

// The same product in FP8 by the V3 recipe (V3 3.3): x, w are e4m3 codes with f32 factors, of x per row and 128 channels, of w
// per 128 x 128 block; products of 128 channels are summed by the tensor cores and then added up in f32. y = (x x_scale) (w
// w_scale)^T, bf16. `in`, x_row and w_row are multiples of 16.
struct Fp8Scales {
    const float* x = nullptr;  // [ceil(in / 128), x_row]: x_row >= rows, a multiple of 4
    int64_t x_row = 0;
    const float* w = nullptr;        // [groups, ceil(out / 128), in / 128]
    int64_t w_row = 0, w_group = 0;  // elements from one row of blocks, and from one group, to the next
};
void grouped_matmul_fp8(void* y, const void* x, const void* w, const Fp8Scales& scales, const GroupedGemm& g,
                        cudaStream_t stream);

}  // namespace fathom::hopper
