// The instruction set on NVIDIA GPUs. Members live in the file named after their section: memory.cu, norm.cu, products.cu, ...
// All work goes to one stream, in order, but for what is said to go side by side; only read_back waits. Nothing uses
// floating-point atomics: every sum has a fixed order.
#pragma once

#include "cuda/products.h"
#include "cuda/recorder.h"
#include "ops/ops.h"
#include "ops/step_recorder.h"

namespace fathom {

// Tensors are device memory of one GPU. One caller at a time.
class CudaOps final : public Ops, public StepRecorder {
public:
    // `compute`: kF32 or kBF16, the type of activations. `deterministic`: a row's bits never depend on its batch; else bf16
    // products of few rows, and attention over the cache, may take forms that depend on how many there are. `fp8`, with kBF16
    // on a Hopper card: y = x w^T and dx = dy w from and to bf16 are multiplied in FP8 by the V3 recipe (x, dy per row and 128
    // channels, w per 128 x 128 block, sums in f32), plain bf16 weights too; what has f32 on one side (router, logits) is
    // not, nor are gradients of weights. Throws Error{kDevice} saying why when GPU `device` cannot be used so.
    CudaOps(int device, DType compute, bool deterministic, bool fp8 = false);
    [[nodiscard]] DType compute_dtype() const override { return compute_; }
    [[nodiscard]] DType precise_dtype() const override { return DType::kF32; }
    [[nodiscard]] bool sees_host_memory() const override { return false; }
    void side_by_side(const std::function<void()>& first, const std::function<void()>& second, double share) override;

    // ---- memory ----
    [[nodiscard]] Buffer allocate(int64_t bytes) override;
    void write(const Tensor& device, const void* host) override;
    void read_back(void* host, const Tensor& device) override;
    void fill(const Tensor& y, double value) override;
    void copy(const Tensor& y, const Tensor& x) override;
    void add(const Tensor& y, const Tensor& a, const Tensor& b) override;
    void add_bias(const Tensor& y, const Tensor& bias) override;
    void add_bias_backward(const Tensor& dbias, const Tensor& dy) override;
    void sum_heads(const Tensor& y, const Tensor& x) override;
    void gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) override;
    void gather_rows_backward(const Tensor& dx, const Tensor& dy, const Tensor& rows) override;
    void scatter_rows(const Tensor& y, const Tensor& x, const Tensor& rows) override;

    // ---- norm and rope ----
    void rms_norm(const Tensor& y, const Tensor& x, const Tensor& w, double eps) override;
    void rms_norm_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                           double eps) override;
    void add_rms_norm(const Tensor& y, const Tensor& sum, const Tensor& a, const Tensor& b, const Tensor& w,
                      double eps) override;
    void rope_table(const Tensor& table, const Tensor& positions, const Tensor& inv_freq, double magnitude) override;
    void rope(const Tensor& y, const Tensor& x, const Tensor& table, RopePairing pairing, bool inverse) override;

    // ---- matrix products ----
    void matmul(const Tensor& y, const Tensor& x, const Weight& w) override;
    void matmul_dgrad(const Tensor& dx, const Tensor& dy, const Weight& w) override;
    void matmul_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) override;
    void first_matmul_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) override;
    void first_grouped_wgrad(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, const Tensor& offsets) override;
    void grouped_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w, const Tensor& offsets) override;
    void grouped_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w, const Tensor& offsets) override;
    void grouped_wgrad(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, const Tensor& offsets) override;
    void batched_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w) override;
    void batched_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w) override;

    // ---- attention ----
    void attention(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& k_shared,
                   const Tensor& v, const Spans& spans, double scale) override;
    void attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dk_shared, const Tensor& dv, const Tensor& dout,
                            const Tensor& q, const Tensor& k, const Tensor& k_shared, const Tensor& v, const Tensor& o,
                            const Tensor& lse, const Spans& spans, double scale) override;
    void latent_attention(const Tensor& u, const Tensor& lse, const Tensor& q, const Weight& cache, const Spans& spans,
                          double scale) override;

    // ---- mixture of experts ----
    void route(const Tensor& indices, const Tensor& weights, const Tensor& scores, const Tensor& logits, const Tensor& bias,
               const RouteRule& rule) override;
    void route_weights(const Tensor& weights, const Tensor& scores, const Tensor& logits, const Tensor& indices,
                       const RouteRule& rule) override;
    void route_backward(const Tensor& dlogits, const Tensor& dweights, const Tensor& dscores, const Tensor& scores,
                        const Tensor& indices, const RouteRule& rule) override;
    void balance_loss(const Tensor& loss, const Tensor& dscores, const Tensor& scores, const Tensor& indices,
                      const Tensor& cu_seqlens, const BalanceLoss& rule) override;
    void sort_by_expert(const Tensor& offsets, const Tensor& source, const Tensor& slot, const Tensor& indices) override;
    void combine(const Tensor& y, const Tensor& x, const Tensor& slot, const Tensor& weights, const Tensor& base) override;
    void combine_backward(const Tensor& dx, const Tensor& dweights, const Tensor& dy, const Tensor& x, const Tensor& slot,
                          const Tensor& weights) override;
    void add_expert_load(const Tensor& load, const Tensor& offsets) override;
    void update_router_bias(const Tensor& bias, const Tensor& load, double gamma) override;

    // ---- activation and loss ----
    void swiglu(const Tensor& y, const Tensor& gate, const Tensor& up) override;
    void matmul_swiglu(const Tensor& y, const Tensor& both, const Tensor& x, const Weight& w) override;
    void grouped_matmul_swiglu(const Tensor& y, const Tensor& both, const Tensor& x, std::span<const Weight> w,
                               const Tensor& offsets) override;
    void swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy, const Tensor& gate,
                         const Tensor& up) override;
    void cross_entropy(const Tensor& loss, const Tensor& logits, const Tensor& targets) override;
    void cross_entropy_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets, double scale) override;
    void token_logprob(const Tensor& logprob, const Tensor& entropy, const Tensor& logits, const Tensor& targets,
                       const Tensor& allowed, double temperature) override;
    void token_logprob_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets, const Tensor& allowed,
                                const Tensor& dlogprob, double temperature) override;
    void kl_divergence(const Tensor& loss, const Tensor& logits, const Tensor& teacher, const Tensor& targets,
                       bool reverse) override;
    void kl_divergence_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& teacher, const Tensor& targets,
                                bool reverse, double scale) override;

    // ---- optimizer ----
    void adamw(const Tensor& param, const Tensor& master, const Tensor& m, const Tensor& v, const Tensor& grad,
               const AdamWStep& step) override;
    void square_norm(const Tensor& sum, const Tensor& x) override;

    // ---- steps ----
    void repeat(std::span<const int64_t> key, int64_t after, const std::function<void()>& ops) override;
    void argmax(const Tensor& index, const Tensor& logits) override;
    void sample(const Tensor& index, const Tensor& logits, std::span<const TokenQuery> queries) override;

private:
    int device_;
    DType compute_;
    bool deterministic_, fp8_;
    cuda::Lane main_, side_;
    cuda::Lane* lane_ = &main_;  // where ops go now
    cuda::FaultFlag fault_;
    cuda::Recorder recorder_{main_.stream};
    Buffer answer_;  // pinned: what is read back, where it is little

    void fork(double share);
    void join();
    [[nodiscard]] cuda::Where where();
};

}  // namespace fathom
