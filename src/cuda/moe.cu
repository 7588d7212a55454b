// Dispatch to experts and back, and how evenly they are used.
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/packed_loop.cuh"

namespace fathom {
namespace cuda {
namespace {

// A stable counting sort in pieces of 1024 choices, one block each. Few pieces: in one launch, whose blocks count all choices
// themselves. Many: counts of each piece, where each begins, placement.
constexpr int64_t kPiece = 1024, kFewPieces = 8;
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

// What a block needs to place its piece: where each expert's next choice goes, and how many each warp has of it, [warp, E].
struct Piece {
    int32_t next[kMaxExperts];
    uint8_t of_warp[kPiece / kWarp * kMaxExperts];
};

// Places choices [begin, end), at most a thread each; piece.next is set. By all threads of a block.
__device__ void place_piece(Piece& piece, int32_t* source, const Rows<int32_t>& slot, const Rows<int32_t>& indices,
                            int64_t chosen, int64_t begin, int64_t end, int64_t experts, int* fault) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
    for (int64_t i = thread; i < kPiece / kWarp * experts; i += kPiece) piece.of_warp[i] = 0;
    __syncthreads();
    const int64_t i = begin + thread;
    const int expert = i < end ? expert_at(indices, chosen, i, experts, fault) : -1;
    const unsigned same = __match_any_sync(kAll, expert);
    const int rank = __popc(same & ((1u << lane) - 1));
    if (i < end && rank == 0) piece.of_warp[warp * experts + expert] = static_cast<uint8_t>(__popc(same));
    __syncthreads();
    if (i >= end) return;
    int32_t at = piece.next[expert] + rank;
#pragma unroll 4
    for (int w = 0; w < warp; ++w) at += piece.of_warp[w * experts + expert];
    source[at] = static_cast<int32_t>(i / chosen);
    slot.at(i / chosen)[i % chosen] = at;
}

__global__ void __launch_bounds__(kPiece)
    place_kernel(int32_t* source, Rows<int32_t> slot, const int32_t* first, Rows<int32_t> indices, int64_t chosen,
                 int64_t choices, int64_t experts, int* fault) {
    __shared__ Piece piece;
    for (int64_t e = threadIdx.x; e < experts; e += kPiece) piece.next[e] = first[blockIdx.x * experts + e];
    const int64_t begin = blockIdx.x * kPiece;
    place_piece(piece, source, slot, indices, chosen, begin, min(choices, begin + kPiece), experts, fault);
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

// All at once where pieces are few, as when decoding.
__global__ void __launch_bounds__(kPiece)
    sort_kernel(int32_t* offsets, int32_t* source, Rows<int32_t> slot, Rows<int32_t> indices, int64_t chosen, int64_t choices,
                int64_t experts, int* fault) {
    begin_before_large();
    __shared__ Piece piece;
    __shared__ int32_t count[kMaxExperts], warp_total[kWarp];
    const int64_t e = threadIdx.x, begin = blockIdx.x * kPiece;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    count[e] = piece.next[e] = 0;
    __syncthreads();
    for (int64_t i = e; i < choices; i += kPiece) {  // integers: any order gives the same count
        const int expert = expert_at(indices, chosen, i, experts, fault);
        atomicAdd(&count[expert], 1);
        if (i < begin) atomicAdd(&piece.next[expert], 1);
    }
    __syncthreads();
    const int32_t total = count[e], within = sum_up_to(total, lane);
    if (lane == kWarp - 1) warp_total[warp] = within;
    __syncthreads();
    const int32_t of_warps = sum_up_to(warp_total[lane], lane);
    const int32_t end = within + (warp == 0 ? 0 : __shfl_sync(kAll, of_warps, warp - 1));
    piece.next[e] += end - total;
    if (blockIdx.x == 0 && e == 0) offsets[0] = 0;
    if (blockIdx.x == 0 && e < experts) offsets[e + 1] = end;
    place_piece(piece, source, slot, indices, chosen, begin, min(choices, begin + kPiece), experts, fault);
}

template <class T>
struct Combine {
    Rows<T> y, x, base;
    Rows<int32_t> slots;
    Rows<float> weights;
    int64_t chosen;

    template <int kCount>
    __device__ __forceinline__ void operator()(int64_t i, int64_t c) const {
        constexpr int kTogether = 4;  // loads in flight
        float sum[kCount]{};
        for (int64_t k = 0; k < chosen; k += kTogether) {
            float part[kTogether][kCount];
#pragma unroll
            for (int t = 0; t < kTogether; ++t)
                if (k + t < chosen) load_pack(part[t], x.at(slots.at(i)[k + t]) + c);
#pragma unroll
            for (int t = 0; t < kTogether; ++t) {
                if (k + t >= chosen) break;
                const float weight = weights.data == nullptr ? 1.0f : weights.at(i)[k + t];
#pragma unroll
                for (int j = 0; j < kCount; ++j) sum[j] = fmaf(weight, part[t][j], sum[j]);
            }
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
    if (pieces >= 1 && pieces <= cuda::kFewPieces) {
        cuda::launch_early(cuda::sort_kernel, dim3(static_cast<unsigned>(pieces)), cuda::kPiece, 0, lane_->stream,
                           offsets.as<int32_t>(), source.as<int32_t>(), cuda::Rows<int32_t>(slot), cuda::Rows<int32_t>(indices),
                           chosen, choices, experts, fault_.device());
        cuda::check_launch("sort_by_expert");
        return;
    }
    lane_->workspace.begin(pieces * experts * 4);
    auto* counts = lane_->workspace.take<int32_t>(pieces * experts);
    const cuda::Rows<int32_t> chosen_rows(indices);
    if (pieces > 0) {
        cuda::count_kernel<<<static_cast<unsigned>(pieces), 256, 0, lane_->stream>>>(counts, chosen_rows, chosen, choices,
                                                                                     experts, fault_.device());
    }
    cuda::offsets_kernel<<<1, 1024, 0, lane_->stream>>>(offsets.as<int32_t>(), counts, pieces, experts);
    if (pieces > 0) {
        cuda::place_kernel<<<static_cast<unsigned>(pieces), cuda::kPiece, 0, lane_->stream>>>(
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
        cuda::packed_loop<T>(lane_->stream, "combine", n, d, cuda::packable(x, y, base ? base : y),
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
        kernel<<<static_cast<unsigned>(cuda::ceil_div(n * chosen, 8)), 256, 0, lane_->stream>>>(
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
    cuda::loop(lane_->stream, "add_expert_load", 1, load.dim(0),
               [=] __device__(int64_t, int64_t e) { counts[e] += offset[e + 1] - offset[e]; });
}

void CudaOps::update_router_bias(const Tensor& bias, const Tensor& load, double gamma) {
    check_tensor("update_router_bias", "bias", bias, DType::kF32, {kAny});
    const int64_t experts = bias.dim(0);
    check_tensor("update_router_bias", "load", load, DType::kI64, {experts});
    auto* values = bias.as<float>();
    const auto* counts = load.as<int64_t>();
    const auto step = static_cast<float>(gamma);
    cuda::loop(lane_->stream, "update_router_bias", 1, experts, [=] __device__(int64_t, int64_t e) {
        int64_t total = 0;
        for (int64_t i = 0; i < experts; ++i) total += counts[i];
        const int64_t excess = counts[e] * experts - total;  // in integers: load E against the sum of loads
        if (excess != 0) values[e] += excess > 0 ? -step : step;
    });
}

}  // namespace fathom
