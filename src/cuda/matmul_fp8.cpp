// Products of bf16 in FP8 by the recipe of V3 (3.3.2): forward and dgrad of linear layers and experts. Activations and their
// gradients get a scale per row and 128 channels, weights one per 128 x 128 block, from the numbers of this very call; sums of
// 128 are promoted to f32. Gradients of weights are multiplied in bf16: they would need both operands turned and quantized
// along the tokens, which at the sizes measured costs what FP8 gains.
#include <algorithm>

#include "cuda/hopper_gemm.h"
#include "cuda/hopper_launch.h"
#include "cuda/quant.h"

namespace fathom::cuda {
namespace {

constexpr int64_t kNarrow = 128;  // a layer whose sides are shorter is mostly padding

bool aligned(const Tensor& x) { return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride[0] % 8 == 0; }

bool suits(const Where& where, const CodedCall& call) {
    constexpr size_t kMostGroups = 1024;
    if (!where.fp8 || call.w.empty() || call.w.size() > kMostGroups || call.x.dim(0) == 0 || !hopper::available()) return false;
    if (call.x.dtype != DType::kBF16 || call.y.dtype != DType::kBF16 || !aligned(call.x) || !aligned(call.y)) return false;
    const Tensor& first = call.w[0].codes;
    if (first.rank != 2 || std::min(first.dim(0), first.dim(1)) < kNarrow || first.dim(0) % 16 != 0 || first.dim(1) % 16 != 0)
        return false;
    return std::ranges::all_of(call.w, [&](const Weight& w) {
        return w.scheme == Scheme::kPlain && w.codes.dtype == DType::kBF16 && w.codes.rank == 2 &&
               w.codes.shape == first.shape && w.codes.stride[1] == 1 && aligned(w.codes);
    });
}

struct Quantized {
    uint8_t* codes;
    float* scales;
};

Quantized weights_of(const Where& where, const char* op, std::span<const Weight> w, bool transposed) {
    const int64_t rows = w[0].codes.dim(0), columns = w[0].codes.dim(1), count = static_cast<int64_t>(w.size());
    const int64_t blocks = ceil_div(rows, kFp8Block) * ceil_div(columns, kFp8Block);
    where.numbers.begin(count * (rows * columns + 4 * blocks));
    const Quantized q{where.numbers.take<uint8_t>(count * rows * columns), where.numbers.take<float>(count * blocks)};
    for (int64_t first = 0; first < count; first += kMaxGroups) {
        const int64_t some = std::min<int64_t>(count - first, kMaxGroups);
        GroupTable table{};
        for (int64_t g = 0; g < some; ++g) {
            const Tensor& one = w[static_cast<size_t>(first + g)].codes;
            table.matrix[g] = one.data;
            table.row[g] = one.stride[0];
        }
        quantize_weights(where.stream, op, q.codes + first * rows * columns, q.scales + first * blocks, table,
                         static_cast<int>(some), rows, columns, transposed);
    }
    return q;
}

}  // namespace

bool run_in_fp8(const Where& where, const char* op, ProductForm form, const CodedCall& call) {
    if (!suits(where, call)) return false;
    const bool forward = form == ProductForm::kForward;
    const Tensor& first = call.w[0].codes;
    hopper::GroupedGemm g;
    g.multiprocessors = where.multiprocessors;
    g.groups = static_cast<int64_t>(call.w.size());
    g.rows = call.x.dim(0);
    g.out = first.dim(forward ? 0 : 1);
    g.in = first.dim(forward ? 1 : 0);
    check(call.y.dim(0) == g.rows && call.y.dim(1) == g.out && call.x.dim(1) == g.in, "a product in FP8: shapes differ");
    g.offsets = call.offsets ? call.offsets.as<const int32_t>() : nullptr;
    g.x_row = g.w_row = g.in;
    g.y_row = call.y.stride[0];
    g.w_group = g.out * g.in;
    const Quantized w = weights_of(where, op, call.w, !forward);
    const int64_t scale_row = ceil_div(g.rows, 4) * 4, blocks = ceil_div(g.in, kFp8Block);
    where.workspace.begin(g.rows * g.in + 4 * scale_row * blocks);
    auto* const x = where.workspace.take<uint8_t>(g.rows * g.in);
    auto* const x_scales = where.workspace.take<float>(scale_row * blocks);
    quantize_activations(where.stream, op, x, x_scales, scale_row, call.x.data, call.x.stride[0], g.rows, g.in);
    const hopper::Fp8Scales scales{x_scales, scale_row, w.scales, blocks, ceil_div(g.out, kFp8Block) * blocks};
    hopper::grouped_matmul_fp8(call.y.data, x, w.codes, scales, g, where.stream);
    return true;
}

}  // namespace fathom::cuda
