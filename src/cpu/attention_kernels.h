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
        for (int64_t t = 0; t < count; ++t)
            RowKernels<V>::widen(y + t * kRowStride + column, rows.row(begin + t), rows.dtype, rows.width);
    }

    // Running state of up to 64 lanes.
    struct Lanes {
        float top[kQueryLanes], sum[kQueryLanes], factor[kQueryLanes], visible[kQueryLanes];
    };

    // Scores [keys, lanes] of the tile that starts at `begin` become exp(s - m'); m, l and the factor of O follow.
    static void soften(float* s, Lanes& lanes, int64_t begin, int64_t keys, int64_t vectors, bool masked) {
        for (int64_t j = 0; j < vectors * kLanes; j += kLanes) {
            const V old = V::load(lanes.top + j), visible = V::load(lanes.visible + j);
            V top = old;
            for (int64_t t = 0; t < keys; ++t) {
                V x = V::load(s + t * kQueryLanes + j);
                if (masked) {
                    x = V::if_less(V::all(static_cast<float>(begin + t)), visible, x, V::all(-__builtin_inff()));
                    x.store(s + t * kQueryLanes + j);
                }
                top = V::max(x, top);
            }
            V sum = V::zero();
            for (int64_t t = 0; t < keys; ++t) {
                const V p = exp(V::load(s + t * kQueryLanes + j) - top);
                p.store(s + t * kQueryLanes + j);
                sum = sum + p;
            }
            const V factor = exp(old - top);
            V::fma(V::load(lanes.sum + j), factor, sum).store(lanes.sum + j);
            factor.store(lanes.factor + j);
            top.store(lanes.top + j);
        }
    }

    static void forward(const AttentionTask& task, float* scratch) {
        float* q = scratch;                        // [d_q, kQueryLanes]
        float* o = q + task.d_q * kQueryLanes;     // [d_v, kQueryLanes]
        float* s = o + task.d_v * kQueryLanes;     // [kKeyTile, kQueryLanes]
        float* keys = s + kKeyTile * kQueryLanes;  // [kKeyTile, kRowStride]
        float* values = task.values.width > 0 ? keys + kKeyTile * kRowStride : keys;
        const int64_t vectors = vectors_of(task.lanes);
        Lanes lanes;
        int64_t last = 0, first = task.visible[0];  // most and fewest keys that a lane sees
        for (int64_t i = 0; i < kQueryLanes; ++i) {
            const int64_t visible = task.visible[i < task.lanes ? i : 0];
            lanes.top[i] = -__builtin_inff();
            lanes.sum[i] = 0;
            lanes.visible[i] = static_cast<float>(visible);
            last = visible > last ? visible : last;
            first = visible < first ? visible : first;
        }
        pack_transposed(q, task.q, task.lanes, task.d_q, task.scale);
        for (int64_t begin = 0; begin < last; begin += kKeyTile) {
            const int64_t count = last - begin < kKeyTile ? last - begin : kKeyTile;
            load_rows(keys, task.keys, begin, count);
            if (task.shared.width > 0) load_rows(keys, task.shared, begin, count, task.keys.width);
            if (task.values.width > 0) load_rows(values, task.values, begin, count);
            TileProduct<V>{s, kQueryLanes, keys, 1, q, kQueryLanes, task.d_q, TileStart::kZero, nullptr}
                .template run<kRowStride>(count, vectors);
            soften(s, lanes, begin, count, vectors, begin + count > first);
            TileProduct<V>{o,           kQueryLanes, values, kRowStride,
                           s,           kQueryLanes, count,  begin == 0 ? TileStart::kZero : TileStart::kScaled,
                           lanes.factor}
                .template run<1>(task.d_v, vectors);
        }
        for (int64_t i = 0; i < kQueryLanes; ++i) lanes.factor[i] = 1.0f / lanes.sum[i];
        unpack_transposed(task.o, o, task.lanes, task.d_v, lanes.factor);
        for (int64_t i = 0; i < task.lanes; ++i) *task.lse[i] = lanes.top[i] + __builtin_logf(lanes.sum[i]);
    }
};

}  // namespace fathom
