// Log-probabilities of a policy and divergences of two, one block per row. With z = logits / temperature, m = max z and s = sum
// exp(z - m): log p_v = z_v - m - log s. Sums over the vocabulary beyond s are f64.
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/softmax.cuh"

namespace fathom {
namespace cuda {
namespace {

struct Policy {
    Rows<float> logits;
    const int32_t* targets;
    const uint32_t* allowed;  // null: every id
    int64_t allowed_row, vocab;
    float temperature;

    // The logit of id v that softmax sees.
    __device__ float operator()(int64_t row, int64_t v) const {
        if (allowed != nullptr && v != targets[row] && ((allowed[row * allowed_row + v / 32] >> (v % 32)) & 1u) == 0)
            return -INFINITY;
        const float z = logits.at(row)[v];
        return temperature == 1.0f ? z : z / temperature;
    }
};

Policy policy_of(const char* op, const Tensor& logits, const Tensor& targets, const Tensor& allowed, double temperature) {
    check(temperature > 0, "token_logprob: the temperature must be positive");
    check_tensor(op, "logits", logits, DType::kF32, {kAny, kAny});
    check_tensor(op, "targets", targets, DType::kI32, {logits.dim(0)});
    if (allowed) check_tensor(op, "allowed", allowed, DType::kI32, {logits.dim(0), ceil_div(logits.dim(1), 32)});
    return {Rows<float>(logits),
            targets.as<int32_t>(),
            allowed ? allowed.as<uint32_t>() : nullptr,
            allowed ? allowed.stride[0] : 0,
            logits.dim(1),
            static_cast<float>(temperature)};
}

__global__ void __launch_bounds__(kSoftmaxThreads) logprob_kernel(float* logprob, float* entropy, Policy policy, int* fault) {
    begin_early();
    __shared__ float space[kSoftmaxThreads / kWarp];
    __shared__ double wide[kSoftmaxThreads / kWarp];
    const int64_t row = blockIdx.x;
    const int32_t target = policy.targets[row];
    if (target < 0 || target >= policy.vocab) {
        if (threadIdx.x == 0) logprob[row] = 0;
        if (threadIdx.x == 0 && entropy != nullptr) entropy[row] = 0;
        if (target >= policy.vocab) *fault = kTarget;
        return;
    }
    const RowSoftmax all = softmax_of([&](int64_t v) { return policy(row, v); }, policy.vocab, space);
    const double log_sum = log(static_cast<double>(all.sum));
    // As cross_entropy: log s is added to the small difference, not to the large maximum.
    if (threadIdx.x == 0)
        logprob[row] = -static_cast<float>(log_sum + (static_cast<double>(all.top) - static_cast<double>(policy(row, target))));
    if (entropy == nullptr) return;
    double sum = 0;
    for (int64_t v = threadIdx.x; v < policy.vocab; v += kSoftmaxThreads) {
        const float z = policy(row, v), p = expf(z - all.top) / all.sum;
        if (p > 0) sum -= static_cast<double>(p) * (static_cast<double>(z) - all.top - log_sum);
    }
    sum = block_sum<kSoftmaxThreads>(sum, wide);
    if (threadIdx.x == 0) entropy[row] = static_cast<float>(sum);
}

template <class T>
__global__ void __launch_bounds__(kSoftmaxThreads)
    logprob_backward_kernel(Rows<T> dlogits, Policy policy, const float* dlogprob, double temperature, int* fault) {
    __shared__ float space[kSoftmaxThreads / kWarp];
    const int64_t row = blockIdx.x;
    const int32_t target = policy.targets[row];
    T* dz = dlogits.at(row);
    if (target < 0 || target >= policy.vocab) {
        for (int64_t v = threadIdx.x; v < policy.vocab; v += kSoftmaxThreads) dz[v] = narrow<T>(0);
        if (target >= policy.vocab) *fault = kTarget;
        return;
    }
    const RowSoftmax all = softmax_of([&](int64_t v) { return policy(row, v); }, policy.vocab, space);
    const double scale = static_cast<double>(dlogprob[row]) / temperature;
    const auto factor = static_cast<float>(-scale / static_cast<double>(all.sum));
    for (int64_t v = threadIdx.x; v < policy.vocab; v += kSoftmaxThreads)
        dz[v] = narrow<T>(factor * expf(policy(row, v) - all.top) + (v == target ? static_cast<float>(scale) : 0.0f));
}

// log p_v of a row.
struct LogSoftmax {
    const float* z;
    double shift;
    __device__ LogSoftmax(const float* row, int64_t vocab, float* space) : z(row) {
        const RowSoftmax all = softmax_of([row](int64_t v) { return row[v]; }, vocab, space);
        shift = static_cast<double>(all.top) + log(static_cast<double>(all.sum));
    }
    __device__ double operator()(int64_t v) const { return static_cast<double>(z[v]) - shift; }
};

struct Divergence {
    Rows<float> logits, teacher;
    const int32_t* targets;
    int64_t vocab;
    bool reverse;
};

// The divergence of one row, given to all threads.
__device__ double divergence_of(const LogSoftmax& p, const LogSoftmax& q, int64_t vocab, bool reverse, double* wide) {
    double sum = 0;
    for (int64_t v = threadIdx.x; v < vocab; v += kSoftmaxThreads) {
        const double log_p = p(v), log_q = q(v);
        sum += reverse ? exp(log_p) * (log_p - log_q) : exp(log_q) * (log_q - log_p);
    }
    return block_sum<kSoftmaxThreads>(sum, wide);
}

__global__ void __launch_bounds__(kSoftmaxThreads) divergence_kernel(float* loss, Divergence d) {
    __shared__ float space[kSoftmaxThreads / kWarp];
    __shared__ double wide[kSoftmaxThreads / kWarp];
    const int64_t row = blockIdx.x;
    if (threadIdx.x == 0) loss[row] = 0;
    if (d.targets[row] < 0) return;
    const LogSoftmax p(d.logits.at(row), d.vocab, space), q(d.teacher.at(row), d.vocab, space);
    const double sum = divergence_of(p, q, d.vocab, d.reverse, wide);
    if (threadIdx.x == 0) loss[row] = static_cast<float>(sum);
}

__global__ void __launch_bounds__(kSoftmaxThreads) divergence_backward_kernel(Rows<float> dlogits, Divergence d, double scale) {
    __shared__ float space[kSoftmaxThreads / kWarp];
    __shared__ double wide[kSoftmaxThreads / kWarp];
    const int64_t row = blockIdx.x;
    float* dz = dlogits.at(row);
    if (d.targets[row] < 0) {
        for (int64_t v = threadIdx.x; v < d.vocab; v += kSoftmaxThreads) dz[v] = 0;
        return;
    }
    const LogSoftmax p(d.logits.at(row), d.vocab, space), q(d.teacher.at(row), d.vocab, space);
    const double loss = d.reverse ? divergence_of(p, q, d.vocab, true, wide) : 0;
    for (int64_t v = threadIdx.x; v < d.vocab; v += kSoftmaxThreads) {
        const double log_p = p(v), log_q = q(v);
        dz[v] = static_cast<float>(scale * (d.reverse ? exp(log_p) * (log_p - log_q - loss) : exp(log_p) - exp(log_q)));
    }
}

Divergence divergence(const char* op, const Tensor& logits, const Tensor& teacher, const Tensor& targets, bool reverse) {
    check_tensor(op, "logits", logits, DType::kF32, {kAny, kAny});
    check_tensor(op, "teacher", teacher, DType::kF32, {logits.dim(0), logits.dim(1)});
    check_tensor(op, "targets", targets, DType::kI32, {logits.dim(0)});
    return {Rows<float>(logits), Rows<float>(teacher), targets.as<int32_t>(), logits.dim(1), reverse};
}

}  // namespace
}  // namespace cuda

void CudaOps::token_logprob(const Tensor& logprob, const Tensor& entropy, const Tensor& logits, const Tensor& targets,
                            const Tensor& allowed, double temperature) {
    const cuda::Policy policy = cuda::policy_of("token_logprob", logits, targets, allowed, temperature);
    const int64_t n = logits.dim(0);
    check_tensor("token_logprob", "logprob", logprob, DType::kF32, {n});
    if (entropy) check_tensor("token_logprob", "entropy", entropy, DType::kF32, {n});
    if (n == 0) return;
    cuda::launch_early(cuda::logprob_kernel, dim3(static_cast<unsigned>(n)), cuda::kSoftmaxThreads, 0, lane_->stream,
                       logprob.as<float>(), entropy ? entropy.as<float>() : nullptr, policy, fault_.device());
    cuda::check_launch("token_logprob");
}

// dlogits may be logits: every thread reads a logit before it writes there, and the target's is not read again.
void CudaOps::token_logprob_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets, const Tensor& allowed,
                                     const Tensor& dlogprob, double temperature) {
    const cuda::Policy policy = cuda::policy_of("token_logprob_backward", logits, targets, allowed, temperature);
    const int64_t n = logits.dim(0);
    check_tensor("token_logprob_backward", "dlogits", dlogits, {n, logits.dim(1)});
    check_tensor("token_logprob_backward", "dlogprob", dlogprob, DType::kF32, {n});
    if (n == 0) return;
    cuda::with_activation("token_logprob_backward", dlogits.dtype, [&](auto type) {
        cuda::logprob_backward_kernel<decltype(type)><<<static_cast<unsigned>(n), cuda::kSoftmaxThreads, 0, lane_->stream>>>(
            cuda::Rows<decltype(type)>(dlogits), policy, dlogprob.as<float>(), temperature, fault_.device());
    });
    cuda::check_launch("token_logprob_backward");
}

void CudaOps::kl_divergence(const Tensor& loss, const Tensor& logits, const Tensor& teacher, const Tensor& targets,
                            bool reverse) {
    const cuda::Divergence d = cuda::divergence("kl_divergence", logits, teacher, targets, reverse);
    const int64_t n = logits.dim(0);
    check_tensor("kl_divergence", "loss", loss, DType::kF32, {n});
    if (n == 0) return;
    cuda::divergence_kernel<<<static_cast<unsigned>(n), cuda::kSoftmaxThreads, 0, lane_->stream>>>(loss.as<float>(), d);
    cuda::check_launch("kl_divergence");
}

void CudaOps::kl_divergence_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& teacher, const Tensor& targets,
                                     bool reverse, double scale) {
    const cuda::Divergence d = cuda::divergence("kl_divergence_backward", logits, teacher, targets, reverse);
    const int64_t n = logits.dim(0);
    check_tensor("kl_divergence_backward", "dlogits", dlogits, DType::kF32, {n, logits.dim(1)});
    if (n == 0) return;
    cuda::divergence_backward_kernel<<<static_cast<unsigned>(n), cuda::kSoftmaxThreads, 0, lane_->stream>>>(
        cuda::Rows<float>(dlogits), d, scale);
    cuda::check_launch("kl_divergence_backward");
}

}  // namespace fathom
