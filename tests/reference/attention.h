// Attention of ReferenceOps, one query and one head at a time. Included by reference_ops.cpp only.
#pragma once

#include <vector>

#include "reference/reference_ops.h"

namespace fathom {

// softmax of scores in place; returns log sum exp.
template <class T>
T softmax(std::vector<T>& scores) {
    using std::exp;
    using std::log;
    T largest = scores.front(), sum = 0;
    for (const T& s : scores) largest = s > largest ? s : largest;
    for (const T& s : scores) sum += exp(s - largest);
    const T log_sum = largest + log(sum);
    for (T& s : scores) s = exp(s - log_sum);
    return log_sum;
}

// Calls f(sequence, query row, number of visible keys) for every query row.
template <class F>
void for_each_query(const Spans& spans, F&& f) {
    const Values<int64_t> cu_q(spans.cu_q), cu_k(spans.cu_k);
    for (int64_t s = 0; s + 1 < cu_q.dim(0); ++s) {
        const int64_t len_q = cu_q(s + 1) - cu_q(s), len_k = cu_k(s + 1) - cu_k(s);
        check(len_q <= len_k, "attention: more queries than keys");
        for (int64_t i = 0; i < len_q; ++i) f(s, cu_q(s) + i, len_k - len_q + i + 1);
    }
}

// q[t, j] . [k[row, j] | k_shared[row]]
template <class T>
T dot_key(const Values<T>& q, const Values<T>& k, const Values<T>& shared, int64_t t, int64_t j, int64_t row) {
    T sum = 0;
    for (int64_t c = 0; c < k.dim(2); ++c) sum += q(t, j, c) * k(row, j, c);
    for (int64_t c = k.dim(2); c < q.dim(2); ++c) sum += q(t, j, c) * shared(row, c - k.dim(2));
    return sum;
}

template <class T>
void ReferenceOps<T>::attention(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& k_shared,
                                const Tensor& v, const Spans& spans, double scale) {
    const Values<T> query(q), key(k), shared(k_shared), value(v);
    const Values<int64_t> cu_k(spans.cu_k);
    Values<T> out(o), log_sums(lse);
    for_each_query(spans, [&](int64_t s, int64_t t, int64_t keys) {
        for (int64_t j = 0; j < query.dim(1); ++j) {
            std::vector<T> p;
            for (int64_t i = 0; i < keys; ++i) p.push_back(T(scale) * dot_key(query, key, shared, t, j, cu_k(s) + i));
            log_sums(t, j) = softmax(p);
            for (int64_t c = 0; c < value.dim(2); ++c) {
                T sum = 0;
                for (int64_t i = 0; i < keys; ++i) sum += p[static_cast<size_t>(i)] * value(cu_k(s) + i, j, c);
                out(t, j, c) = sum;
            }
        }
    });
    out.store(o);
    log_sums.store(lse);
}

// With p = exp(s - lse): dv += p do, dp = do . v, ds = p (dp - do . o), dq += scale ds k, dk += scale ds q.
template <class T>
void ReferenceOps<T>::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dk_shared, const Tensor& dv,
                                         const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& k_shared,
                                         const Tensor& v, const Tensor& o, const Tensor& lse, const Spans& spans,
                                         double scale) {
    using std::exp;
    const Values<T> query(q), key(k), shared(k_shared), value(v), out(o), log_sums(lse), grad(dout);
    const Values<int64_t> cu_k(spans.cu_k);
    const int64_t d_k = key.dim(2), d_q = query.dim(2), d_v = value.dim(2);
    Values<T> dquery(query.dim(0), query.dim(1), d_q), dkey(key.dim(0), key.dim(1), d_k),
        dvalue(value.dim(0), value.dim(1), d_v);
    Values<T> dshared(key.dim(0), d_q - d_k);
    for_each_query(spans, [&](int64_t s, int64_t t, int64_t keys) {
        for (int64_t j = 0; j < query.dim(1); ++j) {
            for (int64_t row = cu_k(s); row < cu_k(s) + keys; ++row) {
                const T p = exp(T(scale) * dot_key(query, key, shared, t, j, row) - log_sums(t, j));
                T difference = 0;  // dp - do . o
                for (int64_t c = 0; c < d_v; ++c) {
                    difference += grad(t, j, c) * (value(row, j, c) - out(t, j, c));
                    dvalue(row, j, c) += p * grad(t, j, c);
                }
                const T ds = T(scale) * p * difference;
                for (int64_t c = 0; c < d_q; ++c) {
                    dquery(t, j, c) += ds * (c < d_k ? key(row, j, c) : shared(row, c - d_k));
                    (c < d_k ? dkey(row, j, c) : dshared(row, c - d_k)) += ds * query(t, j, c);
                }
            }
        }
    });
    dquery.store(dq);
    dkey.store(dk);
    dvalue.store(dv);
    if (dk_shared) dshared.store(dk_shared);
}

template <class T>
void ReferenceOps<T>::latent_attention(const Tensor& u, const Tensor& lse, const Tensor& q, const Weight& cache,
                                       const Spans& spans, double scale) {
    check(cache.scheme == Scheme::kPlain, "latent_attention: the reference reads plain latents");
    const Tensor& latents = cache.codes;
    const Values<T> query(q);
    const Values<int64_t> cu_k(spans.cu_k), pages(spans.block_table);
    // Rows of all latents, paged or not.
    const int64_t block = spans.block_table ? latents.dim(1) : 0;
    const Values<T> latent(block > 0 ? latents.view({latents.dim(0) * block, latents.dim(2)}) : latents);
    const auto row = [&](int64_t s, int64_t i) { return block > 0 ? pages(s, i / block) * block + i % block : cu_k(s) + i; };
    Values<T> out(u), log_sums(lse);
    for_each_query(spans, [&](int64_t s, int64_t t, int64_t keys) {
        for (int64_t j = 0; j < query.dim(1); ++j) {
            std::vector<T> p;
            for (int64_t i = 0; i < keys; ++i) {
                T sum = 0;
                for (int64_t c = 0; c < query.dim(2); ++c) sum += query(t, j, c) * latent(row(s, i), c);
                p.push_back(T(scale) * sum);
            }
            log_sums(t, j) = softmax(p);
            for (int64_t c = 0; c < out.dim(2); ++c) {
                T sum = 0;
                for (int64_t i = 0; i < keys; ++i) sum += p[static_cast<size_t>(i)] * latent(row(s, i), c);
                out(t, j, c) = sum;
            }
        }
    });
    out.store(u);
    log_sums.store(lse);
}

}  // namespace fathom
