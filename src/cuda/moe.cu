// Dispatch to experts and back, and how evenly they are used.
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/packed_loop.cuh"

namespace fathom {
namespace cuda {
namespace {

// A stable counting sort in three launches: counts of each piece of 1024 choices, offsets of each piece, placement.
constexpr int64_t kPiece = 1024;
constexpr int64_t kMaxExperts = 1024;

__device__ int expert_at(const Rows<int32_t>& indices, int64_t chosen, int64_t choice, int64_t experts, int* fault) {
    const int32_t expert = indices.at(choice / chosen)[choice % chosen];
    if (expert >= 0 && expert < experts) return expert;
    *fault = kExpertIndex;
    return 0;
}

__global__ void __launch_bounds__(256)
    count_kernel(int32_t* counts, Rows<int32_t> indices, int64_t chosen, int64_t choices, int64_t experts, int* fault) {
    __shared__ int32_t count[kMaxExperts];
    for (int64_t e = threadIdx.x; e < experts; e += 256) count[e] = 0;
    __syncthreads();
    const int64_t end = min(choices, (blockIdx.x + 1) * kPiece);
    for (int64_t i = blockIdx.x * kPiece + threadIdx.x; i < end; i += 256)
        atomicAdd(&count[expert_at(indices, chosen, i, experts, fault)], 1);  // integers: any order gives the same count
    __syncthreads();
    for (int64_t e = threadIdx.x; e < experts; e += 256) counts[blockIdx.x * experts + e] = count[e];
}

// counts [pieces, E] become the first sorted row of each piece and expert; offsets [E + 1]. One block.
__global__ void __launch_bounds__(1024) offsets_kernel(int32_t* offsets, int32_t* counts, int64_t pieces, int64_t experts) {
    __shared__ int32_t sums[1024];
    const int64_t e = threadIdx.x;
    int32_t total = 0;
    for (int64_t p = 0; p < pieces && e < experts; ++p) total += counts[p * experts + e];
    sums[e] = total;
    for (int step = 1; step < 1024; step *= 2) {  // inclusive prefix sums
        __syncthreads();
        const int32_t before = e >= step ? sums[e - step] : 0;
        __syncthreads();
        sums[e] += before;
    }
    if (e == 0) offsets[0] = 0;
    if (e >= experts) return;
    offsets[e + 1] = sums[e];
    int32_t next = sums[e] - total;
    for (int64_t p = 0; p < pieces; ++p) {
        const int32_t count = counts[p * experts + e];
        counts[p * experts + e] = next;
        next += count;
    }
}

// A warp walks choices [begin, end) in order, 32 at a time; next[e] is the next free sorted row of expert e.
__device__ void place_choices(int32_t* next, int32_t* source, const Rows<int32_t>& slot, const Rows<int32_t>& indices,
                              int64_t chosen, int64_t begin, int64_t end, int64_t experts, int* fault) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (; begin < end; begin += kWarp) {
        const int64_t i = begin + lane;
        const int expert = i < end ? expert_at(indices, chosen, i, experts, fault) : -1;
        const unsigned same = __match_any_sync(kAll, expert);
        const int rank = __popc(same & ((1u << lane) - 1));
        if (i < end) {
            const int32_t at = next[expert] + rank;
            source[at] = static_cast<int32_t>(i / chosen);
            slot.at(i / chosen)[i % chosen] = at;
        }
        __syncwarp();
        if (i < end && rank == 0) next[expert] += __popc(same);
        __syncwarp();
    }
}

// One warp per piece.
__global__ void __launch_bounds__(kWarp)
    place_kernel(int32_t* source, Rows<int32_t> slot, const int32_t* first, Rows<int32_t> indices, int64_t chosen,
                 int64_t choices, int64_t experts, int* fault) {
    __shared__ int32_t next[kMaxExperts];
    for (int64_t e = threadIdx.x; e < experts; e += kWarp) next[e] = first[blockIdx.x * experts + e];
    __syncwarp();
    const int64_t begin = blockIdx.x * kPiece;
    place_choices(next, source, slot, indices, chosen, begin, min(choices, begin + kPiece), experts, fault);
}

// The sum of x over the lanes up to this one.
__device__ __forceinline__ int32_t sum_up_to(int32_t x, int lane) {
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
        const int32_t other = __shfl_up_sync(kAll, x, step);
        if (lane >= step) x += other;
    }
    return x;
}

// All three at once for one piece, as when decoding.
__global__ void __launch_bounds__(kPiece)
    sort_piece_kernel(int32_t* offsets, int32_t* source, Rows<int32_t> slot, Rows<int32_t> indices, int64_t chosen,
                      int64_t choices, int64_t experts, int* fault) {
    begin_early();
    __shared__ int32_t count[kMaxExperts], next[kMaxExperts], warp_total[kWarp];
    const int64_t e = threadIdx.x;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    count[e] = 0;
    __syncthreads();
    if (e < choices) atomicAdd(&count[expert_at(indices, chosen, e, experts, fault)], 1);
    __syncthreads();
    const int32_t total = count[e], within = sum_up_to(total, lane);
    if (lane == kWarp - 1) warp_total[warp] = within;
    __syncthreads();
    const int32_t of_warps = sum_up_to(warp_total[lane], lane);
    const int32_t end = within + (warp == 0 ? 0 : __shfl_sync(kAll, of_warps, warp - 1));
    next[e] = end - total;
    if (e == 0) offsets[0] = 0;
    if (e < experts) offsets[e + 1] = end;
    __syncthreads();
    if (e < kWarp) place_choices(next, source, slot, indices, chosen, 0, choices, experts, fault);
}

template <class T>
struct Combine {
    Rows<T> y, x, base;
    Rows<int32_t> slots;
    Rows<float> weights;
    int64_t chosen;

    template <int kCount>
    __device__ __forceinline__ void operator()(int64_t i, int64_t c) const {
        float sum[kCount]{};
        for (int64_t k = 0; k < chosen; ++k) {
            const float weight = weights.data == nullptr ? 1.0f : weights.at(i)[k];
            float part[kCount];
            load_pack(part, x.at(slots.at(i)[k]) + c);
#pragma unroll
            for (int j = 0; j < kCount; ++j) sum[j] = fmaf(weight, part[j], sum[j]);
        }
        if (base.data != nullptr) {
            float added[kCount];
            load_pack(added, base.at(i) + c);
#pragma unroll
            for (int j = 0; j < kCount; ++j) sum[j] += added[j];
        }
        store_pack(y.at(i) + c, sum);
    }
};

// One warp per choice; kCount elements at a time.
template <class T, int kCount>
__global__ void __launch_bounds__(256)
    combine_backward_kernel(Rows<T> dx, Rows<float> dweights, Rows<T> dy, Rows<T> x, Rows<int32_t> slot, Rows<float> weights,
                            int64_t chosen, int64_t choices, int64_t d) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t choice = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / kWarp;
    if (choice >= choices) return;
    const int64_t i = choice / chosen, k = choice % chosen, at = slot.at(i)[k];
    const float weight = weights.at(i)[k];
    float sum = 0;
    for (int64_t c = lane * kCount; c < d; c += kWarp * kCount) {
        float g[kCount], value[kCount];
        load_pack(g, dy.at(i) + c);
        load_pack(value, x.at(at) + c);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            sum = fmaf(g[j], value[j], sum);
            g[j] *= weight;
        }
        store_pack(dx.at(at) + c, g);
    }
    sum = warp_sum(sum);
    if (lane == 0) dweights.at(i)[k] = sum;
}

}  // namespace
}  // namespace cuda

void CudaOps::sort_by_expert(const Tensor& offsets, const Tensor& source, const Tensor& slot, const Tensor& indices) {
    check_tensor("sort_by_expert", "indices", indices, DType::kI32, {kAny, kAny});
    const int64_t n = indices.dim(0), chosen = indices.dim(1), experts = offsets.dim(0) - 1, choices = n * chosen;
    check_tensor("sort_by_expert", "offsets", offsets, DType::kI32, {kAny});
    check_tensor("sort_by_expert", "source", source, DType::kI32, {choices});
    check_tensor("sort_by_expert", "slot", slot, DType::kI32, {n, chosen});
    check(experts <= cuda::kMaxExperts, "sort_by_expert: more than 1024 experts");
    const int64_t pieces = cuda::ceil_div(choices, cuda::kPiece);
    if (pieces == 1) {
        cuda::launch_early(cuda::sort_piece_kernel, dim3(1), cuda::kPiece, 0, stream_, offsets.as<int32_t>(),
                           source.as<int32_t>(), cuda::Rows<int32_t>(slot), cuda::Rows<int32_t>(indices), chosen, choices,
                           experts, fault_.device());
        cuda::check_launch("sort_by_expert");
        return;
    }
    workspace_.begin(pieces * experts * 4);
    auto* counts = workspace_.take<int32_t>(pieces * experts);
    const cuda::Rows<int32_t> chosen_rows(indices);
    if (pieces > 0) {
        cuda::count_kernel<<<static_cast<unsigned>(pieces), 256, 0, stream_>>>(counts, chosen_rows, chosen, choices, experts,
                                                                               fault_.device());
    }
    cuda::offsets_kernel<<<1, 1024, 0, stream_>>>(offsets.as<int32_t>(), counts, pieces, experts);
    if (pieces > 0) {
        cuda::place_kernel<<<static_cast<unsigned>(pieces), cuda::kWarp, 0, stream_>>>(
            source.as<int32_t>(), cuda::Rows<int32_t>(slot), counts, chosen_rows, chosen, choices, experts, fault_.device());
    }
    cuda::check_launch("sort_by_expert");
}

void CudaOps::combine(const Tensor& y, const Tensor& x, const Tensor& slot, const Tensor& weights, const Tensor& base) {
    check_tensor("combine", "y", y, {kAny, kAny});
    const int64_t n = y.dim(0), d = y.dim(1);
    check_tensor("combine", "x", x, y.dtype, {kAny, d});
    check_tensor("combine", "slot", slot, DType::kI32, {n, kAny});
    if (weights) check_tensor("combine", "weights", weights, DType::kF32, {n, slot.dim(1)});
    if (base) check_tensor("combine", "base", base, y.dtype, {n, d});
    cuda::with_activation("combine", y.dtype, [&](auto type) {
        using T = decltype(type);
        cuda::packed_loop<T>(stream_, "combine", n, d, cuda::packable(x, y, base ? base : y),
                             cuda::Combine<T>{cuda::Rows<T>(y), cuda::Rows<T>(x), cuda::Rows<T>(base),
                                              cuda::Rows<int32_t>(slot), cuda::Rows<float>(weights), slot.dim(1)});
    });
}

void CudaOps::combine_backward(const Tensor& dx, const Tensor& dweights, const Tensor& dy, const Tensor& x, const Tensor& slot,
                               const Tensor& weights) {
    check_tensor("combine_backward", "dy", dy, {kAny, kAny});
    const int64_t n = dy.dim(0), d = dy.dim(1), chosen = slot.dim(1);
    check_tensor("combine_backward", "dx", dx, dy.dtype, {kAny, d});
    check_tensor("combine_backward", "x", x, dy.dtype, {dx.dim(0), d});
    check_tensor("combine_backward", "slot", slot, DType::kI32, {n, chosen});
    check_tensor("combine_backward", "weights", weights, DType::kF32, {n, chosen});
    check_tensor("combine_backward", "dweights", dweights, DType::kF32, {n, chosen});
    if (n * chosen == 0) return;
    cuda::with_activation("combine_backward", dy.dtype, [&](auto type) {
        using T = decltype(type);
        const auto kernel = cuda::packable(dx, dy, x) ? cuda::combine_backward_kernel<T, cuda::kPackOf<T>>
                                                      : cuda::combine_backward_kernel<T, 1>;
        kernel<<<static_cast<unsigned>(cuda::ceil_div(n * chosen, 8)), 256, 0, stream_>>>(
            cuda::Rows<T>(dx), cuda::Rows<float>(dweights), cuda::Rows<T>(dy), cuda::Rows<T>(x), cuda::Rows<int32_t>(slot),
            cuda::Rows<float>(weights), chosen, n * chosen, d);
    });
    cuda::check_launch("combine_backward");
}

void CudaOps::add_expert_load(const Tensor& load, const Tensor& offsets) {
    check_tensor("add_expert_load", "load", load, DType::kI64, {kAny});
    check_tensor("add_expert_load", "offsets", offsets, DType::kI32, {load.dim(0) + 1});
    auto* counts = load.as<int64_t>();
    const auto* offset = offsets.as<int32_t>();
    cuda::loop(stream_, "add_expert_load", 1, load.dim(0),
               [=] __device__(int64_t, int64_t e) { counts[e] += offset[e + 1] - offset[e]; });
}

void CudaOps::update_router_bias(const Tensor& bias, const Tensor& load, double gamma) {
    check_tensor("update_router_bias", "bias", bias, DType::kF32, {kAny});
    const int64_t experts = bias.dim(0);
    check_tensor("update_router_bias", "load", load, DType::kI64, {experts});
    auto* values = bias.as<float>();
    const auto* counts = load.as<int64_t>();
    const auto step = static_cast<float>(gamma);
    cuda::loop(stream_, "update_router_bias", 1, experts, [=] __device__(int64_t, int64_t e) {
        int64_t total = 0;
        for (int64_t i = 0; i < experts; ++i) total += counts[i];
        const int64_t excess = counts[e] * experts - total;  // in integers: load E against the sum of loads
        if (excess != 0) values[e] += excess > 0 ? -step : step;
    });
}

}  // namespace fathom
