// The back end without data: a dry run of a model through it adds up the FLOPs and bytes of every op. Powers `fathom plan`.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>

#include "ops/ops.h"

namespace fathom {

enum class OpFamily : uint8_t { kMemory, kNormRope, kMatmul, kAttention, kExperts, kActivationLoss, kOptimizer };
inline constexpr size_t kOpFamilies = 7;
[[nodiscard]] std::string_view name_of(OpFamily family);

struct OpCost {
    int64_t calls = 0;
    double flops = 0;         // 2 per multiply-add of matrix products and attention, as MFU counts; element-wise work is 0
    double weight_bytes = 0;  // stored codes and scales read, each matrix once per call
    double read_bytes = 0;    // activations, gradients, indices and optimizer state
    double written_bytes = 0;

    OpCost& operator+=(const OpCost& other);
};

// Tensors may lack data, and what depends on data is taken from shapes: the n K rows of an expert product are spread over as
// many experts as possible, and sequences of a batch are equally long. attention_backward includes the scores that it
// recomputes, so model FLOPs of a training step are three times those of the forward (not forward plus backward).
class PlanOps final : public Ops {
public:
    [[nodiscard]] const OpCost& cost(OpFamily family) const { return costs_[static_cast<size_t>(family)]; }
    [[nodiscard]] OpCost total() const;
    [[nodiscard]] int64_t allocated_bytes() const { return allocated_; }
    void clear();  // forgets the costs, not the allocations

    [[nodiscard]] DType compute_dtype() const override { return DType::kF32; }

    // Memory that is counted but does not exist: the data is null.
    [[nodiscard]] Buffer allocate(int64_t bytes) override;
    void write(const Tensor& device, const void* host) override;
    // Leaves zeros.
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

    void rms_norm(const Tensor& y, const Tensor& x, const Tensor& w, double eps) override;
    void rms_norm_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                           double eps) override;
    void rope_table(const Tensor& table, const Tensor& positions, const Tensor& inv_freq, double magnitude) override;
    void rope(const Tensor& y, const Tensor& x, const Tensor& table, RopePairing pairing, bool inverse) override;

    void matmul(const Tensor& y, const Tensor& x, const Weight& w) override;
    void matmul_dgrad(const Tensor& dx, const Tensor& dy, const Weight& w) override;
    void matmul_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) override;
    void grouped_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w, const Tensor& offsets) override;
    void grouped_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w, const Tensor& offsets) override;
    void grouped_wgrad(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, const Tensor& offsets) override;
    void batched_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w) override;
    void batched_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w) override;

    void attention(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& k_shared,
                   const Tensor& v, const Spans& spans, double scale) override;
    void attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dk_shared, const Tensor& dv, const Tensor& dout,
                            const Tensor& q, const Tensor& k, const Tensor& k_shared, const Tensor& v, const Tensor& o,
                            const Tensor& lse, const Spans& spans, double scale) override;
    void latent_attention(const Tensor& u, const Tensor& lse, const Tensor& q, const Weight& latents, const Spans& spans,
                          double scale) override;

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

    void swiglu(const Tensor& y, const Tensor& gate, const Tensor& up) override;
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
    void adamw(const Tensor& param, const Tensor& master, const Tensor& m, const Tensor& v, const Tensor& grad,
               const AdamWStep& step) override;
    void square_norm(const Tensor& sum, const Tensor& x) override;

private:
    std::array<OpCost, kOpFamilies> costs_{};
    int64_t allocated_ = 0;

    using Tensors = std::initializer_list<Tensor>;
    void count(OpFamily family, const Tensors& written, const Tensors& read, double flops = 0, double weight_bytes = 0);
};

}  // namespace fathom
