// The matrix products of the instruction set: their arguments checked, put as products.h wants them, in groups of kMaxGroups.
#include <fmt/format.h>
#include <algorithm>

#include "cuda/cuda_ops.h"
#include "cuda/products.h"
#include "cuda/quant.h"
#include "ops/shape_check.h"

namespace fathom {
namespace cuda {
namespace {

void check_activation(const Tensor& x, int rank, std::string_view what) {
    require(x.rank == rank && (x.dtype == DType::kF32 || x.dtype == DType::kBF16),
            [&] { return fmt::format("{}: {} is not an F32 or BF16 tensor of rank {}", what, x.describe(), rank); });
    require(x.dim(-1) <= 1 || x.stride[static_cast<size_t>(rank - 1)] == 1,
            [&] { return fmt::format("{}: the last dimension is not contiguous", what); });
}

void check_weight(const Weight& w, std::string_view what) {
    const Tensor& codes = w.codes;
    const bool known = codes.dtype == DType::kF32 || codes.dtype == DType::kBF16 || codes.dtype == DType::kF16;
    if (w.scheme != Scheme::kPlain)  // or of few bits (quant.h)
        throw Error(ErrorKind::kDevice,
                    "the GPU computes with F32, BF16, F16, FP8, int8 and int4 weights; use --device cpu for others");
    require(codes.rank == 2 && known, [&] { return fmt::format("{}: a weight {}", what, codes.describe()); });
    require(codes.dim(1) <= 1 || codes.stride[1] == 1,
            [&] { return fmt::format("{}: the weight's rows are not contiguous", what); });
}

void check_offsets(const Tensor& offsets, size_t experts, std::string_view what) {
    require(offsets.rank == 1 && offsets.dtype == DType::kI32 && offsets.contiguous() &&
                offsets.dim(0) == static_cast<int64_t>(experts) + 1,
            [&] { return fmt::format("{}: offsets {} for {} experts", what, offsets.describe(), experts); });
}

// c = a w^T or a w, but for what its groups have of their own. The last dimensions of c and a are columns and k.
Product with_weights(ProductForm form, const Tensor& c, const Tensor& a, std::span<const Weight> w, std::string_view what) {
    const bool forward = form == ProductForm::kForward;
    Product p;
    p.form = form;
    p.m = c.dim(0);
    p.n = c.dim(-1);
    p.k = a.dim(-1);
    for (const Weight& weight : w) {
        check_weight(weight, what);
        require(a.dim(0) == p.m && weight.codes.dim(0) == (forward ? p.n : p.k) &&
                    weight.codes.dim(1) == (forward ? p.k : p.n) && weight.codes.dtype == w[0].codes.dtype,
                [&] {
                    return fmt::format("{}: {} from {} and a weight {}", what, c.describe(), a.describe(),
                                       weight.codes.describe());
                });
    }
    p.a = a.data;
    p.a_type = a.dtype;
    p.a_m = a.stride[0];
    p.a_k = 1;
    p.c = c.data;
    p.c_type = c.dtype;
    p.c_m = c.stride[0];
    if (w.empty()) return p;
    p.b_type = w[0].codes.dtype;
    return p;
}

// dw += dy^T x, all groups' dw alike.
Product into_gradients(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, std::string_view what) {
    check_activation(dy, 2, what);
    check_activation(x, 2, what);
    Product p;
    p.form = ProductForm::kWgrad;
    p.m = dy.dim(1);
    p.n = x.dim(1);
    p.k = dy.dim(0);
    for (const Tensor& one : dw) {
        require(one.rank == 2 && one.dtype == DType::kF32 && one.dim(0) == p.m && one.dim(1) == p.n && x.dim(0) == p.k &&
                    (p.n <= 1 || one.stride[1] == 1),
                [&] { return fmt::format("{}: {} from {} and {}", what, one.describe(), dy.describe(), x.describe()); });
    }
    p.a = dy.data;
    p.a_type = dy.dtype;
    p.a_m = 1;
    p.a_k = dy.stride[0];
    p.b = x.data;
    p.b_type = x.dtype;
    p.b_row = x.stride[0];
    return p;
}

Product into_gradients(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, const Tensor& offsets,
                       std::string_view what) {
    Product p = into_gradients(dw, dy, x, what);
    check_offsets(offsets, dw.size(), what);
    p.offsets = offsets.as<int32_t>();
    return p;
}

void put(GroupTable& table, size_t at, const Weight& w) {
    table.matrix[at] = w.codes.data;
    table.row[at] = w.codes.stride[0];
}
void put(GroupTable& table, size_t at, const Tensor& dw) {
    table.matrix[at] = dw.data;
    table.row[at] = dw.stride[0];
}

// Into how many parts the sum over k of a wgrad is cut, so that a small gradient keeps the whole GPU busy. From the shape
// alone.
int splits_of(const Product& p, bool exact, bool hopper) {
    if (hopper) return hopper_splits(p);
    if (exact || p.form != ProductForm::kWgrad || p.offsets != nullptr || p.groups != 1) return 1;
    constexpr int64_t kBlocks = 132, kTile = 128, kLeast = 256, kMost = 64;
    const int64_t tiles = std::max<int64_t>(ceil_div(p.m, kTile) * ceil_div(p.n, kTile), 1);
    return static_cast<int>(std::clamp<int64_t>(std::min(ceil_div(kBlocks, tiles), p.k / kLeast), 1, kMost));
}

// Which kernels multiply, and into how many parts the sum is cut.
struct Plan {
    enum class Kernel : uint8_t { kFewRows, kFewColumns, kHopper, kTensor, kChain };
    Kernel kernel;
    int splits;

    Plan(const Where& where, const Product& p, const GroupTable& table)
        : kernel(kernel_for(where, p, table)),
          splits(splits_of(p, where.exact, kernel == Kernel::kHopper)) {}
    [[nodiscard]] int64_t partials(const Product& p) const { return splits > 1 ? splits * p.m * p.n : 0; }

private:
    static Kernel kernel_for(const Where& where, const Product& p, const GroupTable& table) {
        if (where.exact) return Kernel::kChain;
        if (where.few && suits_few_rows(p, table)) return Kernel::kFewRows;
        if (where.few && suits_few_columns(p, table)) return Kernel::kFewColumns;
        if (suits_hopper(p, table)) return Kernel::kHopper;
        return suits_tensor_cores(p, table) ? Kernel::kTensor : Kernel::kChain;
    }
};

// Where nothing is to be added to, but the kernels add.
void clear_gradients(cudaStream_t stream, const Product& p, const GroupTable& table) {
    for (int g = 0; g < p.groups; ++g)
        check_cuda(cudaMemset2DAsync(table.matrix[g], static_cast<size_t>(4 * table.row[g]), 0, static_cast<size_t>(4 * p.n),
                                     static_cast<size_t>(p.m), stream),
                   "clearing gradients");
}

void run_planned(const Where& where, const char* op, const Plan& plan, const Product& p, const GroupTable& table,
                 float* partial) {
    using Kernel = Plan::Kernel;
    if (p.first && plan.kernel != Kernel::kHopper && plan.splits == 1) clear_gradients(where.stream, p, table);
    switch (plan.kernel) {
        case Kernel::kFewRows:
            run_few_rows(where.stream, op, p, table, where.constant_weights);
            break;
        case Kernel::kFewColumns:
            run_few_columns(where.stream, op, p, table, where.constant_weights);
            break;
        case Kernel::kHopper:
            run_hopper_product(where, p, table, partial, plan.splits);
            break;
        case Kernel::kTensor:
            run_tensor_product(where.stream, op, p, table, partial, plan.splits);
            break;
        case Kernel::kChain:
            run_chain_product(where.stream, op, p, table, partial, plan.splits);
            break;
    }
    if (plan.splits > 1) add_splits(where.stream, op, p, table, partial, plan.splits);
}

// Gradients that come in f32, a router's, times bf16. (The chains of f32 took ten times as long.)
bool suits_halves(const Product& p) {
    const bool wgrad = p.form == ProductForm::kWgrad;
    const auto even = [](int64_t width) { return width > 0 && width % 8 == 0; };
    return p.form != ProductForm::kForward && p.a_type == DType::kF32 && p.b_type == DType::kBF16 && p.offsets == nullptr &&
           p.groups == 1 && even(p.n) && even(wgrad ? p.m : p.k);
}

// With dy = high + low: dw += high^T x, dw += low^T x;  dx = [high | low] [w; w].
void run_halves(const Where& where, const char* op, const Product& p, const GroupTable& table) {
    const bool wgrad = p.form == ProductForm::kWgrad;
    const int64_t rows = wgrad ? p.k : p.m, width = wgrad ? p.m : p.k, repeated = wgrad ? 0 : 2 * p.k * p.n;
    Product q = p;
    GroupTable doubled = table;
    q.a_type = DType::kBF16;
    (wgrad ? q.a_k : q.a_m) = 2 * width;
    if (!wgrad) {
        q.k = 2 * p.k;
        doubled.row[0] = p.n;
    }
    // Where the parts will lie does not matter to the plan but for their alignment, which is the workspace's.
    q.a = nullptr;
    if (!wgrad) doubled.matrix[0] = nullptr;
    const Plan plan(where, q, doubled);
    where.workspace.begin(4 * rows * width + 2 * repeated + 4 * plan.partials(q));
    auto* const halves = where.workspace.take<uint16_t>(2 * rows * width);
    auto* const weights = where.workspace.take<uint16_t>(repeated);
    auto* const partial = where.workspace.take<float>(plan.partials(q));
    split_in_halves(where.stream, op, halves, static_cast<const float*>(p.a), wgrad ? p.a_k : p.a_m, rows, width);
    q.a = halves;
    if (!wgrad) {
        repeat_matrix(where.stream, op, weights, table.matrix[0], table.row[0], p.k, p.n);
        doubled.matrix[0] = weights;
    }
    run_planned(where, op, plan, q, doubled, partial);
    if (!wgrad) return;
    q.a = halves + width;
    q.first = false;
    run_planned(where, op, plan, q, doubled, partial);
}

void run_table(const Where& where, const char* op, const Product& p, const GroupTable& table) {
    if (p.m == 0 || p.n == 0) return;
    if (p.first && p.k == 0) return clear_gradients(where.stream, p, table);
    if (!where.exact && suits_halves(p)) return run_halves(where, op, p, table);
    const Plan plan(where, p, table);
    float* partial = nullptr;
    if (plan.splits > 1) {
        where.workspace.begin(4 * plan.partials(p));
        partial = where.workspace.take<float>(plan.partials(p));
    }
    run_planned(where, op, plan, p, table, partial);
}

// Runs `product` over all groups, a table's worth at a time.
template <class T>
void run(const Where& where, const char* op, Product product, std::span<const T> matrices) {
    const Product all = product;
    for (size_t first = 0; first < matrices.size(); first += kMaxGroups) {
        GroupTable table{};
        const size_t count = std::min<size_t>(matrices.size() - first, kMaxGroups);
        for (size_t i = 0; i < count; ++i) put(table, i, matrices[first + i]);
        product.groups = static_cast<int>(count);
        if (all.offsets != nullptr) product.offsets = all.offsets + first;
        product.a = static_cast<const std::byte*>(all.a) + static_cast<int64_t>(first) * all.a_group * size_of(all.a_type);
        if (all.c != nullptr)
            product.c = static_cast<std::byte*>(all.c) + static_cast<int64_t>(first) * all.c_group * size_of(all.c_type);
        run_table(where, op, product, table);
    }
}

void by_expert(const Where& where, const char* op, ProductForm form, const Tensor& c, const Tensor& a,
               std::span<const Weight> w, const Tensor& offsets) {
    check_activation(c, 2, op);
    check_activation(a, 2, op);
    check_offsets(offsets, w.size(), op);
    Product p = with_weights(form, c, a, w, op);
    p.offsets = offsets.as<int32_t>();
    run(where, op, p, w);
}

// silu(gate) up of [gate | up] = x w^T, without writing `both`, where one kernel can do so.
bool run_gated(const Where& where, const char* op, const Tensor& y, const Tensor& both, const Tensor& x,
               std::span<const Weight> w, const int32_t* offsets) {
    if (where.fp8 || is_coded(w) || w.empty() || w.size() > kMaxGroups || y.dtype != DType::kBF16) return false;
    Product p = with_weights(ProductForm::kForward, both, x, w, op);
    require(y.rank == 2 && y.dim(0) == p.m && 2 * y.dim(1) == p.n && y.stride[1] == 1,
            [&] { return fmt::format("{}: {}", op, y.describe()); });
    p.offsets = offsets;
    p.groups = static_cast<int>(w.size());
    GroupTable table{};
    for (size_t i = 0; i < w.size(); ++i) put(table, i, w[i]);
    if (p.m == 0) return false;
    const Plan::Kernel kernel = Plan(where, p, table).kernel;
    if (kernel != Plan::Kernel::kFewRows)
        return kernel == Plan::Kernel::kHopper && run_hopper_gated(where, p, table, y.data, y.stride[0]);
    p.c = y.data;
    p.c_type = y.dtype;
    p.c_m = y.stride[0];
    run_few_rows(where.stream, op, p, table, where.constant_weights, true);
    return true;
}

void by_head(const Where& where, const char* op, ProductForm form, const Tensor& c, const Tensor& a,
             std::span<const Weight> w) {
    check_activation(c, 3, op);
    check_activation(a, 3, op);
    const auto heads = static_cast<int64_t>(w.size());
    require(c.dim(1) == heads && a.dim(1) == heads,
            [&] { return fmt::format("{}: {} from {} for {} heads", op, c.describe(), a.describe(), heads); });
    Product p = with_weights(form, c, a, w, op);
    p.a_group = a.stride[1];
    p.c_group = c.stride[1];
    run(where, op, p, w);
}

}  // namespace
}  // namespace cuda

cuda::Where CudaOps::where() {
    return {lane_->stream, lane_->workspace,      compute_ == DType::kF32, !deterministic_, lane_->numbers,
            fp8_,          recorder_.recording(), lane_->multiprocessors};
}

void CudaOps::matmul(const Tensor& y, const Tensor& x, const Weight& w) {
    cuda::check_activation(y, 2, "matmul");
    cuda::check_activation(x, 2, "matmul");
    const std::span one(&w, 1);
    if (cuda::run_in_fp8(where(), "matmul", cuda::ProductForm::kForward, {y, x, one, {}})) return;
    if (!cuda::is_coded(one))
        return cuda::run(where(), "matmul", cuda::with_weights(cuda::ProductForm::kForward, y, x, one, "matmul"), one);
    const cuda::CodedCall call{y, x, one, {}};
    if (cuda::run_coded(where(), "matmul", call)) return;
    cuda::with_numbers(where(), "matmul", call, [&](const cuda::CodedCall& part) { matmul(part.y, part.x, part.w[0]); });
}

void CudaOps::matmul_dgrad(const Tensor& dx, const Tensor& dy, const Weight& w) {
    cuda::check_activation(dx, 2, "matmul_dgrad");
    cuda::check_activation(dy, 2, "matmul_dgrad");
    const std::span one(&w, 1);
    if (cuda::run_in_fp8(where(), "matmul_dgrad", cuda::ProductForm::kDgrad, {dx, dy, one, {}})) return;
    if (!cuda::is_coded(one))
        return cuda::run(where(), "matmul_dgrad", cuda::with_weights(cuda::ProductForm::kDgrad, dx, dy, one, "matmul_dgrad"),
                         one);
    cuda::with_numbers(where(), "matmul_dgrad", {dx, dy, one, {}},
                       [&](const cuda::CodedCall& part) { matmul_dgrad(part.y, part.x, part.w[0]); });
}

void CudaOps::matmul_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) {
    const std::span one(&dw, 1);
    cuda::run(where(), "matmul_wgrad", cuda::into_gradients(one, dy, x, "matmul_wgrad"), one);
}

void CudaOps::first_matmul_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) {
    const std::span one(&dw, 1);
    cuda::Product p = cuda::into_gradients(one, dy, x, "first_matmul_wgrad");
    p.first = true;
    cuda::run(where(), "first_matmul_wgrad", p, one);
}

void CudaOps::grouped_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w, const Tensor& offsets) {
    if (cuda::run_in_fp8(where(), "grouped_matmul", cuda::ProductForm::kForward, {y, x, w, offsets})) return;
    if (!cuda::is_coded(w)) return cuda::by_expert(where(), "grouped_matmul", cuda::ProductForm::kForward, y, x, w, offsets);
    cuda::check_activation(y, 2, "grouped_matmul");
    cuda::check_activation(x, 2, "grouped_matmul");
    cuda::check_offsets(offsets, w.size(), "grouped_matmul");
    const cuda::CodedCall call{y, x, w, offsets};
    if (cuda::run_coded(where(), "grouped_matmul", call)) return;
    cuda::with_numbers(where(), "grouped_matmul", call,
                       [&](const cuda::CodedCall& part) { grouped_matmul(part.y, part.x, part.w, part.offsets); });
}

void CudaOps::grouped_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w, const Tensor& offsets) {
    if (cuda::run_in_fp8(where(), "grouped_dgrad", cuda::ProductForm::kDgrad, {dx, dy, w, offsets})) return;
    if (!cuda::is_coded(w)) return cuda::by_expert(where(), "grouped_dgrad", cuda::ProductForm::kDgrad, dx, dy, w, offsets);
    cuda::check_offsets(offsets, w.size(), "grouped_dgrad");
    cuda::with_numbers(where(), "grouped_dgrad", {dx, dy, w, offsets},
                       [&](const cuda::CodedCall& part) { grouped_dgrad(part.y, part.x, part.w, part.offsets); });
}

void CudaOps::grouped_wgrad(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, const Tensor& offsets) {
    cuda::run(where(), "grouped_wgrad", cuda::into_gradients(dw, dy, x, offsets, "grouped_wgrad"), dw);
}

void CudaOps::first_grouped_wgrad(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, const Tensor& offsets) {
    cuda::Product p = cuda::into_gradients(dw, dy, x, offsets, "first_grouped_wgrad");
    p.first = true;
    cuda::run(where(), "first_grouped_wgrad", p, dw);
}

void CudaOps::matmul_swiglu(const Tensor& y, const Tensor& both, const Tensor& x, const Weight& w) {
    if (!cuda::run_gated(where(), "matmul_swiglu", y, both, x, std::span(&w, 1), nullptr)) Ops::matmul_swiglu(y, both, x, w);
}

void CudaOps::grouped_matmul_swiglu(const Tensor& y, const Tensor& both, const Tensor& x, std::span<const Weight> w,
                                    const Tensor& offsets) {
    cuda::check_offsets(offsets, w.size(), "grouped_matmul_swiglu");
    if (!cuda::run_gated(where(), "grouped_matmul_swiglu", y, both, x, w, offsets.as<int32_t>()))
        Ops::grouped_matmul_swiglu(y, both, x, w, offsets);
}

void CudaOps::batched_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w) {
    if (!cuda::is_coded(w)) return cuda::by_head(where(), "batched_matmul", cuda::ProductForm::kForward, y, x, w);
    cuda::check_activation(y, 3, "batched_matmul");
    cuda::check_activation(x, 3, "batched_matmul");
    const cuda::CodedCall call{y, x, w, {}};
    if (cuda::run_coded(where(), "batched_matmul", call)) return;
    cuda::with_numbers(where(), "batched_matmul", call,
                       [&](const cuda::CodedCall& part) { batched_matmul(part.y, part.x, part.w); });
}

void CudaOps::batched_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w) {
    if (!cuda::is_coded(w)) return cuda::by_head(where(), "batched_dgrad", cuda::ProductForm::kDgrad, dx, dy, w);
    cuda::with_numbers(where(), "batched_dgrad", {dx, dy, w, {}},
                       [&](const cuda::CodedCall& part) { batched_dgrad(part.y, part.x, part.w); });
}

}  // namespace fathom
