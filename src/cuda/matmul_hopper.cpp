// Products of the instruction set as the Hopper kernels want them.
#include <algorithm>

#include "cuda/hopper_gemm.h"
#include "cuda/hopper_launch.h"
#include "cuda/products.h"
#include "cuda/runtime.h"

namespace fathom::cuda {
namespace {

constexpr int64_t kNarrow = 64;  // below this width of the result a tile of 128 x 256 is mostly padding

// Bytes from one group's matrix to the next; meaningless with one group.
int64_t distance(const GroupTable& table, int groups) {
    if (groups < 2) return 0;
    return static_cast<const std::byte*>(table.matrix[1]) - static_cast<const std::byte*>(table.matrix[0]);
}

// Whether matrices lie at equal, positive distances that are multiples of 16 bytes, with rows alike.
bool evenly_spaced(const GroupTable& table, int groups) {
    const int64_t step = distance(table, groups);
    if (groups > 1 && (step <= 0 || step % 16 != 0)) return false;
    for (int g = 1; g < groups; ++g)
        if (static_cast<const std::byte*>(table.matrix[g]) != static_cast<const std::byte*>(table.matrix[0]) + g * step ||
            table.row[g] != table.row[0])
            return false;
    return true;
}

}  // namespace

bool suits_hopper(const Product& p, const GroupTable& table) {
    if (p.a_type != DType::kBF16 || p.b_type != DType::kBF16 || p.groups < 1) return false;
    const bool wgrad = p.form == ProductForm::kWgrad;
    if (p.m < 1 || p.k < 1 || p.n < kNarrow || p.n % 8 != 0 || (wgrad ? p.m < kNarrow || p.m % 8 != 0 : p.k % 8 != 0))
        return false;
    if (!aligned(p.a, wgrad ? p.a_k : p.a_m, p.a_group)) return false;
    if (wgrad ? !aligned(p.b, p.b_row) : !aligned(p.c, p.c_m, p.c_group)) return false;
    // Heads that all read the same rows: a tensor map cannot say so.
    if (p.offsets == nullptr && p.groups > 1 && (wgrad || p.a_group <= 0 || p.c_group <= 0)) return false;
    return aligned(table.matrix[0], table.row[0]) && evenly_spaced(table, p.groups) && hopper::available();
}

int hopper_splits(const Product& p) {
    if (p.form != ProductForm::kWgrad || p.offsets != nullptr || p.groups != 1) return 1;
    // Pairs of blocks at work, the tile of a pair, and how short a sum may get: one of the card's 66 in every round.
    constexpr int64_t kPairs = 66, kTile = 256, kLeast = 1024, kMost = 8;
    const int64_t tiles = ceil_div(p.m, kTile) * ceil_div(p.n, kTile);
    const auto busy = [&](int64_t splits) {
        return static_cast<double>(tiles * splits) / static_cast<double>(ceil_div(tiles * splits, kPairs) * kPairs);
    };
    constexpr double kEnough = 0.9;
    int64_t best = 1;
    for (int64_t splits = 1; splits <= kMost && p.k / splits >= kLeast && busy(best) < kEnough; ++splits)
        if (busy(splits) > busy(best)) best = splits;
    const int64_t rows = ceil_div(ceil_div(p.k, best), 64) * 64;
    return static_cast<int>(ceil_div(p.k, rows));
}

void run_hopper_product(const Where& where, const Product& p, const GroupTable& table, float* partial, int splits) {
    hopper::GroupedGemm g;
    g.multiprocessors = where.multiprocessors;
    g.groups = p.groups;
    g.offsets = p.offsets;
    g.w_row = table.row[0];
    g.w_group = distance(table, p.groups) / (p.form == ProductForm::kWgrad ? 4 : 2);
    if (p.form == ProductForm::kWgrad) {
        g.rows = p.k;
        g.out = p.m;
        g.in = p.n;
        g.y_row = p.a_k;
        g.x_row = p.b_row;
        auto* out = static_cast<float*>(table.matrix[0]);
        if (splits > 1) {
            g.groups = splits;
            g.group_rows = ceil_div(ceil_div(p.k, int64_t{splits}), 64) * 64;
            g.w_row = p.n;
            g.w_group = p.m * p.n;
            out = partial;
        }
        return hopper::grouped_wgrad(out, p.a, p.b, g, splits == 1 && !p.first, where.stream);
    }
    const bool forward = p.form == ProductForm::kForward;
    g.rows = p.m;
    g.out = forward ? p.n : p.k;
    g.in = forward ? p.k : p.n;
    g.x_row = forward ? p.a_m : p.c_m;
    g.y_row = forward ? p.c_m : p.a_m;
    g.x_group = forward ? p.a_group : p.c_group;
    g.y_group = forward ? p.c_group : p.a_group;
    const auto output = p.c_type == DType::kF32 ? hopper::Output::kF32 : hopper::Output::kBf16;
    (forward ? hopper::grouped_matmul : hopper::grouped_dgrad)(p.c, output, p.a, table.matrix[0], g, where.stream);
}

bool run_hopper_gated(const Where& where, const Product& p, const GroupTable& table, void* y, int64_t y_row) {
    const hopper::GroupedGemm g{.groups = p.groups,
                                .rows = p.m,
                                .out = p.n,
                                .in = p.k,
                                .offsets = p.offsets,
                                .x_row = p.a_m,
                                .y_row = y_row,
                                .w_row = table.row[0],
                                .w_group = distance(table, p.groups) / 2,
                                .multiprocessors = where.multiprocessors};
    if (p.n % 16 != 0 || !aligned(y, y_row) || !hopper::prefers_gated(g)) return false;
    hopper::gated_matmul(y, p.a, table.matrix[0], g, where.stream);
    return true;
}

}  // namespace fathom::cuda
