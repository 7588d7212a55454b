// Absorbed MLA attention: the partial results of the ranges that share a sequence become one (hopper_mla.cu).
#include "cuda/hopper_launch.h"
#include "cuda/hopper_mla_params.cuh"
#include "cuda/hopper_ptx.cuh"
#include "cuda/hopper_softmax.cuh"

namespace fathom::hopper::mla {

namespace {

constexpr int kCombineGroups = 4;  // each takes every fourth partial result; then their sums are added in order

// One row (query token and head) per block: u = sum_s 2^(lse_s - lse) u_s over the ranges that share its sequence.
__global__ void __launch_bounds__(kCombineGroups* kLatent / 4) combine_kernel(const Params p) {
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

    const int column = 4 * (static_cast<int>(threadIdx.x) % (kLatent / 4)),
              group = static_cast<int>(threadIdx.x) / (kLatent / 4);
    float top = -INFINITY;
    for (int range = low + lane_id(); range <= high; range += kWarp) top = fmaxf(top, p.partial_lse[row_at(range)]);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, step));
    float4 sum{0, 0, 0, 0};
    float total = 0;
#pragma unroll 4
    for (int range = low + group; range <= high; range += kCombineGroups) {
        const float weight = exp2f(p.partial_lse[row_at(range)] - top);
        const float4 v = *reinterpret_cast<const float4*>(p.partial + row_at(range) * kLatent + column);
        sum.x = fmaf(weight, v.x, sum.x);
        sum.y = fmaf(weight, v.y, sum.y);
        sum.z = fmaf(weight, v.z, sum.z);
        sum.w = fmaf(weight, v.w, sum.w);
        total += weight;
    }
    __shared__ float4 sums[kCombineGroups][kLatent / 4];
    __shared__ float totals[kCombineGroups];
    sums[group][column / 4] = sum;
    if (column == 0) totals[group] = total;
    __syncthreads();
    if (group != 0) return;
    total = 0;
    sum = float4{0, 0, 0, 0};
#pragma unroll
    for (int g = 0; g < kCombineGroups; ++g) {
        const float4 v = sums[g][column / 4];
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
    launch_early(combine_kernel, dim3(static_cast<unsigned>(max_q * p.heads), static_cast<unsigned>(p.sequences)),
                 kCombineGroups * kLatent / 4, 0, stream, p);
}

}  // namespace fathom::hopper::mla
