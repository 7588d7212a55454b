// The auxiliary balance losses. All are sums over experts of c_i P_i (kSquared: of (P_i - 1/E)^2) with c_i from the counts, so
// dL/dP_i is all that differs; P is the mean over a unit's tokens of p = s / sum s, and ds_j = (g_j - sum_i g_i p_i) / sum s.
// A unit is the batch or one sequence. Its tokens are summed in pieces of 256, the pieces in order.
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"

namespace fathom {
namespace cuda {
namespace {

constexpr int64_t kPiece = 256;

// Where units begin and what is known of them. Device memory.
struct Units {
    const int32_t* bounds;  // [count + 1]; empty units are none
    int64_t count;
    double* mean;     // [pieces, E] sum of p
    int32_t* chosen;  // [pieces, E] #{t chose i}
    int32_t* first;   // [pieces, E] #{t's first choice is i}
    int32_t* sent;    // [pieces, D] #{t chose an expert of device d}
    double* slope;    // [count, E]
    double* losses;   // [count]

    // Pieces of different units never share a place: sum of ceil(T / 256) <= this function of the next unit's start.
    __device__ int64_t piece(int64_t unit, int64_t index) const { return bounds[unit] / kPiece + unit + index; }
    __device__ int64_t nonempty() const {
        int64_t units = 0;
        for (int64_t u = 0; u < count; ++u) units += bounds[u + 1] > bounds[u] ? 1 : 0;
        return units;
    }
};

struct Scores {
    Rows<float> scores;
    Rows<int32_t> indices;
    int64_t experts, chosen, devices;

    __device__ double row_sum(int64_t t) const {
        double sum = 0;
        for (int64_t e = 0; e < experts; ++e) sum += scores.at(t)[e];
        return fmax(sum, 1e-20);
    }
};

// Blocks (unit, piece).
__global__ void __launch_bounds__(256) piece_kernel(Units units, Scores x, int* fault) {
    __shared__ double inverse[kPiece];
    const int64_t unit = blockIdx.y, begin = units.bounds[unit] + blockIdx.x * kPiece,
                  end = min(static_cast<int64_t>(units.bounds[unit + 1]), begin + kPiece);
    if (begin >= end) return;
    const int64_t t = begin + threadIdx.x, at = units.piece(unit, blockIdx.x), per_device = x.experts / x.devices;
    if (t < end) inverse[threadIdx.x] = 1.0 / x.row_sum(t);
    __syncthreads();
    for (int64_t e = threadIdx.x; e < x.experts; e += 256) {
        double mean = 0;
        int32_t chosen = 0, first = 0;
        for (int64_t i = begin; i < end; ++i) {
            mean = fma(static_cast<double>(x.scores.at(i)[e]), inverse[i - begin], mean);
            for (int64_t k = 0; k < x.chosen; ++k) {
                const int32_t expert = x.indices.at(i)[k];
                if (expert < 0 || expert >= x.experts) *fault = kExpertIndex;
                if (expert == e) ++chosen, first += k == 0 ? 1 : 0;
            }
        }
        units.mean[at * x.experts + e] = mean;
        units.chosen[at * x.experts + e] = chosen;
        units.first[at * x.experts + e] = first;
    }
    for (int64_t d = threadIdx.x; d < x.devices; d += 256) {
        int32_t sent = 0;
        for (int64_t i = begin; i < end; ++i) {
            bool any = false;
            for (int64_t k = 0; k < x.chosen; ++k) any = any || x.indices.at(i)[k] / per_device == d;
            sent += any ? 1 : 0;
        }
        units.sent[at * x.devices + d] = sent;
    }
}

struct UnitSum {
    double mean = 0;
    int64_t chosen = 0, first = 0;
};

__device__ UnitSum unit_sum(const Units& units, int64_t unit, int64_t tokens, int64_t e, int64_t experts) {
    UnitSum sum;
    for (int64_t p = 0; p < (tokens + kPiece - 1) / kPiece; ++p) {
        const int64_t at = units.piece(unit, p) * experts + e;
        sum.mean += units.mean[at];
        sum.chosen += units.chosen[at];
        sum.first += units.first[at];
    }
    sum.mean /= static_cast<double>(tokens);
    return sum;
}

// dL/dP_e (for kSquared at the current P), alpha left out.
__device__ double slope_of(const Units& units, const Scores& x, const BalanceLoss& rule, int64_t unit, int64_t tokens,
                           int64_t e, const UnitSum& own) {
    const int64_t per_device = x.experts / x.devices, device = e / per_device;
    const auto count = static_cast<double>(x.experts), all = static_cast<double>(tokens);
    const double f = count / (static_cast<double>(x.chosen) * all);  // f_i = f chosen_i
    switch (rule.kind) {
        case BalanceLossKind::kExpert:
            return f * static_cast<double>(own.chosen);
        case BalanceLossKind::kDevice: {
            double sum = 0;
            for (int64_t i = device * per_device; i < (device + 1) * per_device; ++i)
                sum += f * static_cast<double>(unit_sum(units, unit, tokens, i, x.experts).chosen) /
                       static_cast<double>(per_device);
            return sum;
        }
        case BalanceLossKind::kCommunication: {
            int64_t sent = 0;
            for (int64_t p = 0; p < (tokens + kPiece - 1) / kPiece; ++p)
                sent += units.sent[units.piece(unit, p) * x.devices + device];
            return static_cast<double>(x.devices) / (static_cast<double>(rule.device_limit) * all) * static_cast<double>(sent);
        }
        case BalanceLossKind::kSwitch:
            return count * static_cast<double>(own.first) / all;
        case BalanceLossKind::kGshard:
            return static_cast<double>(own.first) / (all * count);
        default:
            return 2 * (own.mean - 1 / count);
    }
}

// A block per unit: slopes and its loss.
__global__ void __launch_bounds__(256) unit_kernel(Units units, Scores x, BalanceLoss rule) {
    __shared__ double space[8];
    const int64_t unit = blockIdx.x, tokens = units.bounds[unit + 1] - units.bounds[unit];
    double loss = 0;
    for (int64_t e = threadIdx.x; e < x.experts && tokens > 0; e += 256) {
        const UnitSum own = unit_sum(units, unit, tokens, e, x.experts);
        const double slope = slope_of(units, x, rule, unit, tokens, e, own);
        units.slope[unit * x.experts + e] = slope;
        loss += rule.kind == BalanceLossKind::kSquared ? slope * slope / 4 : slope * own.mean;
    }
    loss = block_sum<256>(loss, space);
    if (threadIdx.x == 0) units.losses[unit] = loss;
}

// loss += alpha * mean of the units' losses, in order.
__global__ void loss_kernel(float* loss, Units units, double alpha) {
    double sum = 0;
    for (int64_t u = 0; u < units.count; ++u) sum += units.losses[u];
    const int64_t nonempty = units.nonempty();
    if (nonempty > 0) loss[0] += static_cast<float>(alpha * sum / static_cast<double>(nonempty));
}

// dscores[t] += alpha / (T units) (c - c . p_t) / sum s_t. Blocks (unit, piece), one warp per token.
__global__ void __launch_bounds__(256) gradient_kernel(Rows<float> dscores, Units units, Scores x, double alpha) {
    const int64_t unit = blockIdx.y, start = units.bounds[unit], tokens = units.bounds[unit + 1] - start,
                  begin = blockIdx.x * kPiece;
    if (begin >= tokens) return;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const double factor = alpha / static_cast<double>(tokens * units.nonempty());
    const double* slope = units.slope + unit * x.experts;
    for (int64_t i = begin + threadIdx.x / kWarp; i < min(tokens, begin + kPiece); i += 256 / kWarp) {
        const int64_t t = start + i;
        double sum = 0, mean = 0;
        for (int64_t e = lane; e < x.experts; e += kWarp) {
            sum += x.scores.at(t)[e];
            mean = fma(slope[e], static_cast<double>(x.scores.at(t)[e]), mean);
        }
        sum = fmax(warp_sum(sum), 1e-20);
        mean = warp_sum(mean) / sum;
        for (int64_t e = lane; e < x.experts; e += kWarp)
            dscores.at(t)[e] += static_cast<float>(factor * (slope[e] - mean) / sum);
    }
}

__global__ void whole_batch_kernel(int32_t* bounds, int32_t n) {
    bounds[0] = 0;
    bounds[1] = n;
}

}  // namespace
}  // namespace cuda

void CudaOps::balance_loss(const Tensor& loss, const Tensor& dscores, const Tensor& scores, const Tensor& indices,
                           const Tensor& cu_seqlens, const BalanceLoss& rule) {
    check_tensor("balance_loss", "scores", scores, DType::kF32, {kAny, kAny});
    const int64_t n = scores.dim(0), experts = scores.dim(1);
    check_tensor("balance_loss", "loss", loss, DType::kF32, {1});
    check_tensor("balance_loss", "dscores", dscores, DType::kF32, {n, experts});
    check_tensor("balance_loss", "indices", indices, DType::kI32, {n, kAny});
    check(rule.devices >= 1 && experts % rule.devices == 0, "balance_loss: devices must divide the number of experts");
    if (rule.per_sequence) check_tensor("balance_loss", "cu_seqlens", cu_seqlens, DType::kI32, {kAny});
    if (n == 0) return;
    const int64_t count = rule.per_sequence ? cu_seqlens.dim(0) - 1 : 1, longest = cuda::ceil_div(n, cuda::kPiece),
                  pieces = longest + count + 1;
    check(count >= 1 && count < 65536, "balance_loss: 1 to 65535 sequences");
    lane_->workspace.begin(pieces * (experts * 16 + rule.devices * 4) + count * (experts + 1) * 8 + 8);
    cuda::Units units{};
    units.count = count;
    units.mean = lane_->workspace.take<double>(pieces * experts);
    units.chosen = lane_->workspace.take<int32_t>(pieces * experts);
    units.first = lane_->workspace.take<int32_t>(pieces * experts);
    units.sent = lane_->workspace.take<int32_t>(pieces * rule.devices);
    units.slope = lane_->workspace.take<double>(count * experts);
    units.losses = lane_->workspace.take<double>(count);
    auto* bounds = lane_->workspace.take<int32_t>(2);
    if (!rule.per_sequence) cuda::whole_batch_kernel<<<1, 1, 0, lane_->stream>>>(bounds, static_cast<int32_t>(n));
    units.bounds = rule.per_sequence ? cu_seqlens.as<int32_t>() : bounds;
    const cuda::Scores x{cuda::Rows<float>(scores), cuda::Rows<int32_t>(indices), experts, indices.dim(1), rule.devices};
    const dim3 grid(static_cast<unsigned>(longest), static_cast<unsigned>(count));
    cuda::piece_kernel<<<grid, 256, 0, lane_->stream>>>(units, x, fault_.device());
    cuda::unit_kernel<<<static_cast<unsigned>(count), 256, 0, lane_->stream>>>(units, x, rule);
    cuda::loss_kernel<<<1, 1, 0, lane_->stream>>>(loss.as<float>(), units, rule.alpha);
    cuda::gradient_kernel<<<grid, 256, 0, lane_->stream>>>(cuda::Rows<float>(dscores), units, x, rule.alpha);
    cuda::check_launch("balance_loss");
}

}  // namespace fathom
