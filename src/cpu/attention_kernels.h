// Templates behind attention_task.h, instantiated in attention_avx2.cpp and attention_avx512.cpp. No function of the standard
// library here (see row_kernels.h).
//
// FlashAttention (Dao et al. 2022) per task: for each tile of 64 keys
//   S^T = K (scale Q)^T;  m' = max(m, max S);  P = exp(S - m');  l = l e^(m - m') + sum P;  O = O e^(m - m') + P V
// and o = O / l, lse = m + log l at the end. 2 (d_q + d_v) FLOP and one exp per (query, key).
#pragma once

#include "cpu/attention_task.h"
#include "cpu/row_kernels.h"
#include "cpu/tile_product.h"

namespace fathom {

template <class V>
struct AttentionTemplates {
    static constexpr int64_t kLanes = 16;

    static int64_t vectors_of(int64_t n) { return (n + kLanes - 1) / kLanes; }

    // y[c, lane] = factor rows[lane][c] for lanes [0, lanes) rounded up to whole vectors; the lanes in excess are 0.
    // [width, kQueryLanes].
    static void pack_transposed(float* y, const float* const* rows, int64_t lanes, int64_t width, float factor) {
        for (int64_t first = 0; first < lanes; first += kLanes)
            for (int64_t c = 0; c < width; c += kLanes) {
                const int64_t count = width - c < kLanes ? width - c : kLanes;
                V block[kLanes];
                for (int64_t i = 0; i < kLanes; ++i)
                    block[i] = first + i < lanes ? V::load(rows[first + i] + c, count) * V::all(factor) : V::zero();
                V::transpose(block);
                for (int64_t i = 0; i < count; ++i) block[i].store(y + (c + i) * kQueryLanes + first);
            }
    }
    // rows[lane][c] = factor[lane] x[c, lane] + 0: the sum turns -0 into +0, which a chain may or may not have met according
    // to how many masked keys it passed.
    static void unpack_transposed(float* const* rows, const float* x, int64_t lanes, int64_t width, const float* factor) {
        for (int64_t first = 0; first < lanes; first += kLanes)
            for (int64_t c = 0; c < width; c += kLanes) {
                const int64_t count = width - c < kLanes ? width - c : kLanes;
                V block[kLanes];
                for (int64_t i = 0; i < kLanes; ++i)
                    block[i] = i < count ? V::load(x + (c + i) * kQueryLanes + first) * V::load(factor + first) + V::zero()
                                         : V::zero();
                V::transpose(block);
                for (int64_t i = 0; i < kLanes && first + i < lanes; ++i) block[i].store(rows[first + i] + c, count);
            }
    }

    // Rows [begin, begin + count) of keys as f32, kRowStride apart, from column `column` on.
    static void load_rows(float* y, const KeyRows& rows, int64_t begin, int64_t count, int64_t column = 0) {
        for (int64_t t = 0; t < count; ++t) {
            float* to = y + t * kRowStride + column;
            if (rows.type == BlockType::kNone)
                RowKernels<V>::widen(to, rows.row(begin + t), rows.dtype, rows.width);
            else
                RowKernels<V>::widen_blocks(to, rows.row(begin + t), rows.type, rows.width);
        }
    }

    // Running m and l of up to 64 lanes, the factor that O takes at the next tile, and how many keys a lane sees.
    struct Lanes {
        float top[kQueryLanes], sum[kQueryLanes], factor[kQueryLanes], visible[kQueryLanes];
    };

    // Lane 0 .. 63 of q [d_q], o [d_v] and scores [kKeyTile], and packed rows, in the memory of one task.
    struct Space {
        float *q, *o, *s, *keys, *values;
        Space(const AttentionTask& task, float* memory)
            : q(memory),
              o(q + task.d_q * kQueryLanes),
              s(o + task.d_v * kQueryLanes),
              keys(s + kKeyTile * kQueryLanes),
              values(task.values.width > 0 ? keys + kKeyTile * kRowStride : keys) {}
    };

    static void reset(Lanes& lanes, const AttentionTask& task) {
        for (int64_t i = 0; i < kQueryLanes; ++i) {
            lanes.top[i] = -__builtin_inff();
            lanes.sum[i] = 0;
            lanes.visible[i] = static_cast<float>(task.visible[i < task.lanes ? i : task.lanes - 1]);
        }
    }

    // Scores s of one vector of lanes, keys [begin, begin + count): those that a lane may not see become -infinity.
    // Returns the largest, or `top` when that is larger.
    static V mask_and_top(float* s, V top, V visible, int64_t begin, int64_t count, bool masked) {
        for (int64_t t = 0; t < count; ++t) {
            V x = V::load(s + t * kQueryLanes);
            if (masked) {
                x = V::if_less(V::all(static_cast<float>(begin + t)), visible, x, V::all(-__builtin_inff()));
                x.store(s + t * kQueryLanes);
            }
            top = V::max(x, top);
        }
        return top;
    }
    // s = exp(s - top); returns the sum.
    static V exponentials(float* s, V top, int64_t count) {
        V sum = V::zero();
        for (int64_t t = 0; t < count; ++t) {
            const V p = exp(V::load(s + t * kQueryLanes) - top);
            p.store(s + t * kQueryLanes);
            sum = sum + p;
        }
        return sum;
    }
    // Scores become exp(s - m'); m, l and the factor of O follow. Vectors [from, from + vectors) of lanes.
    static void soften(float* s, Lanes& lanes, int64_t begin, int64_t count, int64_t from, int64_t vectors, bool masked) {
        for (int64_t j = from * kLanes; j < (from + vectors) * kLanes; j += kLanes) {
            const V old = V::load(lanes.top + j);
            const V top = mask_and_top(s + j, old, V::load(lanes.visible + j), begin, count, masked);
            const V sum = exponentials(s + j, top, count), factor = exp(old - top);
            V::fma(V::load(lanes.sum + j), factor, sum).store(lanes.sum + j);
            factor.store(lanes.factor + j);
            top.store(lanes.top + j);
        }
    }

    static void load_keys(const AttentionTask& task, float* keys, int64_t begin, int64_t count) {
        load_rows(keys, task.keys, begin, count);
        if (task.shared.width > 0) load_rows(keys, task.shared, begin, count, task.keys.width);
    }

    // Vectors [from, from + vectors) of lanes meet keys [begin, begin + count), which lie packed in `at`.
    static void meet(const AttentionTask& task, const Space& at, Lanes& lanes, int64_t begin, int64_t count, int64_t from,
                     int64_t vectors, bool masked) {
        const int64_t j = from * kLanes;
        const auto start = begin == 0 ? TileStart::kZero : TileStart::kScaled;
        TileProduct<V>{at.s + j, kQueryLanes, at.keys, 1, at.q + j, kQueryLanes, task.d_q, TileStart::kZero, nullptr}
            .template run<kRowStride>(count, vectors);
        soften(at.s, lanes, begin, count, from, vectors, masked);
        TileProduct<V>{at.o + j, kQueryLanes, at.values, kRowStride, at.s + j, kQueryLanes, count, start, lanes.factor + j}
            .template run<1>(task.d_v, vectors);
    }

    // Calls meet(keys, first vector, vectors, masked) for the lanes that see any of the keys [begin, begin + count), in vectors
    // of kStep. On the diagonal each vector stops at the last key it sees.
    template <int64_t kStep = kLanes, class Meet>
    static void for_visible(const AttentionTask& task, int64_t begin, int64_t count, const Meet& meet) {
        const int64_t vectors = (task.lanes + kStep - 1) / kStep;
        if (begin + count <= task.visible[0]) return meet(count, 0, vectors, false);
        for (int64_t from = 0; from < vectors; ++from) {
            const int64_t lane = (from + 1) * kStep < task.lanes ? (from + 1) * kStep - 1 : task.lanes - 1;
            const int64_t seen = task.visible[lane] - begin;
            if (seen > 0) meet(seen < count ? seen : count, from, 1, true);
        }
    }

    static void forward(const AttentionTask& task, float* scratch) {
        const Space at(task, scratch);
        const int64_t last = task.visible[task.lanes - 1];
        Lanes lanes;
        reset(lanes, task);
        pack_transposed(at.q, task.q, task.lanes, task.d_q, task.scale);
        for (int64_t begin = 0; begin < last; begin += kKeyTile) {
            const int64_t count = last - begin < kKeyTile ? last - begin : kKeyTile;
            load_keys(task, at.keys, begin, count);
            if (task.values.width > 0) load_rows(at.values, task.values, begin, count);
            for_visible(task, begin, count, [&](int64_t seen, int64_t from, int64_t vectors, bool masked) {
                meet(task, at, lanes, begin, seen, from, vectors, masked);
            });
        }
        finish(task, at.o, lanes);
    }
    static void finish(const AttentionTask& task, const float* o, Lanes& lanes) {
        for (int64_t i = 0; i < kQueryLanes; ++i) lanes.factor[i] = 1.0f / lanes.sum[i];
        unpack_transposed(task.o, o, task.lanes, task.d_v, lanes.factor);
        for (int64_t i = 0; i < task.lanes; ++i) *task.lse[i] = lanes.top[i] + __builtin_logf(lanes.sum[i]);
    }
};

}  // namespace fathom
