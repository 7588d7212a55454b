// The instruction set: what hardware must be able to do for this family of models. All above this file is device-free, all
// below it is replaceable: `cpu` (x86-64), `cuda`, `plan` (counts, no data) and, in tests, plain loops over double or dual
// numbers.
//
// Conventions, once for all ops
//   n  rows (tokens) of the batch, h heads, E experts, K experts per token, m = n K dispatched rows.
//   Activations have the back end's compute type (f32 on the CPU, f32 or bf16 on a GPU; the test back ends use f64 and dual
//   numbers), a few of them its precise type; sums are f32 in either. Weights have
//   any storage scheme. Gradients of parameters are f32 (the compute type in tests). Indices are i32. Outputs come first. An op
//   never allocates what outlives it. Rows may be strided (a slice of a wider tensor); the last dimension is contiguous. An
//   output may alias an input only where it says so. A gradient of an activation is written (=), a gradient of a parameter is
//   accumulated (+=). Arithmetic (docs/decisions/001): the bits of a row of an output depend on that row's inputs and on
//   nothing else: not on n, on the other rows, on threads, nor on where the row stands. Reductions over rows (parameter
//   gradients, norms) run in a fixed order, so the same call gives the same bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "ops/route_rule.h"
#include "tensor/tensor.h"

namespace fathom {

// Which keys each query may see. Sequence i owns query rows [cu_q[i], cu_q[i+1]) and len_k(i) keys; its last query is
// aligned with its last key, and a query sees its own key and all earlier ones. len_q <= len_k.
struct Spans {
    Tensor cu_q;         // [sequences + 1] i32
    Tensor cu_k;         // [sequences + 1] i32; keys of sequence i are rows [cu_k[i], cu_k[i+1]) when they lie contiguously
    Tensor block_table;  // [sequences, max_blocks] i32, or absent: key j of sequence i is row j % block of page block_table[i,
                         // j / block]
    int64_t max_q = 0;   // longest len_q
    int64_t max_k = 0;   // longest len_k
};

enum class RopePairing : uint8_t {
    kInterleaved,  // channels (2i, 2i+1): MLA checkpoints
    kHalves,       // channels (i, i + d/2): V1, LLaMA style
};

// Auxiliary balance losses, all differentiated through the affinities P only; how often an expert was chosen is a constant.
// With T tokens in a unit (the batch, or one sequence when per_sequence; units are averaged), p = the normalised affinities
// s / sum s (softmax scores are normalised already), P_i = mean_t p_ti, f_i = (E / (K T)) #{t chose i}:
enum class BalanceLossKind : uint8_t {
    kExpert,  // alpha sum_i f_i P_i                                   DeepSeekMoE 3.3, V2 2.2.3, V3 eq. 17 (per_sequence)
    kDevice,  // alpha sum_d mean_{i in d} f_i * sum_{i in d} P_i      V2 eq. 26
    kCommunication,  // alpha sum_d (D / (M T)) #{t sent to d} * sum P_i      V2 eq. 29
    kSwitch,         // alpha E sum_i F_i P_i, F_i = share of tokens whose first choice is i   Switch Transformer eq. 4
    kGshard,         // alpha / E sum_i (c_i / T) P_i, c_i = tokens whose first choice is i    GShard algorithm 1
    kSquared,        // alpha sum_i (P_i - 1/E)^2
};

struct BalanceLoss {
    BalanceLossKind kind = BalanceLossKind::kExpert;
    double alpha = 0;
    bool per_sequence = false;
    int64_t devices = 1;       // D: experts are split into D equal, contiguous groups
    int64_t device_limit = 1;  // M
};

// One AdamW step (Loshchilov and Hutter 2019): p *= 1 - lr * weight_decay; p -= lr * m^ / (sqrt(v^) + eps).
struct AdamWStep {
    double learning_rate = 0, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1;
    double grad_scale = 1;  // multiplies the gradient first: clipping and the mean over micro-batches
    int64_t step = 1;       // counts from 1
};

class Ops {
public:
    virtual ~Ops() = default;
    [[nodiscard]] virtual DType compute_dtype() const = 0;
    // Of what a narrow compute type would spoil: router logits, affinities and weights, attention's lse, the angles of rope,
    // logits of the vocabulary and losses. f32 where the compute type is bf16, else the compute type.
    [[nodiscard]] virtual DType precise_dtype() const { return compute_dtype(); }
    // Whether tensors may lie in host memory, such as the map of a checkpoint. Where not, write() brings them to the device.
    [[nodiscard]] virtual bool sees_host_memory() const { return true; }

    // first() and second(), neither of whose ops writes what the other's read or write: a device may do both at a time. `share`
    // in (0, 1): of its processors the second had best take no more than that, as when the first is bound by memory.
    virtual void side_by_side(const std::function<void()>& first, const std::function<void()>& second, double share = 1) {
        (void)share;
        first();
        second();
    }

    // ---- memory ----------------------------------------------------------------------------------------------------------
    [[nodiscard]] virtual Buffer allocate(int64_t bytes) = 0;        // device memory, 64-byte aligned
    virtual void write(const Tensor& device, const void* host) = 0;  // contiguous; host may be reused at once
    virtual void read_back(void* host, const Tensor& device) = 0;    // contiguous; waits for all earlier ops
    virtual void fill(const Tensor& y, double value) = 0;            // y = value
    virtual void copy(const Tensor& y, const Tensor& x) = 0;  // y = x: rank <= 4, any strides (0 broadcasts x), any dtypes
    virtual void add(const Tensor& y, const Tensor& a, const Tensor& b) = 0;    // y = a + b [n, d]; y may be a or b
    virtual void add_bias(const Tensor& y, const Tensor& bias) = 0;             // y[i] += bias: [n, d], [d]
    virtual void add_bias_backward(const Tensor& dbias, const Tensor& dy) = 0;  // dbias += sum_i dy[i]
    virtual void sum_heads(const Tensor& y, const Tensor& x) = 0;               // y[i] = sum_j x[i, j]: [n, d], [n, h, d]
    // y[i] = x[rows[i]], converted to y's dtype. Embedding look-up, dispatch to experts, reading a cache.
    virtual void gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) = 0;  // [n, d], [*, d], [n]
    virtual void gather_rows_backward(const Tensor& dx, const Tensor& dy,
                                      const Tensor& rows) = 0;  // dx[rows[i]] += dy[i], in order of i
    // The same from a weight of any scheme: an embedding, a cache. By default only from a plain one.
    virtual void gather_weight_rows(const Tensor& y, const Weight& w, const Tensor& rows) {
        check(w.scheme == Scheme::kPlain, "gather_weight_rows: this device has no quantized embeddings");
        gather_rows(y, w.codes, rows);
    }
    // The weight in the layout that this device multiplies fastest, in memory of `arena`, or itself where that is none. The
    // numbers stay the same. Where `arena` was used, the old codes are no longer needed.
    [[nodiscard]] virtual Weight pack(const Weight& w, Arena& /*arena*/) { return w; }
    // Whether latent_attention and the two around it take rows of this kind as a cache.
    [[nodiscard]] virtual bool caches(DType dtype, BlockType block) const {
        return block == BlockType::kNone && (dtype == DType::kF32 || dtype == DType::kBF16);
    }
    // y[rows[i]] = x[i], converted to y's dtype. Rows are distinct.
    virtual void scatter_rows(const Tensor& y, const Tensor& x, const Tensor& rows) = 0;
    // The same into rows of any scheme that has single rows: writing a cache. By default only into plain ones.
    virtual void scatter_weight_rows(const Weight& y, const Tensor& x, const Tensor& rows) {
        check(y.scheme == Scheme::kPlain, "scatter_weight_rows: this device has no quantized cache");
        scatter_rows(y.codes, x, rows);
    }

    // ---- norm and rope ---------------------------------------------------------------------------------------------------
    // y = w x / sqrt(mean(x^2) + eps) over the last dimension: [n, d], [n, d], [d]. y may be x.
    virtual void rms_norm(const Tensor& y, const Tensor& x, const Tensor& w, double eps) = 0;
    virtual void rms_norm_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                                   double eps) = 0;
    // sum = a + b, y = its norm: what add and rms_norm do, which a device may do in one pass. sum may be a or b.
    virtual void add_rms_norm(const Tensor& y, const Tensor& sum, const Tensor& a, const Tensor& b, const Tensor& w,
                              double eps) {
        add(sum, a, b);
        rms_norm(y, sum, w, eps);
    }
    // table[i] = magnitude * [cos a_0 .. cos a_{d/2-1}, sin a_0 ..], a_j = positions[i] * inv_freq[j] rounded to f32: [n, d],
    // [n], [d/2] f32.
    virtual void rope_table(const Tensor& table, const Tensor& positions, const Tensor& inv_freq, double magnitude) = 0;
    // y = x [n, h, d] rotated by the angles of `table` [n, d]; inverse = by minus the angles, which is also the backward. y may
    // be x.
    virtual void rope(const Tensor& y, const Tensor& x, const Tensor& table, RopePairing pairing, bool inverse) = 0;

    // ---- matrix products -------------------------------------------------------------------------------------------------
    // Each element is ONE chain of fused multiply-adds over ascending k starting from 0, so that all ISA levels and tilings
    // agree. A device may be told not to keep to it for inference (docs/decisions/014), but a row never sees its batch.
    virtual void matmul(const Tensor& y, const Tensor& x, const Weight& w) = 0;  // y = x w^T: [n, out], [n, in], [out, in]
    virtual void matmul_dgrad(const Tensor& dx, const Tensor& dy, const Weight& w) = 0;  // dx = dy w (chain over out)
    virtual void matmul_wgrad(const Tensor& dw, const Tensor& dy,
                              const Tensor& x) = 0;  // dw += dy^T x (chain over n, starting from dw)
    // Experts: rows [offsets[e], offsets[e+1]) belong to expert e; groups may be empty. [m, out], [m, in], E x [out, in], [E +
    // 1].
    virtual void grouped_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w, const Tensor& offsets) = 0;
    virtual void grouped_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w, const Tensor& offsets) = 0;
    virtual void grouped_wgrad(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, const Tensor& offsets) = 0;
    // The same with = in place of +=, for a batch's first gradient: nothing is read, experts without rows get 0.
    virtual void first_matmul_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) {
        fill(dw, 0);
        matmul_wgrad(dw, dy, x);
    }
    virtual void first_grouped_wgrad(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, const Tensor& offsets) {
        for (const Tensor& gradient : dw) fill(gradient, 0);
        grouped_wgrad(dw, dy, x, offsets);
    }
    // Heads: y[:, j] = x[:, j] w_j^T: [n, h, out], [n, h, in], h x [out, in]; batched_dgrad: dx[:, j] = dy[:, j] w_j.
    virtual void batched_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w) = 0;
    virtual void batched_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w) = 0;

    // ---- attention -------------------------------------------------------------------------------------------------------
    // Key of head j at row t = [k[t, j] | k_shared[t]] (k_shared may be absent); s = scale q . key; o = softmax(s) v;
    // lse = log sum exp s. o [n, h, d_v], lse [n, h], q [n, h, d_q], k [m, h, d_k], k_shared [m, d_q - d_k], v [m, h, d_v].
    // Keys are visited in tiles counted from the sequence's first key, so chunking does not change a bit. A block_table is not
    // used.
    virtual void attention(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& k_shared,
                           const Tensor& v, const Spans& spans, double scale) = 0;
    // dk_shared is the sum over heads (absent when k_shared is).
    virtual void attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dk_shared, const Tensor& dv,
                                    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& k_shared,
                                    const Tensor& v, const Tensor& o, const Tensor& lse, const Spans& spans, double scale) = 0;
    // Absorbed MLA (V2 2.1.2): one key/value head for all query heads; the key is the whole latent, the value its first c
    // channels. u [n, h, c], lse [n, h], q [n, h, c + r], latents [m, c + r], or with a block_table pages [blocks, block, c +
    // r], in whatever form the cache has (of kBlocks the last dimension counts bytes).
    virtual void latent_attention(const Tensor& u, const Tensor& lse, const Tensor& q, const Weight& latents,
                                  const Spans& spans, double scale) = 0;

    // ---- mixture of experts ----------------------------------------------------------------------------------------------
    // scores = softmax or sigmoid of logits; indices = the chosen experts, best first, ties to the lower index; weights as
    // RouteRule says, without the bias. [n, K] i32, [n, K], [n, E], [n, E], [E] f32 or absent.
    virtual void route(const Tensor& indices, const Tensor& weights, const Tensor& scores, const Tensor& logits,
                       const Tensor& bias, const RouteRule& rule) = 0;
    // The weights of given indices (routing replay): as route, with indices an input.
    virtual void route_weights(const Tensor& weights, const Tensor& scores, const Tensor& logits, const Tensor& indices,
                               const RouteRule& rule) = 0;
    // dlogits from dweights [n, K] and dscores [n, E] (what the balance losses left; absent = 0). The selection is not
    // differentiated.
    virtual void route_backward(const Tensor& dlogits, const Tensor& dweights, const Tensor& dscores, const Tensor& scores,
                                const Tensor& indices, const RouteRule& rule) = 0;
    // loss[0] += the loss, dscores += its gradient: [1], [n, E], [n, E], [n, K], cu_seqlens [s + 1].
    virtual void balance_loss(const Tensor& loss, const Tensor& dscores, const Tensor& scores, const Tensor& indices,
                              const Tensor& cu_seqlens, const BalanceLoss& rule) = 0;
    // Sorts the n K choices by expert, stably by token. offsets [E + 1]; source [m]: token of sorted row; slot [n, K]: sorted
    // row of a choice.
    virtual void sort_by_expert(const Tensor& offsets, const Tensor& source, const Tensor& slot, const Tensor& indices) = 0;
    // y[i] = (sum_k weights[i, k] x[slot[i, k]] in order of k) + base[i]; weights absent = 1 (then it is the backward of the
    // dispatch gather), base [n, d] absent = 0. y may be base.
    virtual void combine(const Tensor& y, const Tensor& x, const Tensor& slot, const Tensor& weights, const Tensor& base) = 0;
    // dx[slot[i, k]] = weights[i, k] dy[i];  dweights[i, k] = dy[i] . x[slot[i, k]].
    virtual void combine_backward(const Tensor& dx, const Tensor& dweights, const Tensor& dy, const Tensor& x,
                                  const Tensor& slot, const Tensor& weights) = 0;
    virtual void add_expert_load(const Tensor& load,
                                 const Tensor& offsets) = 0;  // load[e] += offsets[e+1] - offsets[e]: [E] i64
    // V3 2.1.2: bias[e] -= gamma where load is above its mean, += gamma below, unchanged when equal. [E] f32, [E] i64.
    virtual void update_router_bias(const Tensor& bias, const Tensor& load, double gamma) = 0;

    // ---- activation and loss ---------------------------------------------------------------------------------------------
    virtual void swiglu(const Tensor& y, const Tensor& gate, const Tensor& up) = 0;  // y = silu(gate) up; y may be gate or up
    // The same of products: gate = x w_gate^T and up = x w_up^T, rounded to y's type, w = [w_gate; w_up]. `both` [.., 2 width]
    // is room for them, whatever it holds afterwards. A device may write y alone.
    virtual void matmul_swiglu(const Tensor& y, const Tensor& both, const Tensor& x, const Weight& w) {
        matmul(both, x, w);
        swiglu(y, both.slice(1, 0, y.dim(1)), both.slice(1, y.dim(1), both.dim(1)));
    }
    virtual void grouped_matmul_swiglu(const Tensor& y, const Tensor& both, const Tensor& x, std::span<const Weight> w,
                                       const Tensor& offsets) {
        grouped_matmul(both, x, w, offsets);
        swiglu(y, both.slice(1, 0, y.dim(1)), both.slice(1, y.dim(1), both.dim(1)));
    }
    // What chosen experts say of their rows, for inference: y = down_e (silu(gate_e x[source]) up_e x[source]) of rows sorted
    // by expert, [m, hidden], [n, hidden], [m], E weights each, [E + 1]. The bits of gather_rows, grouped_matmul and swiglu;
    // for a device that says, of the first expert's weights and the offsets, that it does better than those one by one.
    [[nodiscard]] virtual bool takes_experts(const Weight& /*gate*/, const Weight& /*up*/, const Weight& /*down*/,
                                             const Tensor& /*offsets*/) const {
        return false;
    }
    virtual void experts(const Tensor& /*y*/, const Tensor& /*x*/, const Tensor& /*source*/, std::span<const Weight> /*gates*/,
                         std::span<const Weight> /*ups*/, std::span<const Weight> /*downs*/, const Tensor& /*offsets*/) {
        check(false, "experts: this device takes the ops one by one");
    }
    virtual void swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy, const Tensor& gate,
                                 const Tensor& up) = 0;
    // loss[i] = -log softmax(logits[i])[targets[i]], 0 where targets[i] < 0. [n], [n, V], [n].
    virtual void cross_entropy(const Tensor& loss, const Tensor& logits, const Tensor& targets) = 0;
    // dlogits = scale (softmax(logits) - onehot(targets)), 0 where targets < 0. dlogits may be logits.
    virtual void cross_entropy_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets, double scale) = 0;
    // What the policy says of given tokens. p = softmax(logits[i] / temperature) over the ids that `allowed` admits; logprob[i]
    // = log p(targets[i]), entropy[i] = -sum p log p; both 0 where targets[i] < 0. With temperature 1 and every id admitted the
    // logprob is minus cross_entropy, to the bit. [n], [n] or absent, [n, V], [n] i32, [n, ceil(V / 32)] i32 or absent: id v is
    // admitted if bit v % 32 of word v / 32 is set; the target always counts as admitted.
    virtual void token_logprob(const Tensor& logprob, const Tensor& entropy, const Tensor& logits, const Tensor& targets,
                               const Tensor& allowed, double temperature) = 0;
    // dlogits[i] = dlogprob[i] / temperature * (onehot(targets[i]) - p), 0 where targets[i] < 0. dlogits may be logits.
    virtual void token_logprob_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets,
                                        const Tensor& allowed, const Tensor& dlogprob, double temperature) = 0;
    // Distillation. p = softmax(logits[i]), q = softmax(teacher[i]): loss[i] = sum q log(q / p), or where `reverse` sum p log(p
    // / q); 0 where targets[i] < 0 (targets only mask). [n], [n, V], [n, V], [n] i32.
    virtual void kl_divergence(const Tensor& loss, const Tensor& logits, const Tensor& teacher, const Tensor& targets,
                               bool reverse) = 0;
    // dlogits = scale (p - q), or where `reverse` scale p (log p - log q - loss); 0 where targets < 0. dlogits may be logits.
    virtual void kl_divergence_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& teacher,
                                        const Tensor& targets, bool reverse, double scale) = 0;

    // ---- optimizer -------------------------------------------------------------------------------------------------------
    // master, grad: f32, m, v: f32 or bf16, all of one shape. param receives the new master in its own dtype; it may be the
    // master itself. The new master is made with the moments before they are rounded to what they are kept in.
    virtual void adamw(const Tensor& param, const Tensor& master, const Tensor& m, const Tensor& v, const Tensor& grad,
                       const AdamWStep& step) = 0;
    virtual void square_norm(const Tensor& sum,
                             const Tensor& x) = 0;  // sum[0] += sum x^2, accumulated in f64: [1] f64, any contiguous x
};

}  // namespace fathom
