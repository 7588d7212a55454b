// Products with weights of few bits: which kernels take them. Few rows of x meet the codes (quant_rows.cu), in int4, int8 or
// FP8 alike. Many rows in FP8 become FP8 themselves (hopper_gemm_fp8.cu); of the others the matrices are written out in bf16
// first, up to kScratch bytes at a time, and then multiplied as any: so few bytes per product that it costs less than
// dequantizing them once per tile of rows. What is exact (activations in f32) multiplies numbers in f32.
#include <fmt/format.h>
#include <algorithm>

#include "cuda/hopper_gemm.h"
#include "cuda/hopper_launch.h"
#include "cuda/products.h"
#include "cuda/quant.h"
#include "ops/shape_check.h"

namespace fathom::cuda {
namespace {

constexpr int64_t kScratch = int64_t{2} << 30;
// Up to how many rows, or rows per expert, the codes are multiplied as they are, where there is a choice.
constexpr int64_t kFewInteger = 64, kFewFp8 = 16, kFewFp8PerExpert = 8;

CodeKind kind_of(const Weight& w) {
    if (w.scheme == Scheme::kFp8Block) return CodeKind::kFp8;
    return w.codes.dtype == DType::kU8 ? CodeKind::kInt4 : CodeKind::kInt8;
}

void check_groups(const Weight& w, const CodeFormat& f, const char* op) {
    const bool types = (w.codes.dtype == DType::kU8 || w.codes.dtype == DType::kI8) &&
                       (f.scale_type == DType::kF32 || f.scale_type == DType::kF16 || f.scale_type == DType::kBF16);
    const bool shapes = w.scales.rank == 2 && w.scales.dim(0) == f.rows && w.scales.dim(1) > 0 &&
                        f.columns % w.scales.dim(1) == 0 && (f.columns <= 1 || w.codes.stride[1] == 1);
    const bool zeros = !w.zeros || (w.zeros.dtype == DType::kU8 && w.zeros.rank == 2 && w.zeros.shape == w.scales.shape);
    if (types && shapes && zeros) return;  // a message per expert would cost more than launching the product
    check(false,
          fmt::format("{}: codes {}, scales {}, zeros {}", op, w.codes.describe(), w.scales.describe(), w.zeros.describe()));
}

void check_blocks(const Weight& w, const CodeFormat& f, const char* op) {
    const auto blocks = [](int64_t size) { return ceil_div(size, kFp8Block); };
    if (w.codes.dtype == DType::kF8E4M3 && w.scales.rank == 2 && f.scale_type == DType::kF32 &&
        w.scales.dim(0) >= blocks(w.row0 + f.rows) && w.scales.dim(1) >= blocks(f.columns) &&
        (f.columns <= 1 || w.codes.stride[1] == 1))
        return;
    check(false, fmt::format("{}: scales {} of codes {} from row {}", op, w.scales.describe(), w.codes.describe(), w.row0));
}

// How many of the first weights are alike in everything but content.
size_t alike(std::span<const Weight> w, const CodeFormat& first, const char* op) {
    size_t count = 1;
    while (count < w.size() && code_format(w[count], op) == first) ++count;
    return count;
}

int64_t distance(const void* from, const void* to) {
    return static_cast<const std::byte*>(to) - static_cast<const std::byte*>(from);
}

// Whether matrices, and their scales, lie at equal, positive distances, as the Hopper kernel wants them.
bool evenly_spaced(std::span<const Weight> w) {
    if (w.size() < 2) return true;
    const int64_t codes = distance(w[0].codes.data, w[1].codes.data), scales = distance(w[0].scales.data, w[1].scales.data);
    if (codes <= 0 || codes % 16 != 0 || scales <= 0 || scales % 4 != 0) return false;
    for (size_t g = 1; g < w.size(); ++g)
        if (distance(w[g - 1].codes.data, w[g].codes.data) != codes ||
            distance(w[g - 1].scales.data, w[g].scales.data) != scales || w[g].row0 != w[0].row0)
            return false;
    return true;
}

bool suits_fp8_gemm(const CodedCall& call, const CodeFormat& f) {
    constexpr int64_t kMostGroups = 1024;
    if (f.kind != CodeKind::kFp8 || call.y.rank != 2 || !hopper::available()) return false;
    const auto address = [](const Tensor& x) { return reinterpret_cast<uintptr_t>(x.data); };
    const Weight& first = call.w[0];
    return call.y.dtype == DType::kBF16 && f.rows % 8 == 0 && f.columns % 16 == 0 && f.code_row % 16 == 0 &&
           address(first.codes) % 16 == 0 && first.row0 % kFp8Block == 0 && address(call.y) % 16 == 0 &&
           call.y.stride[0] % 8 == 0 && address(call.x) % 16 == 0 && call.x.stride[0] % 8 == 0 &&
           static_cast<int64_t>(call.w.size()) <= kMostGroups && evenly_spaced(call.w);
}

void run_fp8_gemm(const Where& where, const char* op, const CodedCall& call, const CodeFormat& f) {
    const int64_t m = call.x.dim(0), scale_row = ceil_div(m, 4) * 4, blocks = ceil_div(f.columns, kFp8Block);
    where.workspace.begin(m * f.columns + 4 * scale_row * blocks);
    auto* const q = where.workspace.take<uint8_t>(m * f.columns);
    auto* const scales = where.workspace.take<float>(scale_row * blocks);
    quantize_activations(where.stream, op, q, scales, scale_row, call.x.data, call.x.stride[0], m, f.columns);
    hopper::GroupedGemm g;
    g.multiprocessors = where.multiprocessors;
    g.groups = static_cast<int64_t>(call.w.size());
    g.rows = m;
    g.out = f.rows;
    g.in = f.columns;
    g.offsets = call.offsets ? call.offsets.as<const int32_t>() : nullptr;
    g.x_row = f.columns;
    g.y_row = call.y.stride[0];
    g.w_row = f.code_row;
    const Weight& first = call.w[0];
    hopper::Fp8Scales factors{scales, scale_row, first.scales.as<const float>() + first.row0 / kFp8Block * f.scale_row};
    factors.w_row = f.scale_row;
    if (call.w.size() > 1) {
        g.w_group = distance(first.codes.data, call.w[1].codes.data);
        factors.w_group = distance(first.scales.data, call.w[1].scales.data) / 4;
    }
    hopper::grouped_matmul_fp8(call.y.data, q, first.codes.data, factors, g, where.stream);
}

// Groups [first, first + count) of a call.
CodedCall part_of(const CodedCall& call, size_t first, size_t count) {
    CodedCall part = call;
    part.w = call.w.subspan(first, count);
    const auto begin = static_cast<int64_t>(first), end = begin + static_cast<int64_t>(count);
    if (call.offsets) {
        part.offsets = call.offsets.slice(0, begin, end + 1);
    } else if (call.y.rank == 3) {
        part.y = call.y.slice(1, begin, end);
        part.x = call.x.slice(1, begin, end);
    }
    return part;
}

CodedProduct product_of(const CodedCall& call, const CodeFormat& f) {
    CodedProduct p;
    p.format = f;
    p.x = call.x.data;
    p.x_row = call.x.stride[0];
    p.y = call.y.data;
    p.y_type = call.y.dtype;
    p.y_row = call.y.stride[0];
    if (call.y.rank == 3) {
        p.x_group = call.x.stride[1];
        p.y_group = call.y.stride[1];
    }
    p.m = call.x.dim(0);
    p.offsets = call.offsets ? call.offsets.as<const int32_t>() : nullptr;
    p.groups = static_cast<int>(call.w.size());
    return p;
}

// Runs the codes' own kernel over all groups, a table's worth at a time, or none of them.
bool run_few_rows(const Where& where, const char* op, const CodedCall& call, const CodeFormat& f) {
    const auto each = [&](auto&& act) {
        bool all = true;
        for (size_t first = 0; first < call.w.size() && all; first += kMaxCoded) {
            const CodedCall part = part_of(call, first, std::min<size_t>(call.w.size() - first, kMaxCoded));
            all = act(product_of(part, f), code_table(part.w));
        }
        return all;
    };
    if (!each([](const CodedProduct& p, const CodeTable& table) { return suits_coded_rows(p, table); })) return false;
    return each([&](const CodedProduct& p, const CodeTable& table) {
        run_coded_rows(where.stream, op, p, table);
        return true;
    });
}

}  // namespace

CodeFormat code_format(const Weight& w, const char* op) {
    if (w.codes.rank != 2) check(false, fmt::format("{}: a weight {}", op, w.codes.describe()));
    CodeFormat f;
    f.kind = kind_of(w);
    f.rows = w.out_features();
    f.columns = w.in_features();
    f.code_row = w.codes.stride[0];
    f.scale_row = w.scales.stride[0];
    f.scale_type = w.scales.dtype;
    if (f.kind == CodeKind::kFp8) {
        check_blocks(w, f, op);
        f.group = kFp8Block;
        return f;
    }
    check_groups(w, f, op);
    f.group = f.columns / w.scales.dim(1);
    f.has_zeros = w.zeros.defined();
    f.zero_row = f.has_zeros ? w.zeros.stride[0] : 0;
    return f;
}

CodeTable code_table(std::span<const Weight> w) {
    CodeTable table{};
    for (size_t g = 0; g < w.size(); ++g) {
        table.codes[g] = w[g].codes.as<const uint8_t>();
        table.scales[g] = w[g].scales.data;
        table.zeros[g] = w[g].zeros ? w[g].zeros.as<const uint8_t>() : nullptr;
        table.first_row[g] = static_cast<int32_t>(w[g].row0);
    }
    return table;
}

bool is_coded(std::span<const Weight> w) {
    return !w.empty() && (w[0].scheme == Scheme::kGroups || w[0].scheme == Scheme::kFp8Block);
}

bool run_coded(const Where& where, const char* op, const CodedCall& call) {
    const CodeFormat f = code_format(call.w[0], op);
    const int64_t m = call.x.dim(0), groups = call.offsets ? static_cast<int64_t>(call.w.size()) : 1;
    require(call.y.dim(0) == m && call.y.dim(-1) == f.rows && call.x.dim(-1) == f.columns, [&] {
        return fmt::format("{}: {} from {} and a weight [{}, {}]", op, call.y.describe(), call.x.describe(), f.rows, f.columns);
    });
    if (m == 0 || f.rows == 0) return true;
    if (where.exact || call.x.dtype != DType::kBF16 || alike(call.w, f, op) < call.w.size()) return false;
    const bool gemm = where.few && suits_fp8_gemm(call, f);
    const int64_t few = !gemm ? kFewInteger : call.offsets ? kFewFp8PerExpert : kFewFp8;
    // In one form for any number of rows, where a row's bits may not depend on that.
    if ((!where.few || m <= few * groups) && run_few_rows(where, op, call, f)) return true;
    if (gemm) run_fp8_gemm(where, op, call, f);
    return gemm;
}

void with_numbers(const Where& where, const char* op, const CodedCall& call,
                  const std::function<void(const CodedCall& part)>& multiply) {
    const DType type = where.exact ? DType::kF32 : DType::kBF16;
    for (size_t first = 0, count = 0; first < call.w.size(); first += count) {
        const CodeFormat f = code_format(call.w[first], op);
        const int64_t bytes = std::max<int64_t>(f.rows * f.columns, 1) * size_of(type);
        const auto most = static_cast<size_t>(std::clamp<int64_t>(kScratch / bytes, 1, kMaxCoded));
        count = std::min(most, alike(call.w.subspan(first), f, op));
        CodedCall part = part_of(call, first, count);
        where.numbers.begin(static_cast<int64_t>(part.w.size()) * bytes);
        auto* const numbers = where.numbers.take<std::byte>(static_cast<int64_t>(part.w.size()) * bytes);
        expand_codes(where.stream, op, numbers, type, f, code_table(part.w), static_cast<int>(part.w.size()),
                     part.offsets ? part.offsets.as<const int32_t>() : nullptr);
        std::vector<Weight> plain;
        for (size_t g = 0; g < part.w.size(); ++g)
            plain.emplace_back(Tensor(numbers + static_cast<int64_t>(g) * bytes, type, {f.rows, f.columns}));
        part.w = plain;
        multiply(part);
    }
}

}  // namespace fathom::cuda
