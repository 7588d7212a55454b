#include "ops/plan_ops.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace fathom {
namespace {

double stored_bytes(const Weight& w) { return static_cast<double>(w.bytes()); }

// Bytes of the matrices that `rows` rows can reach: at most one per row.
double stored_bytes(std::span<const Weight> w, int64_t rows) {
    const size_t reached = std::min(w.size(), static_cast<size_t>(rows));
    return std::accumulate(w.begin(), w.begin() + static_cast<int64_t>(reached), 0.0,
                           [](double sum, const Weight& one) { return sum + stored_bytes(one); });
}

double product_flops(int64_t rows, int64_t out, int64_t in) {
    return 2.0 * static_cast<double>(rows) * static_cast<double>(out) * static_cast<double>(in);
}

// Visible (query, key) pairs of one head when all sequences are equally long.
double causal_pairs(int64_t queries, int64_t keys, const Spans& spans) {
    const auto sequences = static_cast<double>(spans.cu_q.dim(0) - 1);
    if (sequences == 0) return 0;
    const double len_q = static_cast<double>(queries) / sequences, len_k = static_cast<double>(keys) / sequences;
    return sequences * len_q * (len_k - len_q + (len_q + 1) / 2);
}

// Rows of `x` as `rows` selects them.
Tensor selected(const Tensor& x, int64_t rows) {
    Tensor part = x;
    part.shape[0] = rows;
    return part;
}

}  // namespace

std::string_view name_of(OpFamily family) {
    constexpr std::array<std::string_view, kOpFamilies> kNames{"memory",  "norm and rope",       "matmul",   "attention",
                                                               "experts", "activation and loss", "optimizer"};
    return kNames[static_cast<size_t>(family)];
}

OpCost& OpCost::operator+=(const OpCost& other) {
    calls += other.calls;
    flops += other.flops;
    weight_bytes += other.weight_bytes;
    read_bytes += other.read_bytes;
    written_bytes += other.written_bytes;
    return *this;
}

OpCost PlanOps::total() const {
    OpCost sum;
    for (const OpCost& cost : costs_) sum += cost;
    return sum;
}

void PlanOps::clear() { costs_ = {}; }

void PlanOps::count(OpFamily family, const Tensors& written, const Tensors& read, double flops, double weight_bytes) {
    const auto bytes = [](const Tensors& tensors) {
        return std::accumulate(tensors.begin(), tensors.end(), 0.0,
                               [](double sum, const Tensor& t) { return sum + static_cast<double>(t.bytes()); });
    };
    costs_[static_cast<size_t>(family)] += {1, flops, weight_bytes, bytes(read), bytes(written)};
}

// ---- memory ----

Buffer PlanOps::allocate(int64_t bytes) {
    allocated_ += bytes;
    return {nullptr, bytes, [](void*) {}};
}

void PlanOps::write(const Tensor& device, const void* /*host*/) { count(OpFamily::kMemory, {device}, {}); }

void PlanOps::read_back(void* host, const Tensor& device) {
    std::memset(host, 0, static_cast<size_t>(device.bytes()));
    count(OpFamily::kMemory, {}, {device});
}

void PlanOps::fill(const Tensor& y, double /*value*/) { count(OpFamily::kMemory, {y}, {}); }
void PlanOps::copy(const Tensor& y, const Tensor& x) { count(OpFamily::kMemory, {y}, {x}); }
void PlanOps::add(const Tensor& y, const Tensor& a, const Tensor& b) { count(OpFamily::kMemory, {y}, {a, b}); }
void PlanOps::add_bias(const Tensor& y, const Tensor& bias) { count(OpFamily::kMemory, {y}, {y, bias}); }

void PlanOps::add_bias_backward(const Tensor& dbias, const Tensor& dy) { count(OpFamily::kMemory, {dbias}, {dbias, dy}); }

void PlanOps::sum_heads(const Tensor& y, const Tensor& x) { count(OpFamily::kMemory, {y}, {x}); }

void PlanOps::gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
    count(OpFamily::kMemory, {y}, {selected(x, rows.dim(0)), rows});
}

void PlanOps::gather_rows_backward(const Tensor& dx, const Tensor& dy, const Tensor& rows) {
    const Tensor touched = selected(dx, rows.dim(0));
    count(OpFamily::kMemory, {touched}, {touched, dy, rows});
}

void PlanOps::scatter_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
    count(OpFamily::kMemory, {selected(y, rows.dim(0))}, {x, rows});
}

// ---- norm and rope ----

void PlanOps::rms_norm(const Tensor& y, const Tensor& x, const Tensor& w, double /*eps*/) {
    count(OpFamily::kNormRope, {y}, {x}, 0, static_cast<double>(w.bytes()));
}

void PlanOps::rms_norm_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                                double /*eps*/) {
    count(OpFamily::kNormRope, {dx, dw}, {dw, dy, x}, 0, static_cast<double>(w.bytes()));
}

void PlanOps::rope_table(const Tensor& table, const Tensor& positions, const Tensor& inv_freq, double /*magnitude*/) {
    count(OpFamily::kNormRope, {table}, {positions, inv_freq});
}

void PlanOps::rope(const Tensor& y, const Tensor& x, const Tensor& table, RopePairing /*pairing*/, bool /*inverse*/) {
    count(OpFamily::kNormRope, {y}, {x, table});
}

// ---- matrix products ----

void PlanOps::matmul(const Tensor& y, const Tensor& x, const Weight& w) {
    count(OpFamily::kMatmul, {y}, {x}, product_flops(x.dim(0), w.out_features(), w.in_features()), stored_bytes(w));
}

void PlanOps::matmul_dgrad(const Tensor& dx, const Tensor& dy, const Weight& w) {
    count(OpFamily::kMatmul, {dx}, {dy}, product_flops(dy.dim(0), w.out_features(), w.in_features()), stored_bytes(w));
}

void PlanOps::matmul_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) {
    count(OpFamily::kMatmul, {dw}, {dw, dy, x}, product_flops(x.dim(0), dw.dim(0), dw.dim(1)));
}

void PlanOps::grouped_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w, const Tensor& offsets) {
    count(OpFamily::kMatmul, {y}, {x, offsets}, product_flops(x.dim(0), y.dim(1), x.dim(1)), stored_bytes(w, x.dim(0)));
}

void PlanOps::grouped_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w, const Tensor& offsets) {
    count(OpFamily::kMatmul, {dx}, {dy, offsets}, product_flops(dy.dim(0), dy.dim(1), dx.dim(1)), stored_bytes(w, dy.dim(0)));
}

void PlanOps::grouped_wgrad(std::span<const Tensor> dw, const Tensor& dy, const Tensor& x, const Tensor& offsets) {
    count(OpFamily::kMatmul, {}, {dy, x, offsets}, product_flops(x.dim(0), dy.dim(1), x.dim(1)));
    OpCost& cost = costs_[static_cast<size_t>(OpFamily::kMatmul)];
    for (const Tensor& one : dw.first(std::min(dw.size(), static_cast<size_t>(x.dim(0))))) {
        cost.read_bytes += static_cast<double>(one.bytes());
        cost.written_bytes += static_cast<double>(one.bytes());
    }
}

void PlanOps::batched_matmul(const Tensor& y, const Tensor& x, std::span<const Weight> w) {
    const auto heads = static_cast<int64_t>(w.size());
    count(OpFamily::kMatmul, {y}, {x}, product_flops(x.dim(0) * heads, y.dim(2), x.dim(2)), stored_bytes(w, heads));
}

void PlanOps::batched_dgrad(const Tensor& dx, const Tensor& dy, std::span<const Weight> w) {
    const auto heads = static_cast<int64_t>(w.size());
    count(OpFamily::kMatmul, {dx}, {dy}, product_flops(dy.dim(0) * heads, dy.dim(2), dx.dim(2)), stored_bytes(w, heads));
}

// ---- attention ----

void PlanOps::attention(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& k_shared,
                        const Tensor& v, const Spans& spans, double /*scale*/) {
    const double dot = static_cast<double>(q.dim(1) * (q.dim(2) + v.dim(2)));  // multiply-adds per pair: scores, values
    count(OpFamily::kAttention, {o, lse}, {q, k, k_shared, v}, 2 * dot * causal_pairs(q.dim(0), k.dim(0), spans));
}

void PlanOps::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dk_shared, const Tensor& dv,
                                 const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& k_shared, const Tensor& v,
                                 const Tensor& o, const Tensor& lse, const Spans& spans, double /*scale*/) {
    const double dot = static_cast<double>(q.dim(1) * (3 * q.dim(2) + 2 * v.dim(2)));  // scores, dq, dk and dp, dv
    count(OpFamily::kAttention, {dq, dk, dk_shared, dv}, {dout, q, k, k_shared, v, o, lse},
          2 * dot * causal_pairs(q.dim(0), k.dim(0), spans));
}

void PlanOps::latent_attention(const Tensor& u, const Tensor& lse, const Tensor& q, const Weight& latents, const Spans& spans,
                               double /*scale*/) {
    const int64_t sequences = spans.cu_q.dim(0) - 1, keys = spans.block_table ? sequences * spans.max_k : latents.codes.dim(0);
    const double dot = static_cast<double>(q.dim(1) * (q.dim(2) + u.dim(2)));
    count(OpFamily::kAttention, {u, lse},
          {q, spans.block_table, Tensor(nullptr, latents.codes.dtype, {keys, latents.codes.dim(-1)})},
          2 * dot * causal_pairs(q.dim(0), keys, spans));
}

// ---- mixture of experts ----

void PlanOps::route(const Tensor& indices, const Tensor& weights, const Tensor& scores, const Tensor& logits,
                    const Tensor& bias, const RouteRule& /*rule*/) {
    count(OpFamily::kExperts, {indices, weights, scores}, {logits, bias});
}

void PlanOps::route_weights(const Tensor& weights, const Tensor& scores, const Tensor& logits, const Tensor& indices,
                            const RouteRule& /*rule*/) {
    count(OpFamily::kExperts, {weights, scores}, {logits, indices});
}

void PlanOps::route_backward(const Tensor& dlogits, const Tensor& dweights, const Tensor& dscores, const Tensor& scores,
                             const Tensor& indices, const RouteRule& /*rule*/) {
    count(OpFamily::kExperts, {dlogits}, {dweights, dscores, scores, indices});
}

void PlanOps::balance_loss(const Tensor& loss, const Tensor& dscores, const Tensor& scores, const Tensor& indices,
                           const Tensor& cu_seqlens, const BalanceLoss& /*rule*/) {
    count(OpFamily::kExperts, {loss, dscores}, {loss, dscores, scores, indices, cu_seqlens});
}

void PlanOps::sort_by_expert(const Tensor& offsets, const Tensor& source, const Tensor& slot, const Tensor& indices) {
    count(OpFamily::kExperts, {offsets, source, slot}, {indices});
}

void PlanOps::combine(const Tensor& y, const Tensor& x, const Tensor& slot, const Tensor& weights, const Tensor& base) {
    count(OpFamily::kExperts, {y}, {x, slot, weights, base});
}

void PlanOps::combine_backward(const Tensor& dx, const Tensor& dweights, const Tensor& dy, const Tensor& x, const Tensor& slot,
                               const Tensor& weights) {
    count(OpFamily::kExperts, {dx, dweights}, {dy, x, slot, weights});
}

void PlanOps::add_expert_load(const Tensor& load, const Tensor& offsets) { count(OpFamily::kExperts, {load}, {load, offsets}); }

void PlanOps::update_router_bias(const Tensor& bias, const Tensor& load, double /*gamma*/) {
    count(OpFamily::kExperts, {bias}, {bias, load});
}

// ---- activation, loss, optimizer ----

void PlanOps::swiglu(const Tensor& y, const Tensor& gate, const Tensor& up) {
    count(OpFamily::kActivationLoss, {y}, {gate, up});
}

void PlanOps::swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy, const Tensor& gate, const Tensor& up) {
    count(OpFamily::kActivationLoss, {dgate, dup}, {dy, gate, up});
}

void PlanOps::cross_entropy(const Tensor& loss, const Tensor& logits, const Tensor& targets) {
    count(OpFamily::kActivationLoss, {loss}, {logits, targets});
}

void PlanOps::cross_entropy_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets, double /*scale*/) {
    count(OpFamily::kActivationLoss, {dlogits}, {logits, targets});
}

void PlanOps::token_logprob(const Tensor& logprob, const Tensor& entropy, const Tensor& logits, const Tensor& targets,
                            const Tensor& allowed, double /*temperature*/) {
    count(OpFamily::kActivationLoss, {logprob, entropy}, {logits, targets, allowed});
}

void PlanOps::token_logprob_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& targets, const Tensor& allowed,
                                     const Tensor& dlogprob, double /*temperature*/) {
    count(OpFamily::kActivationLoss, {dlogits}, {logits, targets, allowed, dlogprob});
}

void PlanOps::kl_divergence(const Tensor& loss, const Tensor& logits, const Tensor& teacher, const Tensor& targets,
                            bool /*reverse*/) {
    count(OpFamily::kActivationLoss, {loss}, {logits, teacher, targets});
}

void PlanOps::kl_divergence_backward(const Tensor& dlogits, const Tensor& logits, const Tensor& teacher, const Tensor& targets,
                                     bool /*reverse*/, double /*scale*/) {
    count(OpFamily::kActivationLoss, {dlogits}, {logits, teacher, targets});
}

void PlanOps::adamw(const Tensor& param, const Tensor& master, const Tensor& m, const Tensor& v, const Tensor& grad,
                    const AdamWStep& /*step*/) {
    count(OpFamily::kOptimizer, {param, master, m, v}, {master, m, v, grad});
}

void PlanOps::square_norm(const Tensor& sum, const Tensor& x) { count(OpFamily::kOptimizer, {sum}, {sum, x}); }

}  // namespace fathom
