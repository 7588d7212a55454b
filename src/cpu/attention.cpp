#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/attention_spans.h"
#include "cpu/convert.h"
#include "cpu/cpu_ops.h"
#include "cpu/rows.h"
#include "ops/shape_check.h"

namespace fathom {
namespace {

// Softmax of s in place; returns log sum exp.
float soften(const Kernels& kernels, float* s, int64_t n) {
    const float shift = kernels.largest(s, n), sum = kernels.sum_exp(s, shift, n);
    kernels.exp_scaled(s, s, shift, 1 / sum, n);
    return shift + std::log(sum);
}

}  // namespace

void CpuOps::attention(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& k_shared,
                       const Tensor& v, const Spans& spans, double scale) {
    const int64_t h = q.dim(1), d_q = q.dim(2), d_k = k.dim(2), d_v = v.dim(2), d_s = d_q - d_k;
    pool_.parallel_for(sequences_of(spans) * h, 1, [&](int64_t begin, int64_t end, int thread) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t j = task % h;
            const SequenceSpan span = sequence_of(spans, task / h);
            float* s = scratch_.of_thread<float>(thread, span.len_k + 1);
            for (int64_t i = 0; i < span.len_q; ++i) {
                const int64_t keys = span.visible(i);
                const float* query = row(q, span.q0 + i, j);
                for (int64_t t = 0; t < keys; ++t) {
                    s[t] = kernels_.dot(query, row(k, span.k0 + t, j), d_k);
                    if (k_shared) s[t] += kernels_.dot(query + d_k, row(k_shared, span.k0 + t), d_s);
                    s[t] *= static_cast<float>(scale);
                }
                row(lse, span.q0 + i)[j] = soften(kernels_, s, keys);
                std::vector<const float*> rows;
                for (int64_t t = 0; t < keys; ++t) rows.push_back(row(v, span.k0 + t, j));
                kernels_.weighted_sum(row(o, span.q0 + i, j), rows.data(), s, keys, d_v);
            }
        }
    });
}

void CpuOps::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dk_shared, const Tensor& dv,
                                const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& k_shared, const Tensor& v,
                                const Tensor& o, const Tensor& lse, const Spans& spans, double scale) {
    const int64_t h = q.dim(1), d_q = q.dim(2), d_k = k.dim(2), d_v = v.dim(2), d_s = d_q - d_k;
    for (const Tensor& t : {dq, dk, dv}) fill(t, 0);
    if (dk_shared) fill(dk_shared, 0);
    for (int64_t sequence = 0; sequence < sequences_of(spans); ++sequence) {
        const SequenceSpan span = sequence_of(spans, sequence);
        for (int64_t j = 0; j < h; ++j)
            for (int64_t i = 0; i < span.len_q; ++i) {
                const int64_t r = span.q0 + i;
                const float delta = kernels_.dot(row(dout, r, j), row(o, r, j), d_v);
                for (int64_t t = span.k0; t < span.k0 + span.visible(i); ++t) {
                    float s = kernels_.dot(row(q, r, j), row(k, t, j), d_k);
                    if (k_shared) s += kernels_.dot(row(q, r, j) + d_k, row(k_shared, t), d_s);
                    const float p = std::exp(s * static_cast<float>(scale) - row(lse, r)[j]);
                    const float ds = p * (kernels_.dot(row(dout, r, j), row(v, t, j), d_v) - delta) * static_cast<float>(scale);
                    for (int64_t c = 0; c < d_v; ++c) row(dv, t, j)[c] += p * row(dout, r, j)[c];
                    for (int64_t c = 0; c < d_k; ++c) {
                        row(dk, t, j)[c] += ds * row(q, r, j)[c];
                        row(dq, r, j)[c] += ds * row(k, t, j)[c];
                    }
                    for (int64_t c = 0; c < d_s; ++c) {
                        row(dk_shared, t)[c] += ds * row(q, r, j)[d_k + c];
                        row(dq, r, j)[d_k + c] += ds * row(k_shared, t)[c];
                    }
                }
            }
    }
}

void CpuOps::latent_attention(const Tensor& u, const Tensor& lse, const Tensor& q, const Tensor& latents, const Spans& spans,
                              double scale) {
    const int64_t h = q.dim(1), d = q.dim(2), c = u.dim(2);
    for (int64_t sequence = 0; sequence < sequences_of(spans); ++sequence) {
        const SequenceSpan span = sequence_of(spans, sequence);
        std::vector<float> keys(static_cast<size_t>(span.len_k * d)), s(static_cast<size_t>(span.len_k));
        std::vector<const float*> rows;
        for (int64_t t = 0; t < span.len_k; ++t) {
            const std::byte* from = row_bytes(latents, span.k0 + t);
            if (spans.block_table) {
                const int64_t block = latents.dim(1), page = row<int32_t>(spans.block_table, sequence)[t / block];
                from = latents.as<std::byte>() +
                       (page * latents.stride[0] + t % block * latents.stride[1]) * size_of(latents.dtype);
            }
            rows.push_back(keys.data() + t * d);
            convert_row(kernels_, keys.data() + t * d, DType::kF32, 1, from, latents.dtype, 1, d);
        }
        for (int64_t i = 0; i < span.len_q; ++i)
            for (int64_t j = 0; j < h; ++j) {
                for (int64_t t = 0; t < span.visible(i); ++t)
                    s[static_cast<size_t>(t)] =
                        kernels_.dot(row(q, span.q0 + i, j), rows[static_cast<size_t>(t)], d) * static_cast<float>(scale);
                row(lse, span.q0 + i)[j] = soften(kernels_, s.data(), span.visible(i));
                kernels_.weighted_sum(row(u, span.q0 + i, j), rows.data(), s.data(), span.visible(i), c);
            }
    }
}

}  // namespace fathom
