// Templates behind AttentionSplit: the steps of AttentionTemplates::forward, each over all tiles before the next.
#pragma once

#include "cpu/attention_kernels.h"

namespace fathom {

template <class V>
struct AttentionSplitTemplates {
    using T = AttentionTemplates<V>;
    using Lanes = typename T::Lanes;
    static constexpr int64_t kLanes = 16;

    // The split's memory.
    struct Space {
        int64_t keys, tiles, vectors;
        float *q, *o;      // [d_q, 64], [d_v, 64]
        float *top, *sum;  // [tiles, 64]: the tile's maximum, then the running one; the tile's sum
        float* factor;     // [tiles, 64]: what O is multiplied with before the tile
        float* s;          // [tiles 64, 64]
        explicit Space(const AttentionSplit& split) {
            const AttentionTask& task = *split.task;
            keys = task.visible[task.lanes - 1];
            tiles = (keys + kKeyTile - 1) / kKeyTile;
            vectors = T::vectors_of(task.lanes);
            q = split.memory;
            o = q + task.d_q * kQueryLanes;
            top = o + task.d_v * kQueryLanes;
            sum = top + tiles * kQueryLanes;
            factor = sum + tiles * kQueryLanes;
            s = factor + tiles * kQueryLanes;
        }
        [[nodiscard]] int64_t count(int64_t tile) const {
            return keys - tile * kKeyTile < kKeyTile ? keys - tile * kKeyTile : kKeyTile;
        }
        [[nodiscard]] float* scores(int64_t tile) const { return s + tile * kKeyTile * kQueryLanes; }
    };

    static void begin(const AttentionSplit& split) {
        const AttentionTask& task = *split.task;
        T::pack_transposed(Space(split).q, task.q, task.lanes, task.d_q, task.scale);
    }

    static void scores(const AttentionSplit& split, int64_t tile, float* scratch) {
        const AttentionTask& task = *split.task;
        const Space at(split);
        const int64_t count = at.count(tile);
        Lanes lanes;
        T::reset(lanes, task);
        T::load_keys(task, scratch, tile * kKeyTile, count);
        TileProduct<V>{at.scores(tile), kQueryLanes, scratch, 1, at.q, kQueryLanes, task.d_q, TileStart::kZero, nullptr}
            .template run<kRowStride>(count, at.vectors);
        for (int64_t j = 0; j < at.vectors * kLanes; j += kLanes)
            T::mask_and_top(at.scores(tile) + j, V::load(lanes.top + j), V::load(lanes.visible + j), tile * kKeyTile, count,
                            true)
                .store(at.top + tile * kQueryLanes + j);
    }

    static void maxima(const AttentionSplit& split) {
        const Space at(split);
        for (int64_t j = 0; j < at.vectors * kLanes; j += kLanes) {
            V old = V::all(-__builtin_inff());
            for (int64_t tile = 0; tile < at.tiles; ++tile) {
                const V top = V::max(V::load(at.top + tile * kQueryLanes + j), old);
                exp(old - top).store(at.factor + tile * kQueryLanes + j);
                top.store(at.top + tile * kQueryLanes + j);
                old = top;
            }
        }
    }

    static void weights(const AttentionSplit& split, int64_t tile) {
        const Space at(split);
        for (int64_t j = 0; j < at.vectors * kLanes; j += kLanes)
            T::exponentials(at.scores(tile) + j, V::load(at.top + tile * kQueryLanes + j), at.count(tile))
                .store(at.sum + tile * kQueryLanes + j);
    }

    static void values(const AttentionSplit& split, int64_t first, int64_t last, float* scratch) {
        const Space at(split);
        KeyRows columns = split.task->keys;
        columns.data += columns.type == BlockType::kNone ? first * size_of(columns.dtype)
                                                         : first / kCacheBlock * cache_block_bytes(columns.type);
        columns.width = last - first;
        for (int64_t tile = 0; tile < at.tiles; ++tile) {
            T::load_rows(scratch, columns, tile * kKeyTile, at.count(tile));
            const auto start = tile == 0 ? TileStart::kZero : TileStart::kScaled;
            TileProduct<V>{at.o + first * kQueryLanes,
                           kQueryLanes,
                           scratch,
                           kRowStride,
                           at.scores(tile),
                           kQueryLanes,
                           at.count(tile),
                           start,
                           at.factor + tile * kQueryLanes}
                .template run<1>(last - first, at.vectors);
        }
    }

    static void end(const AttentionSplit& split) {
        const Space at(split);
        Lanes lanes;
        T::reset(lanes, *split.task);
        for (int64_t j = 0; j < at.vectors * kLanes; j += kLanes) {
            V sum = V::zero();
            for (int64_t tile = 0; tile < at.tiles; ++tile)
                sum = V::fma(sum, V::load(at.factor + tile * kQueryLanes + j), V::load(at.sum + tile * kQueryLanes + j));
            sum.store(lanes.sum + j);
            V::load(at.top + (at.tiles - 1) * kQueryLanes + j).store(lanes.top + j);
        }
        T::finish(*split.task, at.o, lanes);
    }
};

}  // namespace fathom
