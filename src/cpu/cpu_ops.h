// The instruction set on x86-64: f32 arithmetic, SIMD chosen at run time (AVX2 or AVX-512, the same bits), one pool of threads.
// Members live in the file named after their section: memory.cpp, norm.cpp, rope.cpp, matmul.cpp, attention*.cpp, moe.cpp, ...
#pragma once

#include "base/threads.h"
#include "cpu/scratch.h"
#include "ops/ops.h"

namespace fathom {

enum class Isa : uint8_t;
struct Kernels;  // cpu/kernels.h

// Tensors are host memory. Calls return when the work is done; one caller at a time (the pool's rule).
class CpuOps : public Ops {
public:
    // The best instruction set this machine has (cpu/isa.h). Not `deterministic`: attention over caches of int8 or int4 blocks
    // rounds queries and the softmax's weights to 8 bits (docs/decisions/013), and products of panels of bf16 may round
    // activations to bf16 (docs/decisions/014), which the trainer does not; sums over many cached keys are cut
    // (cpu/latent_parts.h).
    explicit CpuOps(ThreadPool& pool, bool deterministic = true);
    explicit CpuOps(ThreadPool& pool, Isa isa, bool deterministic = true);  // tests: this one
    [[nodiscard]] DType compute_dtype() const override { return DType::kF32; }

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
    void gather_weight_rows(const Tensor& y, const Weight& w, const Tensor& rows) override;
    // Weights in blocks (cpu/quant_panel.h) and plain ones of BF16 and F16 (cpu/number_panel.h) become panels where they have a
    // multiple of 16 rows.
    [[nodiscard]] Weight pack(const Weight& w, Arena& arena) override;
    void scatter_rows(const Tensor& y, const Tensor& x, const Tensor& rows) override;
    [[nodiscard]] bool caches(DType dtype, BlockType block) const override;
    void scatter_weight_rows(const Weight& y, const Tensor& x, const Tensor& rows) override;

    // ---- norm and rope ----
    void rms_norm(const Tensor& y, const Tensor& x, const Tensor& w, double eps) override;
    void rms_norm_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                           double eps) override;
    void rope_table(const Tensor& table, const Tensor& positions, const Tensor& inv_freq, double magnitude) override;
    void rope(const Tensor& y, const Tensor& x, const Tensor& table, RopePairing pairing, bool inverse) override;

    // ---- matrix products ----
    void matmul(const Tensor& y, const Tensor& x, const Weight& w) override;
    void matmul_dgrad(const Tensor& dx, const Tensor& dy, const Weight& w) override;
    void matmul_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) override;
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
    void latent_attention(const Tensor& u, const Tensor& lse, const Tensor& q, const Weight& latents, const Spans& spans,
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
    [[nodiscard]] bool takes_experts(const Weight& gate, const Weight& up, const Weight& down,
                                     const Tensor& offsets) const override;
    void experts(const Tensor& y, const Tensor& x, const Tensor& source, std::span<const Weight> gates,
                 std::span<const Weight> ups, std::span<const Weight> downs, const Tensor& offsets) override;
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

private:
    ThreadPool& pool_;
    Isa isa_;
    bool deterministic_;
    const Kernels& kernels_;
    Scratch scratch_;
};

}  // namespace fathom
