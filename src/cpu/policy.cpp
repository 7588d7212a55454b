// Log-probabilities of a policy and divergences of two, row by row. With z = logits / temperature, m = max z and s = sum exp(z
// - m): log p_v = z_v - m - log s.
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/cpu_ops.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {
namespace {

struct PolicyRows {
    Tensor logits, targets, allowed;
    double temperature;

    PolicyRows(const char* op, const Tensor& z, const Tensor& tokens, const Tensor& mask, double t)
        : logits(z),
          targets(tokens),
          allowed(mask),
          temperature(t) {
        check(t > 0, "token_logprob: the temperature must be positive");
        check_tensor(op, "logits", logits, DType::kF32, {kAny, kAny});
        check_tensor(op, "targets", targets, DType::kI32, {logits.dim(0)});
        if (allowed) check_tensor(op, "allowed", allowed, DType::kI32, {logits.dim(0), (logits.dim(1) + 31) / 32});
        for (int64_t i = 0; i < logits.dim(0); ++i)
            check(targets.as<int32_t>()[i] < logits.dim(1), "token_logprob: a target is not below the vocabulary's size");
    }
    // The row that softmax sees: the logits themselves, or in `scratch` divided by the temperature and -inf where not admitted.
    [[nodiscard]] const float* row_of(int64_t i, float* scratch) const {
        const float* z = row(logits, i);
        if (temperature == 1 && !allowed) return z;
        const int64_t vocab = logits.dim(1);
        const auto heat = static_cast<float>(temperature);
        for (int64_t v = 0; v < vocab; ++v) scratch[v] = z[v] / heat;
        if (!allowed) return scratch;
        const auto* words = row<uint32_t>(allowed, i);
        const int32_t target = targets.as<int32_t>()[i];
        for (int64_t v = 0; v < vocab; ++v) {
            if (((words[v / 32] >> (v % 32)) & 1U) == 0 && v != target) scratch[v] = -std::numeric_limits<float>::infinity();
        }
        return scratch;
    }
};

struct Normalizer {
    float shift, sum;
    double log_sum;

    Normalizer(const Kernels& kernels, const float* z, int64_t n)
        : shift(kernels.largest(z, n)),
          sum(kernels.sum_exp(z, shift, n)),
          log_sum(std::log(static_cast<double>(sum))) {}
    [[nodiscard]] double log_p(float z) const { return static_cast<double>(z) - static_cast<double>(shift) - log_sum; }
};

}  // namespace

void CpuOps::token_logprob(const Tensor& logprob, const Tensor& entropy, const Tensor& logits, const Tensor& targets,
                           const Tensor& allowed, double temperature) {
    const PolicyRows rows("token_logprob", logits, targets, allowed, temperature);
    const int64_t n = logits.dim(0), vocab = logits.dim(1);
    check_tensor("token_logprob", "logprob", logprob, DType::kF32, {n});
    if (entropy) check_tensor("token_logprob", "entropy", entropy, DType::kF32, {n});
    pool_.parallel_for(n, rows_per_task(8 * vocab), [&](int64_t begin, int64_t end, int thread) {
        auto* scratch = scratch_.of_thread<float>(thread, 2 * vocab);
        float* p = scratch + vocab;
        for (int64_t i = begin; i < end; ++i) {
            const int32_t target = targets.as<int32_t>()[i];
            logprob.as<float>()[i] = 0;
            if (entropy) entropy.as<float>()[i] = 0;
            if (target < 0) continue;
            const float* z = rows.row_of(i, scratch);
            const Normalizer all(kernels_, z, vocab);
            // As cross_entropy: log s is added to the small difference, not to the large maximum.
            logprob.as<float>()[i] = -static_cast<float>(all.log_sum + (double{all.shift} - double{z[target]}));
            if (!entropy) continue;
            kernels_.exp_scaled(p, z, all.shift, static_cast<float>(1 / static_cast<double>(all.sum)), vocab);
            double sum = 0;
            for (int64_t v = 0; v < vocab; ++v) {
                if (p[v] > 0) sum -= static_cast<double>(p[v]) * all.log_p(z[v]);
            }
            entropy.as<float>()[i] = static_cast<float>(sum);
        }
    });
}

void CpuOps::token_logprob_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets, const Tensor& allowed,
                                    const Tensor& dlogprob, double temperature) {
    const PolicyRows rows("token_logprob_backward", logits, targets, allowed, temperature);
    const int64_t n = logits.dim(0), vocab = logits.dim(1);
    check_tensor("token_logprob_backward", "dlogits", dlogits, DType::kF32, {n, vocab});
    check_tensor("token_logprob_backward", "dlogprob", dlogprob, DType::kF32, {n});
    pool_.parallel_for(n, rows_per_task(8 * vocab), [&](int64_t begin, int64_t end, int thread) {
        auto* scratch = scratch_.of_thread<float>(thread, 2 * vocab);
        for (int64_t i = begin; i < end; ++i) {
            const int32_t target = targets.as<int32_t>()[i];
            float* dz = row(dlogits, i);
            if (target < 0) {
                std::memset(dz, 0, static_cast<size_t>(vocab) * sizeof(float));
                continue;
            }
            const double scale = static_cast<double>(dlogprob.as<float>()[i]) / temperature;
            const float* z = rows.row_of(i, scratch);
            const Normalizer all(kernels_, z, vocab);
            kernels_.exp_scaled(dz, z, all.shift, static_cast<float>(-scale / static_cast<double>(all.sum)), vocab);
            dz[target] += static_cast<float>(scale);
        }
    });
}

void CpuOps::kl_divergence(const Tensor& loss, const Tensor& logits, const Tensor& teacher, const Tensor& targets,
                           bool reverse) {
    const int64_t n = logits.dim(0), vocab = logits.dim(1);
    check_tensor("kl_divergence", "logits", logits, DType::kF32, {n, vocab});
    check_tensor("kl_divergence", "teacher", teacher, DType::kF32, {n, vocab});
    check_tensor("kl_divergence", "targets", targets, DType::kI32, {n});
    check_tensor("kl_divergence", "loss", loss, DType::kF32, {n});
    pool_.parallel_for(n, rows_per_task(12 * vocab), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            loss.as<float>()[i] = 0;
            if (targets.as<int32_t>()[i] < 0) continue;
            const float *z = row(logits, i), *w = row(teacher, i);
            const Normalizer p(kernels_, z, vocab), q(kernels_, w, vocab);
            double sum = 0;
            for (int64_t v = 0; v < vocab; ++v) {
                const double log_p = p.log_p(z[v]), log_q = q.log_p(w[v]);
                sum += reverse ? std::exp(log_p) * (log_p - log_q) : std::exp(log_q) * (log_q - log_p);
            }
            loss.as<float>()[i] = static_cast<float>(sum);
        }
    });
}

void CpuOps::kl_divergence_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& teacher, const Tensor& targets,
                                    bool reverse, double scale) {
    const int64_t n = logits.dim(0), vocab = logits.dim(1);
    check_tensor("kl_divergence_backward", "dlogits", dlogits, DType::kF32, {n, vocab});
    check_tensor("kl_divergence_backward", "logits", logits, DType::kF32, {n, vocab});
    check_tensor("kl_divergence_backward", "teacher", teacher, DType::kF32, {n, vocab});
    check_tensor("kl_divergence_backward", "targets", targets, DType::kI32, {n});
    pool_.parallel_for(n, rows_per_task(12 * vocab), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            float* dz = row(dlogits, i);
            if (targets.as<int32_t>()[i] < 0) {
                std::memset(dz, 0, static_cast<size_t>(vocab) * sizeof(float));
                continue;
            }
            const float *z = row(logits, i), *w = row(teacher, i);
            const Normalizer p(kernels_, z, vocab), q(kernels_, w, vocab);
            double loss = 0;
            for (int64_t v = 0; reverse && v < vocab; ++v) loss += std::exp(p.log_p(z[v])) * (p.log_p(z[v]) - q.log_p(w[v]));
            for (int64_t v = 0; v < vocab; ++v) {
                const double log_p = p.log_p(z[v]), log_q = q.log_p(w[v]);
                const double d = reverse ? std::exp(log_p) * (log_p - log_q - loss) : std::exp(log_p) - std::exp(log_q);
                dz[v] = static_cast<float>(scale * d);
            }
        }
    });
}

}  // namespace fathom
