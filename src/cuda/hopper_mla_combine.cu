// Absorbed MLA attention: the partial results of the ranges that share a sequence become one (hopper_mla.cu).
#include "cuda/hopper_launch.h"
#include "cuda/hopper_mla_params.cuh"
#include "cuda/hopper_ptx.cuh"
#include "cuda/hopper_softmax.cuh"

namespace fathom::hopper::mla {

namespace {

// Some columns of one row (query token and head) per block: u = sum_s 2^(lse_s - lse) u_s over the ranges that share its
// sequence. Each of kGroups takes every kGroups-th partial result; then their sums are added in order.
template <int kGroups, int kColumns>
__global__ void __launch_bounds__(kGroups* kColumns / 4) combine_kernel(const Params p) {
    allow_next_launch();
    wait_for_earlier_launch();
    const int sequence = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.x);
    const int first_token = p.cu_q[sequence];
    const int blocks = blocks_of(p, sequence);
    if (blocks == 0 || row >= (p.cu_q[sequence + 1] - first_token) * p.heads) return;
    const int before = p.first[sequence], per_range = p.first[p.sequences];
    const int low = before / per_range, high = (before + blocks - 1) / per_range;
    if (low == high) return;
    const auto slot = [&](int range) { return 2 * range + (range * per_range > before ? 0 : 1); };
    const auto row_at = [&](int range) { return int64_t{slot(range)} * p.row_blocks * kRows + row; };

    constexpr int kThreads = kColumns / 4;  // of a group
    const int thread = static_cast<int>(threadIdx.x) % kThreads, group = static_cast<int>(threadIdx.x) / kThreads;
    const int column = static_cast<int>(blockIdx.z) * kColumns + 4 * thread;
    float top = -INFINITY;
    for (int range = low + lane_id(); range <= high; range += kWarp) top = fmaxf(top, p.partial_lse[row_at(range)]);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, step));
    float4 sum{0, 0, 0, 0};
    float total = 0;
#pragma unroll 4
    for (int range = low + group; range <= high; range += kGroups) {
        const float weight = exp2f(p.partial_lse[row_at(range)] - top);
        const float4 v = *reinterpret_cast<const float4*>(p.partial + row_at(range) * kLatent + column);
        sum.x = fmaf(weight, v.x, sum.x);
        sum.y = fmaf(weight, v.y, sum.y);
        sum.z = fmaf(weight, v.z, sum.z);
        sum.w = fmaf(weight, v.w, sum.w);
        total += weight;
    }
    __shared__ float4 sums[kGroups][kThreads];
    __shared__ float totals[kGroups];
    sums[group][thread] = sum;
    if (thread == 0) totals[group] = total;
    __syncthreads();
    if (group != 0) return;
    total = 0;
    sum = float4{0, 0, 0, 0};
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
        const float4 v = sums[g][thread];
        sum = float4{sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
        total += totals[g];
    }
    const float inverse = 1 / total;
    const int64_t at = int64_t{first_token} * p.heads + row;
    *reinterpret_cast<uint2*>(p.u + at * kLatent + column) =
        uint2{pack_bf16(sum.x * inverse, sum.y * inverse), pack_bf16(sum.z * inverse, sum.w * inverse)};
    if (column == 0) p.lse[at] = (top + log2f(total)) * kLn2;
}

}  // namespace

void combine_ranges(const Params& p, int64_t max_q, cudaStream_t stream) {
    // Many ranges share a sequence: their results are read by many threads at a time. Few: most blocks find nothing to do.
    const bool many = p.ranges > 4 * p.sequences;
    constexpr int kGroups = 16, kColumns = 128;
    const dim3 grid(static_cast<unsigned>(max_q * p.heads), static_cast<unsigned>(p.sequences), many ? kLatent / kColumns : 1);
    if (many)
        launch_early(combine_kernel<kGroups, kColumns>, grid, kGroups * kColumns / 4, 0, stream, p);
    else
        launch_early(combine_kernel<1, kLatent>, grid, kLatent / 4, 0, stream, p);
}

}  // namespace fathom::hopper::mla
