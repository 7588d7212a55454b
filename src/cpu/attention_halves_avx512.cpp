// Expanded attention with both products in halves (cpu/half_product.h), softmax in f32: the steps of attention_kernels.h, not
// its bits (docs/decisions/014). Chains are 64 channels of a key, and the 64 keys of a tile. Scales are powers of two: of a
// query, of 64 channels of a key, of a value, and of what a lane's weights times those of the values are in one tile. None of
// them depends on another lane or on keys that a lane does not see, tiles begin at multiples of 64 keys, and a weight of 0 adds
// nothing: a query's bits do not depend on its neighbours, its chunk, or the tasks beside it.
//
// A tile of keys is packed once for up to 8 tiles of queries: alone it would cost a sixth of the products.
#include "cpu/attention_kernels.h"
#include "cpu/half_product.h"

namespace fathom {
namespace {

using T = AttentionTemplates<Avx512>;
using Product = HalfProduct<Fp16>;

constexpr int64_t kStep = Product::kLanes;  // lanes that meet keys together at least
constexpr int64_t kAhead = 12;              // keys

int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Floats in which `count` halves lie.
constexpr int64_t floats(int64_t halves) { return halves / 2; }

// What the tasks share.
struct Shared {
    int64_t blocks, value_row;
    Float16* keys;      // [blocks, 64 keys, 64 channels]
    Float16* values;    // [64, value_row]
    Float16* weights;   // [64, 64 lanes]
    float* key_scales;  // [blocks, 64]
    float* s;           // [64, 64 lanes]
    float* row;         // a key in f32

    Shared(int64_t d_q, int64_t d_v, float* memory) : blocks((d_q + kHalfChain - 1) / kHalfChain), value_row(up(d_v, kStep)) {
        const auto take = [&](int64_t count) {
            float* const from = memory;
            memory += count;
            return from;
        };
        const auto take_halves = [&](int64_t count) { return reinterpret_cast<Float16*>(take(floats(count))); };
        keys = take_halves(blocks * kKeyTile * kHalfChain);
        values = take_halves(kKeyTile * value_row);
        weights = take_halves(kKeyTile * kQueryLanes);
        key_scales = take(blocks * kKeyTile);
        s = take(kKeyTile * kQueryLanes);
        row = take(kMaxHeadWidth + 16);
    }
    static int64_t size(int64_t d_q, int64_t d_v) {
        const int64_t blocks = (d_q + kHalfChain - 1) / kHalfChain;
        return floats(blocks * kKeyTile * kHalfChain + kKeyTile * up(d_v, kStep) + kKeyTile * kQueryLanes) + blocks * kKeyTile +
               kKeyTile * kQueryLanes + kMaxHeadWidth + 16;
    }
};

// One task's.
struct Own {
    Float16* q;  // [d_q, 64]
    float* o;    // [d_v, 64]
    Own(const AttentionTask& task, float* memory)
        : q(reinterpret_cast<Float16*>(memory)),
          o(memory + floats(task.d_q * kQueryLanes)) {}
    static int64_t size(int64_t d_q, int64_t d_v) { return floats(d_q * kQueryLanes) + d_v * kQueryLanes; }
};

struct Lanes : T::Lanes {
    float query_scale[kQueryLanes];  // times the softmax's
};

// Rows of one head lie a token's heads apart, often on pages of their own: the hardware fetches none of them ahead.
void fetch_row(const void* row, int64_t width) {
    for (int64_t at = 0; at < width * static_cast<int64_t>(sizeof(float)); at += 64)
        _mm_prefetch(static_cast<const std::byte*>(row) + at, _MM_HINT_T0);
}

// Lanes in excess are 0.
void pack_queries(const AttentionTask& task, const Own& own, Lanes& lanes) {
    float factor[kQueryLanes] = {};
    for (int64_t i = 0; i < kQueryLanes; ++i) {
        if (i + kAhead < task.lanes) fetch_row(task.q[i + kAhead], task.d_q);
        const HalfScale scale = scale_to(kLaneExponent, i < task.lanes ? largest_magnitude(task.q[i], task.d_q) : 0);
        factor[i] = scale.factor;
        lanes.query_scale[i] = scale.inverse * task.scale;
    }
    for (int64_t first = 0; first < kQueryLanes; first += 16)
        for (int64_t c = 0; c < task.d_q; c += 16) {
            const int64_t count = task.d_q - c < 16 ? task.d_q - c : 16;
            Avx512 block[16];
            for (int64_t i = 0; i < 16; ++i)
                block[i] = first + i < task.lanes ? Avx512::load(task.q[first + i] + c, count) * Avx512::all(factor[first + i])
                                                  : Avx512::zero();
            Avx512::transpose(block);
            for (int64_t i = 0; i < count; ++i) store_halves(own.q + (c + i) * kQueryLanes + first, block[i]);
        }
}

void copy_row(float* to, const KeyRows& rows, int64_t t) {
    const auto* const from = reinterpret_cast<const float*>(rows.row(t));
    for (int64_t c = 0; c < rows.width; c += 16)
        Avx512::load(from + c, rows.width - c < 16 ? rows.width - c : 16).store(to + c);
}

// Keys and values [begin, begin + count) of `last` in all.
void pack_keys(const AttentionTask& task, const Shared& at, float* value_scales, int64_t begin, int64_t count, int64_t last) {
    for (int64_t t = 0; t < count; ++t) {
        if (const int64_t ahead = begin + t + kAhead; ahead < last)
            for (const KeyRows* rows : {&task.keys, &task.values}) fetch_row(rows->row(ahead), rows->width);
        copy_row(at.row, task.keys, begin + t);
        if (task.shared.width > 0) copy_row(at.row + task.keys.width, task.shared, begin + t);
        pack_half_row_avx512(at.keys + t * kHalfChain, at.key_scales + t, kKeyTile, at.row, task.d_q);
        value_scales[t] =
            pack_half_row(at.values + t * at.value_row, reinterpret_cast<const float*>(task.values.row(begin + t)), task.d_v);
    }
}

// Weights times the values' scales, scaled themselves; scale[lane] takes that back.
void pack_weights(const Shared& at, const float* value_scales, float* scale, int64_t count, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; j += 16) {
        const auto weight = [&](int64_t t) { return Avx512::load(at.s + t * kQueryLanes + j) * Avx512::all(value_scales[t]); };
        Avx512 largest = Avx512::all(0x1p-100f);
        for (int64_t t = 0; t < count; ++t) largest = Avx512::max(weight(t), largest);
        const __m512 exponent = _mm512_getexp_ps(largest.v), own = _mm512_set1_ps(kLaneExponent), one = _mm512_set1_ps(1);
        const Avx512 factor{_mm512_scalef_ps(one, _mm512_sub_ps(own, exponent))};
        _mm512_storeu_ps(scale + j, _mm512_scalef_ps(one, _mm512_sub_ps(exponent, own)));
        for (int64_t t = 0; t < count; ++t) store_halves(at.weights + t * kQueryLanes + j, weight(t) * factor);
    }
}

// As AttentionTemplates::meet, of 32 lanes at a time.
void meet(const AttentionTask& task, const Shared& at, const Own& own, Lanes& lanes, const float* value_scales, int64_t begin,
          int64_t count, int64_t from, int64_t vectors, bool masked) {
    const int64_t j = from * kStep;
    for (int64_t c = 0; c < task.d_q; c += kHalfChain)
        Product{.c = at.s + j,
                .c_row = kQueryLanes,
                .a = at.keys + c * kKeyTile,
                .a_k = 1,
                .b = own.q + c * kQueryLanes + j,
                .b_row = kQueryLanes,
                .k = task.d_q - c < kHalfChain ? task.d_q - c : kHalfChain,
                .rows = at.key_scales + c / kHalfChain * kKeyTile,
                .rows_step = 1,
                .lanes = lanes.query_scale + j,
                .start = c == 0 ? TileStart::kZero : TileStart::kAccumulate,
                .factor = nullptr}
            .run<kHalfChain>(count, vectors);
    T::soften(at.s, lanes, begin, count, j / T::kLanes, vectors * kStep / T::kLanes, masked);
    float scale[kQueryLanes];
    pack_weights(at, value_scales, scale, count, j, j + vectors * kStep);
    constexpr float kOne = 1;
    Product{.c = own.o + j,
            .c_row = kQueryLanes,
            .a = at.values,
            .a_k = at.value_row,
            .b = at.weights + j,
            .b_row = kQueryLanes,
            .k = count,
            .rows = &kOne,
            .rows_step = 0,
            .lanes = scale + j,
            .start = begin == 0 ? TileStart::kZero : TileStart::kScaled,
            .factor = lanes.factor + j}
        .run<1>(task.d_v, vectors);
}

}  // namespace

int64_t attention_halves_scratch_floats(int64_t count, int64_t d_q, int64_t d_v) {
    return Shared::size(d_q, d_v) + count * Own::size(d_q, d_v);
}

void attention_halves_avx512(const AttentionTask* tasks, int64_t count, float* scratch) {
    const AttentionTask& any = tasks[0];
    const Shared at(any.d_q, any.d_v, scratch);
    const auto own = [&](int64_t i) {
        return Own(any, scratch + Shared::size(any.d_q, any.d_v) + i * Own::size(any.d_q, any.d_v));
    };
    Lanes lanes[kHalfTasks];
    int64_t last = 0;
    for (int64_t i = 0; i < count; ++i) {
        T::reset(lanes[i], tasks[i]);
        pack_queries(tasks[i], own(i), lanes[i]);
        const int64_t visible = tasks[i].visible[tasks[i].lanes - 1];
        if (visible > last) last = visible;
    }
    float value_scales[kKeyTile];
    for (int64_t begin = 0; begin < last; begin += kKeyTile) {
        const int64_t keys = last - begin < kKeyTile ? last - begin : kKeyTile;
        pack_keys(any, at, value_scales, begin, keys, last);
        for (int64_t i = 0; i < count; ++i)
            T::for_visible<kStep>(tasks[i], begin, keys, [&](int64_t seen, int64_t from, int64_t vectors, bool masked) {
                meet(tasks[i], at, own(i), lanes[i], value_scales, begin, seen, from, vectors, masked);
            });
    }
    for (int64_t i = 0; i < count; ++i) T::finish(tasks[i], own(i).o, lanes[i]);
}

}  // namespace fathom
