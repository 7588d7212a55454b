// Template behind AttentionKernels::backward. Per (sequence, head), with P recomputed from lse (Dao et al. 2022):
//   delta = dO . O,  S^T = K (scale Q)^T,  P = exp(S - lse),  dP^T = V dO^T,  dS = P (dP - delta),
//   dV += P^T dO,  dQ += scale dS K,  dK += dS^T (scale Q).
// Query tiles outside, key tiles inside, both ascending: that is the order of every sum. Lanes are queries in S, dP and dQ,
// channels in dV and dK. 2 (3 d_q + 2 d_v) FLOP per (query, key).
#pragma once

#include "cpu/attention_kernels.h"

namespace fathom {

template <class V>
struct AttentionBackward {
    using T = AttentionTemplates<V>;
    using Product = TileProduct<V>;
    static constexpr int64_t kLanes = 16;

    // Where the pieces of one task lie in its scratch memory.
    struct Space {
        int64_t q_width, v_width;              // whole vectors
        float *q, *dout;                       // transposed: [d_q, 64], [d_v, 64]; q is scaled
        float *q_rows, *dout_rows;             // [64, q_width], [64, v_width]; q is scaled
        float* dq;                             // [d_q, 64]
        float *s, *dp;                         // [64 keys, 64]
        float *keys, *values;                  // [64, kRowStride]
        float *dk, *dv;                        // [len_k, q_width], [len_k, v_width]
        float *lse, *delta, *visible, *scale;  // [64]

        Space(const AttentionBackwardTask& task, float* next)
            : q_width(T::vectors_of(task.d_q) * kLanes),
              v_width(T::vectors_of(task.d_v) * kLanes) {
            const auto take = [&next](int64_t count) {
                float* block = next;
                next += count;
                return block;
            };
            q = take(q_width * kQueryLanes);
            dout = take(v_width * kQueryLanes);
            q_rows = take(q_width * kQueryLanes);
            dout_rows = take(v_width * kQueryLanes);
            dq = take(q_width * kQueryLanes);
            s = take(kKeyTile * kQueryLanes);
            dp = take(kKeyTile * kQueryLanes);
            keys = take(kKeyTile * kRowStride);
            values = take(kKeyTile * kRowStride);
            lse = take(kQueryLanes);
            delta = take(kQueryLanes);
            visible = take(kQueryLanes);
            scale = take(kQueryLanes);
            dk = take(task.len_k * q_width);
            dv = take(task.len_k * v_width);
        }
    };

    static void load_queries(const AttentionBackwardTask& task, const Space& at, int64_t begin, int64_t count) {
        const float *q[kQueryLanes], *dout[kQueryLanes];
        for (int64_t i = 0; i < kQueryLanes; ++i) {
            const int64_t row = begin + (i < count ? i : 0);
            q[i] = task.q + row * task.q_stride;
            dout[i] = task.dout + row * task.dout_stride;
            at.visible[i] = static_cast<float>(task.len_k - task.len_q + row + 1);
            at.lse[i] = task.lse[row * task.lse_stride];
            at.delta[i] = i < count ? RowKernels<V>::dot(dout[i], task.o + row * task.o_stride, task.d_v) : 0.0f;
            at.scale[i] = task.scale;
        }
        T::pack_transposed(at.q, q, count, task.d_q, task.scale);
        T::pack_transposed(at.dout, dout, count, task.d_v, 1.0f);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t c = 0; c < at.q_width || c < at.v_width; c += kLanes) {
                if (c < at.q_width)
                    (V::load(q[i] + c, rest(task.d_q - c)) * V::all(task.scale)).store(at.q_rows + i * at.q_width + c);
                if (c < at.v_width) V::load(dout[i] + c, rest(task.d_v - c)).store(at.dout_rows + i * at.v_width + c);
            }
    }
    static int64_t rest(int64_t n) { return n < kLanes ? n : kLanes; }

    // s becomes P, dp becomes dS; [keys, 64].
    static void differentiate(const Space& at, int64_t begin, int64_t keys, int64_t vectors, bool masked) {
        for (int64_t j = 0; j < vectors * kLanes; j += kLanes) {
            const V lse = V::load(at.lse + j), delta = V::load(at.delta + j), visible = V::load(at.visible + j);
            for (int64_t t = 0; t < keys; ++t) {
                float *s = at.s + t * kQueryLanes + j, *dp = at.dp + t * kQueryLanes + j;
                V p = exp(V::load(s) - lse);
                if (masked) p = V::if_less(V::all(static_cast<float>(begin + t)), visible, p, V::zero());
                p.store(s);
                (p * (V::load(dp) - delta)).store(dp);
            }
        }
    }

    static void tile(const AttentionBackwardTask& task, const Space& at, int64_t begin, int64_t keys, int64_t queries,
                     bool masked) {
        const int64_t vectors = T::vectors_of(queries);
        const auto start = begin == 0 ? TileStart::kZero : TileStart::kAccumulate;
        T::load_rows(at.keys, task.keys, begin, keys);
        if (task.shared.width > 0) T::load_rows(at.keys, task.shared, begin, keys, task.keys.width);
        T::load_rows(at.values, task.values, begin, keys);
        Product{at.s, kQueryLanes, at.keys, 1, at.q, kQueryLanes, task.d_q, TileStart::kZero, nullptr}.template run<kRowStride>(
            keys, vectors);
        Product{at.dp, kQueryLanes, at.values, 1, at.dout, kQueryLanes, task.d_v, TileStart::kZero, nullptr}
            .template run<kRowStride>(keys, vectors);
        differentiate(at, begin, keys, vectors, masked);
        Product{at.dv + begin * at.v_width, at.v_width, at.s, 1, at.dout_rows, at.v_width, queries,
                TileStart::kAccumulate,     nullptr}
            .template run<kQueryLanes>(keys, at.v_width / kLanes);
        Product{at.dk + begin * at.q_width, at.q_width, at.dp, 1, at.q_rows, at.q_width, queries,
                TileStart::kAccumulate,     nullptr}
            .template run<kQueryLanes>(keys, at.q_width / kLanes);
        Product{at.dq, kQueryLanes, at.keys, kRowStride, at.dp, kQueryLanes, keys, start, nullptr}.template run<1>(task.d_q,
                                                                                                                   vectors);
    }

    static void backward(const AttentionBackwardTask& task, float* scratch) {
        const Space at(task, scratch);
        for (int64_t i = 0; i < task.len_k * (at.q_width + at.v_width); ++i) at.dk[i] = 0;  // dv follows dk
        for (int64_t begin = 0; begin < task.len_q; begin += kQueryLanes) {
            const int64_t queries = task.len_q - begin < kQueryLanes ? task.len_q - begin : kQueryLanes;
            const int64_t first = task.len_k - task.len_q + begin + 1, last = first + queries - 1;  // fewest, most keys seen
            load_queries(task, at, begin, queries);
            for (int64_t key = 0; key < last; key += kKeyTile) {
                const int64_t keys = last - key < kKeyTile ? last - key : kKeyTile;
                tile(task, at, key, keys, queries, key + keys > first);
            }
            float* dq[kQueryLanes];
            for (int64_t i = 0; i < queries; ++i) dq[i] = task.dq + (begin + i) * task.dq_stride;
            T::unpack_transposed(dq, at.dq, queries, task.d_q, at.scale);
        }
        for (int64_t t = 0; t < task.len_k; ++t) {
            RowKernels<V>::convert(task.dk + t * task.dk_stride, at.dk + t * at.q_width, task.d_k);
            RowKernels<V>::convert(task.dv + t * task.dv_stride, at.dv + t * at.v_width, task.d_v);
            if (task.dk_shared != nullptr)
                RowKernels<V>::convert(task.dk_shared + t * task.dk_shared_stride, at.dk + t * at.q_width + task.d_k,
                                       task.d_q - task.d_k);
        }
    }
};

}  // namespace fathom
