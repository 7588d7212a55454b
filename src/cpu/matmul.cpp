// The matrix products of the instruction set, all put as C (+)= A B (cpu/gemm.h):
//   forward  y  = x w^T      A = x,     B = w stored [n, k]
//   dgrad    dx = dy w       A = dy,    B = w stored [k, n]
//   wgrad    dw += dy^T x    A = dy^T,  B = x stored [k, n]
#include <fmt/format.h>

#include "cpu/cpu_ops.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/quant_matmul.h"
#include "cpu/quant_panel.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {
namespace {

enum class Form : uint8_t { kForward, kDgrad };

void check_activation(const Tensor& x, int rank, std::string_view what) {
    require(x.rank == rank && x.dtype == DType::kF32,
            [&] { return fmt::format("{}: {} is not an F32 tensor of rank {}", what, x.describe(), rank); });
    require(x.dim(-1) <= 1 || x.stride[static_cast<size_t>(rank - 1)] == 1,
            [&] { return fmt::format("{}: the last dimension is not contiguous", what); });
}

GemmMatrix stored(const Weight& w, Form form, std::string_view what) {
    const Tensor& codes = w.codes;
    const bool known = codes.dtype == DType::kF32 || codes.dtype == DType::kBF16 || codes.dtype == DType::kF16;
    const bool fp8 = codes.dtype == DType::kF8E4M3 && w.scheme == Scheme::kFp8Block;
    const bool panels = is_number_panels(w) && form == Form::kForward;
    require(codes.rank == 2 && (fp8 || (known && (panels || w.scheme == Scheme::kPlain))),
            [&] { return fmt::format("{}: a weight {}", what, codes.describe()); });
    require(codes.dim(1) <= 1 || codes.stride[1] == 1,
            [&] { return fmt::format("{}: the weight's rows are not contiguous", what); });
    GemmMatrix b{codes.data, codes.dtype, codes.stride[0], form == Form::kForward};
    b.panels = panels;
    if (!fp8) return b;
    const auto blocks = [](int64_t size) { return (size + kFp8Block - 1) / kFp8Block; };
    require(w.scales.rank == 2 && w.scales.dtype == DType::kF32 && w.scales.dim(0) >= blocks(w.row0 + codes.dim(0)) &&
                w.scales.dim(1) >= blocks(codes.dim(1)),
            [&] {
                return fmt::format("{}: scales {} of codes {} from row {}", what, w.scales.describe(), codes.describe(),
                                   w.row0);
            });
    b.scales = w.scales.as<const float>();
    b.scales_stride = w.scales.stride[0];
    b.row0 = w.row0;
    return b;
}

// c = a w^T (forward) or a w (dgrad), rows [begin, end) of c and a.
GemmProduct product(const Tensor& c, const Tensor& a, const Weight& w, Form form, int64_t begin, int64_t end,
                    std::string_view what) {
    GemmProduct p;
    p.b = stored(w, form, what);
    p.n = form == Form::kForward ? w.out_features() : w.in_features();
    p.k = form == Form::kForward ? w.in_features() : w.out_features();
    require(0 <= begin && begin <= end && end <= c.dim(0) && c.dim(0) == a.dim(0) && c.dim(1) == p.n && a.dim(1) == p.k, [&] {
        return fmt::format("{}: {} from {} and weight {}, rows {} to {}", what, c.describe(), a.describe(), w.codes.describe(),
                           begin, end);
    });
    p.m = end - begin;
    p.c = c.as<float>() + begin * c.stride[0];
    p.c_row = c.stride[0];
    p.a = a.as<const float>() + begin * a.stride[0];
    p.a_row = a.stride[0];
    return p;
}

// dw += dy^T x over rows [begin, end).
GemmProduct wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x, int64_t begin, int64_t end, std::string_view what) {
    check_activation(dw, 2, what);
    require(0 <= begin && begin <= end && end <= dy.dim(0) && x.dim(0) == dy.dim(0) && dw.dim(0) == dy.dim(1) &&
                dw.dim(1) == x.dim(1),
            [&] {
                return fmt::format("{}: {} from {} and {}, rows {} to {}", what, dw.describe(), dy.describe(), x.describe(),
                                   begin, end);
            });
    GemmProduct p;
    p.c = dw.as<float>();
    p.c_row = dw.stride[0];
    p.a = dy.as<const float>() + begin * dy.stride[0];
    p.a_row = 1;
    p.a_k = dy.stride[0];
    p.b = {x.as<const float>() + begin * x.stride[0], DType::kF32, x.stride[0]};
    p.m = dw.dim(0);
    p.n = dw.dim(1);
    p.k = end - begin;
    p.accumulate = true;
    return p;
}

// [n, h, d] -> head j as [n, d].
Tensor head(const Tensor& x, int64_t j) {
    Tensor result = x.slice(1, j, j + 1);
    result.rank = 2;
    result.shape[1] = x.shape[2];
    result.stride[1] = x.stride[2];
    return result;
}

std::span<const int32_t> checked_offsets(const Tensor& offsets, size_t experts, const Tensor& rows, std::string_view what) {
    require(offsets.rank == 1 && offsets.dtype == DType::kI32 && offsets.contiguous() &&
                offsets.dim(0) == static_cast<int64_t>(experts) + 1,
            [&] { return fmt::format("{}: offsets {} for {} experts", what, offsets.describe(), experts); });
    const std::span result(offsets.as<const int32_t>(), experts + 1);
    require(result.front() == 0 && result.back() == rows.dim(0),
            [&] { return fmt::format("{}: offsets do not cover the rows", what); });
    return result;
}

std::vector<GemmProduct> grouped(const Tensor& c, const Tensor& a, std::span<const Weight> w, const Tensor& offsets, Form form,
                                 std::string_view what) {
    check_activation(c, 2, what);
    check_activation(a, 2, what);
    const auto starts = checked_offsets(offsets, w.size(), c, what);
    std::vector<GemmProduct> products;
    for (size_t e = 0; e < w.size(); ++e)
        if (starts[e] != starts[e + 1]) products.push_back(product(c, a, w[e], form, starts[e], starts[e + 1], what));
    return products;
}

std::vector<GemmProduct> batched(const Tensor& c, const Tensor& a, std::span<const Weight> w, Form form,
                                 std::string_view what) {
    check_activation(c, 3, what);
    check_activation(a, 3, what);
    const auto heads = static_cast<int64_t>(w.size());
    require(c.dim(1) == heads && a.dim(1) == heads,
            [&] { return fmt::format("{}: {} from {} for {} heads", what, c.describe(), a.describe(), heads); });
    std::vector<GemmProduct> products;
    for (int64_t j = 0; j < heads; ++j)
        products.push_back(product(head(c, j), head(a, j), w[static_cast<size_t>(j)], form, 0, c.dim(0), what));
    return products;
}

void check_quantized(const QuantProduct& p, QuantForm form, std::string_view what) {
    const bool forward = form == QuantForm::kForward;
    require(p.c.dim(0) == p.a.dim(0) && p.c.dim(1) == (forward ? p.w.out_features() : p.w.in_features()) &&
                p.a.dim(1) == (forward ? p.w.in_features() : p.w.out_features()) && p.w.codes.stride[1] == 1,
            [&] {
                return fmt::format("{}: {} from {} and quantized weight [{}, {}]", what, p.c.describe(), p.a.describe(),
                                   p.w.out_features(), p.w.in_features());
            });
}

// The groups' or heads' products when their weights are quantized, else none. Weights of one call are all quantized or all not.
std::vector<QuantProduct> quantized_groups(const Tensor& c, const Tensor& a, std::span<const Weight> w, const Tensor& offsets,
                                           QuantForm form, std::string_view what) {
    std::vector<QuantProduct> products;
    if (w.empty() || !is_quantized(w[0], form)) return products;
    check_activation(c, 2, what);
    check_activation(a, 2, what);
    const auto starts = checked_offsets(offsets, w.size(), c, what);
    for (size_t e = 0; e < w.size(); ++e) {
        products.push_back({c.slice(0, starts[e], starts[e + 1]), a.slice(0, starts[e], starts[e + 1]), w[e]});
        check_quantized(products.back(), form, what);
    }
    return products;
}

std::vector<QuantProduct> quantized_heads(const Tensor& c, const Tensor& a, std::span<const Weight> w, QuantForm form,
                                          std::string_view what) {
    std::vector<QuantProduct> products;
    if (w.empty() || !is_quantized(w[0], form)) return products;
    check_activation(c, 3, what);
    check_activation(a, 3, what);
    for (size_t j = 0; j < w.size(); ++j) {
        products.push_back({head(c, static_cast<int64_t>(j)), head(a, static_cast<int64_t>(j)), w[j]});
        check_quantized(products.back(), form, what);
    }
    return products;
}

}  // namespace

void CpuOps::matmul(const Tensor& y, const Tensor& x, const Weight& w) {
    check_activation(y, 2, "matmul");
    check_activation(x, 2, "matmul");
    if (is_quantized(w, QuantForm::kForward)) {
        const QuantProduct p{y, x, w};
        check_quantized(p, QuantForm::kForward, "matmul");
        return multiply_quantized({&p, 1}, QuantForm::kForward, pool_, isa_, scratch_);
    }
    run_gemm({{product(y, x, w, Form::kForward, 0, y.dim(0), "matmul")}}, pool_, isa_, scratch_);
}

void CpuOps::matmul_dgrad(const Tensor& dx, const Tensor& dy, const Weight& w) {
    check_activation(dx, 2, "matmul_dgrad");
    check_activation(dy, 2, "matmul_dgrad");
    if (is_quantized(w, QuantForm::kDgrad)) {
        const QuantProduct p{dx, dy, w};
        check_quantized(p, QuantForm::kDgrad, "matmul_dgrad");
        return multiply_quantized({&p, 1}, QuantForm::kDgrad, pool_, isa_, scratch_);
    }
    run_gemm({{product(dx, dy, w, Form::kDgrad, 0, dx.dim(0), "matmul_dgrad")}}, pool_, isa_, scratch_);
}

void CpuOps::matmul_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) {
    check_activation(dy, 2, "matmul_wgrad");
    check_activation(x, 2, "matmul_wgrad");
    run_gemm({{wgrad(dw, dy, x, 0, dy.dim(0), "matmul_wgrad")}}, pool_, isa_, scratch_);
}

void CpuOps::grouped_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w, const Tensor& offsets) {
    if (const auto products = quantized_groups(y, x, w, offsets, QuantForm::kForward, "grouped_matmul"); !products.empty())
        return multiply_quantized(products, QuantForm::kForward, pool_, isa_, scratch_);
    run_gemm(grouped(y, x, w, offsets, Form::kForward, "grouped_matmul"), pool_, isa_, scratch_);
}

void CpuOps::grouped_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w, const Tensor& offsets) {
    if (const auto products = quantized_groups(dx, dy, w, offsets, QuantForm::kDgrad, "grouped_dgrad"); !products.empty())
        return multiply_quantized(products, QuantForm::kDgrad, pool_, isa_, scratch_);
    run_gemm(grouped(dx, dy, w, offsets, Form::kDgrad, "grouped_dgrad"), pool_, isa_, scratch_);
}

void CpuOps::grouped_wgrad(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, const Tensor& offsets) {
    check_activation(dy, 2, "grouped_wgrad");
    check_activation(x, 2, "grouped_wgrad");
    const auto starts = checked_offsets(offsets, dw.size(), dy, "grouped_wgrad");
    std::vector<GemmProduct> products;
    for (size_t e = 0; e < dw.size(); ++e)
        if (starts[e] != starts[e + 1]) products.push_back(wgrad(dw[e], dy, x, starts[e], starts[e + 1], "grouped_wgrad"));
    run_gemm(products, pool_, isa_, scratch_);
}

void CpuOps::batched_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w) {
    if (const auto products = quantized_heads(y, x, w, QuantForm::kForward, "batched_matmul"); !products.empty())
        return multiply_quantized(products, QuantForm::kForward, pool_, isa_, scratch_);
    run_gemm(batched(y, x, w, Form::kForward, "batched_matmul"), pool_, isa_, scratch_);
}

void CpuOps::batched_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w) {
    if (const auto products = quantized_heads(dx, dy, w, QuantForm::kDgrad, "batched_dgrad"); !products.empty())
        return multiply_quantized(products, QuantForm::kDgrad, pool_, isa_, scratch_);
    run_gemm(batched(dx, dy, w, Form::kDgrad, "batched_dgrad"), pool_, isa_, scratch_);
}

void CpuOps::gather_weight_rows(const Tensor& y, const Weight& w, const Tensor& rows) {
    if (w.scheme == Scheme::kPlain) return gather_rows(y, w.codes, rows);
    const bool cached = w.scheme == Scheme::kBlocks && caches(w.codes.dtype, w.block);  // the last block may be wider than y
    check_tensor("gather_weight_rows", "y", y, DType::kF32, {kAny, kAny});
    const int64_t in = w.in_features(), width = y.dim(1);
    require(width == in || (cached && width < in && width > in - kCacheBlock),
            [&] { return fmt::format("gather_weight_rows: y is {} wide, the rows {}", width, in); });
    check_tensor("gather_weight_rows", "rows", rows, DType::kI32, {y.dim(0)});
    const auto* at = rows.as<int32_t>();
    pool_.parallel_for(y.dim(0), 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            check(at[i] >= 0 && at[i] < w.out_features(), "gather_weight_rows: a row index is out of range");
            if (cached)
                kernels_.widen_blocks(row(y, i), row_bytes(w.codes, at[i]), w.block, width);
            else
                decode_weight_row(row(y, i), w, at[i]);
        }
    });
}

Weight CpuOps::pack(const Weight& w, Arena& arena) {
    Weight packed = w;
    if (has_number_panels(w)) {
        packed.scheme = Scheme::kPanels;
        packed.codes =
            arena.allocate(w.codes.dtype, {w.out_features() / Weight::kPanelRows, w.in_features() * Weight::kPanelRows});
        pack_weight(packed.codes, w, pool_);
        return packed;
    }
    const BlockType type = panels_of(w);
    if (type == BlockType::kNone) return w;
    const BlockTraits& traits = traits_of(type);
    packed = Weight(arena.allocate(DType::kU8, {w.out_features() / Weight::kPanelRows,
                                                w.in_features() / traits.elements * traits.panel_bytes}),
                    type);
    packed.scheme = Scheme::kPanels;
    pack_weight(packed.codes, w, pool_);
    return packed;
}

}  // namespace fathom
