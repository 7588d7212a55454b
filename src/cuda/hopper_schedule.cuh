// Who computes which tile of a grouped product: persistent pairs of blocks (clusters of 2), one tile of 128 rows per block at a
// time. Groups' sizes are read on the device. Tiles go through a group in bands of 8 pairs of row tiles, so that both operands
// of the tiles in flight stay in L2.
#pragma once

#include <algorithm>

#include "base/error.h"
#include "cuda/hopper_gemm.h"
#include "cuda/hopper_launch.h"
#include "cuda/hopper_ptx.cuh"

namespace fathom::hopper {

constexpr int kTileM = 128;
constexpr int kBand = 8;
constexpr int kMaxGroups = 1024;

// What a kernel of grouped products is told beside its tensor maps.
struct GemmParams {
    void* out;
    const int32_t* offsets;
    int64_t out_row, out_group;
    int groups, rows;
    int m, n, k;           // the fixed extents: kRaggedK: m, n; else n, k
    int a_group, b_group;  // 1 where the third coordinate of the operand is the group
    bool share_a;          // the pair lies side by side and shares A; else one above the other and shares B
    int group_rows;        // GroupedGemm::group_rows
    bool accumulate;       // kRaggedK: add to what `out` holds
    int blocks;            // in pairs

    // Groups lie one after the other in the rows.
    [[nodiscard]] __device__ bool row_groups() const { return offsets != nullptr || group_rows > 0; }
    // Where group g begins; g may be `groups`.
    [[nodiscard]] __device__ int first_row(int g) const {
        return offsets != nullptr ? offsets[g] : static_cast<int>(min(int64_t{rows}, int64_t{g} * group_rows));
    }
};

struct GroupPlan {                 // in shared memory
    int32_t row[kMaxGroups + 1];   // first row of each group
    int32_t unit_end[kMaxGroups];  // tiles of pairs up to and including each group
};

// What one block of a pair does next.
struct Tile {
    int group, first_row, last_row;  // rows of the group
    int m, n;                        // first row (of the group, or of A when kRaggedK) and first column
    int k_blocks;
};

// kRaggedK: groups differ in the summed extent; else in rows of A.
template <bool kRaggedK, int kTileN, int kTileK>
class Schedule {
public:
    __device__ Schedule(const GroupPlan& plan, const GemmParams& p, int rank)
        : plan_(plan),
          p_(p),
          rank_(rank),
          unit_(static_cast<int>(blockIdx.x) / 2) {}

    __device__ bool next(Tile& tile) {
        while (group_ < p_.groups && unit_ >= plan_.unit_end[group_]) before_ = plan_.unit_end[group_++];
        if (group_ >= p_.groups) return false;
        tile.group = group_;
        tile.first_row = plan_.row[group_];
        tile.last_row = p_.row_groups() ? plan_.row[group_ + 1] : p_.rows;
        const int rows = tile.last_row - tile.first_row;
        const int m_units = units_m(p_, kRaggedK ? p_.m : rows);
        const int unit = unit_ - before_;
        const int n_units = units_n(p_);
        const int band = unit / (kBand * n_units);
        const int band_height = min(kBand, m_units - band * kBand);
        const int inside = unit - band * kBand * n_units;
        const int m_unit = band * kBand + inside % band_height, n_unit = inside / band_height;
        tile.m = p_.share_a ? m_unit * kTileM : (2 * m_unit + rank_) * kTileM;
        tile.n = p_.share_a ? (2 * n_unit + rank_) * kTileN : n_unit * kTileN;
        tile.k_blocks = ((kRaggedK ? rows : p_.k) + kTileK - 1) / kTileK;
        unit_ += static_cast<int>(gridDim.x) / 2;
        return true;
    }

    static __device__ int units_m(const GemmParams& p, int m) {
        const int height = p.share_a ? kTileM : 2 * kTileM;
        return (m + height - 1) / height;
    }
    static __device__ int units_n(const GemmParams& p) {
        const int width = p.share_a ? 2 * kTileN : kTileN;
        return (p.n + width - 1) / width;
    }

private:
    const GroupPlan& plan_;
    const GemmParams& p_;
    int rank_, unit_, group_ = 0, before_ = 0;
};

// One warp fills in where groups begin and how many tiles (of pairs) lie up to their ends.
template <bool kRaggedK, int kTileN, int kTileK>
__device__ void plan_groups(GroupPlan& plan, const GemmParams& p) {
    using Sched = Schedule<kRaggedK, kTileN, kTileK>;
    int before = 0;
    for (int base = 0; base < p.groups; base += kWarp) {
        const int g = base + lane_id();
        int units = 0;
        if (g < p.groups) {
            const int first = p.first_row(g);
            const int rows = (p.row_groups() ? p.first_row(g + 1) : p.rows) - first;
            plan.row[g] = first;
            if (g + 1 == p.groups) plan.row[g + 1] = first + rows;
            const bool cleared = kRaggedK && !p.accumulate;  // a group without rows is
            units = rows > 0 || cleared ? Sched::units_m(p, kRaggedK ? p.m : rows) * Sched::units_n(p) : 0;
        }
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
            const int other = __shfl_up_sync(0xffffffffU, units, step);
            if (lane_id() >= step) units += other;
        }
        if (g < p.groups) plan.unit_end[g] = before + units;
        before += __shfl_sync(0xffffffffU, units, kWarp - 1);
    }
}

// Rows of a group, were they of equal size.
inline int64_t mean_rows(const GroupedGemm& g) {
    return g.offsets == nullptr ? g.rows : std::max<int64_t>(1, g.rows / g.groups);
}

// The arrangement of pairs that computes fewer padded elements, if the groups were of equal size.
inline bool prefer_sharing_a(int64_t m, int64_t n, int tile_n) {
    const auto padded = [](int64_t v, int64_t to) { return (v + to - 1) / to * to; };
    return padded(m, kTileM) * padded(n, 2 * tile_n) < padded(m, 2 * kTileM) * padded(n, tile_n);
}

// Pairs of tiles of a dense product, m x n in each of `groups`.
inline int64_t pairs_of(int64_t m, int64_t n, int tile_n, int64_t groups) {
    const bool share_a = prefer_sharing_a(m, n, tile_n);
    const int64_t height = share_a ? kTileM : 2 * kTileM, width = share_a ? 2 * tile_n : tile_n;
    return (m + height - 1) / height * ((n + width - 1) / width) * groups;
}

// As many as the product may take multiprocessors, in pairs.
inline int blocks_for(const GroupedGemm& g) {
    return std::max((g.multiprocessors > 0 ? g.multiprocessors : multiprocessors()) / 2, 1) * 2;
}

inline GemmParams gemm_params(void* out, const GroupedGemm& g, int tile_n, int64_t m, int64_t n, int64_t k, int64_t out_row,
                              int64_t out_group) {
    check(g.groups >= 1 && g.groups <= kMaxGroups, "grouped product: between 1 and 1024 groups");
    check(g.out % 8 == 0 && g.in % 8 == 0, "grouped product: widths must be multiples of 8");
    check(g.x_row % 8 == 0 && g.y_row % 8 == 0 && g.w_row % 8 == 0,
          "grouped product: rows must lie multiples of 8 elements apart");
    check(reinterpret_cast<uintptr_t>(out) % 16 == 0, "grouped product: the result's address must be a multiple of 16");
    const int batched = g.offsets == nullptr && g.group_rows == 0 ? 1 : 0;
    int64_t blocks = blocks_for(g);
    // Blocks without a tile would keep others from their place.
    if (g.offsets == nullptr) blocks = std::min(blocks, 2 * pairs_of(m, n, tile_n, g.groups));
    return {.out = out,
            .offsets = g.offsets,
            .out_row = out_row,
            .out_group = out_group,
            .groups = static_cast<int>(g.groups),
            .rows = static_cast<int>(g.rows),
            .m = static_cast<int>(m),
            .n = static_cast<int>(n),
            .k = static_cast<int>(k),
            .a_group = batched,
            .b_group = batched,
            .share_a = prefer_sharing_a(m, n, tile_n),
            .group_rows = static_cast<int>(g.group_rows),
            .accumulate = true,
            .blocks = static_cast<int>(blocks)};
}

}  // namespace fathom::hopper
