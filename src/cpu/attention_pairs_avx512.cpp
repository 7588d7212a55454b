// Expanded attention with both products in pairs of bf16 (vdpbf16ps), f32 sums, softmax in f32: the steps of
// attention_kernels.h, not its bits (docs/decisions/014). Queries and keys are rounded to bf16 and paired along channels; the
// softmax's weights and the values are paired along keys. A lane meets no other one, tiles begin at multiples of 64 keys, and a
// weight of 0 adds nothing: a query's bits do not depend on its neighbours or its chunk.
#include "cpu/attention_kernels.h"
#include "cpu/attention_task.h"
#include "cpu/pairs_avx512.h"

namespace fathom {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kKeyStride = kMaxHeadWidth / 2 + 16;  // pairs between packed keys: 19 cache lines, odd as kRowStride is

using T = AttentionTemplates<Avx512>;

// What TileProduct wants of a vector, with pairs for factors.
struct PairSums {
    static constexpr int kRegisters = Avx512::kRegisters;
    __m512 v;
    static PairSums zero() { return {_mm512_setzero_ps()}; }
    static PairSums all(Pair x) { return {_mm512_set1_ps(x)}; }
    static PairSums load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static PairSums fma(PairSums a, PairSums b, PairSums c) { return {add_pairs(c.v, a.v, b.v)}; }
    friend PairSums operator*(PairSums a, PairSums b) { return {_mm512_mul_ps(a.v, b.v)}; }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
};
using Product = TileProduct<PairSums>;

// The memory of one task.
struct Space {
    int64_t channels;  // pairs of a key's
    Pair* q;           // [channels, 64]
    float* o;          // [d_v, 64]
    float* s;          // [64, 64]
    Pair* weights;     // [32, 64]
    Pair* keys;        // [64, kKeyStride]
    Pair* values;      // [32, kRowStride]
    Space(const AttentionTask& task, float* memory)
        : channels((task.d_q + 1) / 2),
          q(memory),
          o(q + channels * kQueryLanes),
          s(o + task.d_v * kQueryLanes),
          weights(s + kKeyTile * kQueryLanes),
          keys(weights + kKeyTile / 2 * kQueryLanes),
          values(keys + kKeyTile * kKeyStride) {}
};

// attention_scratch_floats has two tiles of keys and all of a query's channels.
static_assert(kKeyTile / 2 * kQueryLanes + kKeyTile * kKeyStride + kKeyTile / 2 * kRowStride <= 2 * kKeyTile * kRowStride);

void pack_queries(const AttentionTask& task, const Space& at) {
    for (int64_t first = 0; first < task.lanes; first += kLanes)
        for (int64_t c = 0; c < at.channels; c += kLanes) {
            Avx512 block[kLanes];
            for (int64_t i = 0; i < kLanes; ++i) {
                const bool there = first + i < task.lanes;
                block[i].v = there ? pairs_of(task.q[first + i] + 2 * c, task.d_q - 2 * c < 32 ? task.d_q - 2 * c : 32,
                                              Avx512::all(task.scale))
                                   : _mm512_setzero_ps();
            }
            Avx512::transpose(block);
            for (int64_t i = 0; i < kLanes && c + i < at.channels; ++i) block[i].store(at.q + (c + i) * kQueryLanes + first);
        }
}

const float* floats_of(const KeyRows& rows, int64_t t) { return reinterpret_cast<const float*>(rows.row(t)); }

// Keys [begin, begin + count) from pair `column` on. Writes up to 15 pairs behind a row's end, which lie between rows.
void pack_keys(Pair* keys, const KeyRows& rows, int64_t begin, int64_t count, int64_t column) {
    for (int64_t t = 0; t < count; ++t) {
        const float* const from = floats_of(rows, begin + t);
        for (int64_t c = 0; c < rows.width; c += 32)
            _mm512_storeu_ps(keys + t * kKeyStride + column + c / 2,
                             pairs_of(from + c, rows.width - c < 32 ? rows.width - c : 32));
    }
}

// Keys t and t + 1 side by side; the one behind an odd number is zeros.
void pack_values(Pair* values, const KeyRows& rows, int64_t begin, int64_t count) {
    for (int64_t t = 0; t < count; t += 2) {
        const float* const even = floats_of(rows, begin + t);
        const float* const odd = t + 1 < count ? floats_of(rows, begin + t + 1) : nullptr;
        for (int64_t c = 0; c < rows.width; c += kLanes) {
            const int64_t n = rows.width - c < kLanes ? rows.width - c : kLanes;
            const Avx512 right = odd == nullptr ? Avx512::zero() : Avx512::load(odd + c, n);
            _mm512_storeu_ps(values + t / 2 * kRowStride + c, pairs_of(Avx512::load(even + c, n), right));
        }
    }
}

void pack_weights(const Space& at, int64_t count, int64_t from, int64_t vectors) {
    for (int64_t t = 0; t < count; t += 2)
        for (int64_t j = from * kLanes; j < (from + vectors) * kLanes; j += kLanes) {
            const float* const s = at.s + t * kQueryLanes + j;
            const Avx512 odd = t + 1 < count ? Avx512::load(s + kQueryLanes) : Avx512::zero();
            _mm512_storeu_ps(at.weights + t / 2 * kQueryLanes + j, pairs_of(Avx512::load(s), odd));
        }
}

// As AttentionTemplates::meet.
void meet(const AttentionTask& task, const Space& at, T::Lanes& lanes, int64_t begin, int64_t count, int64_t from,
          int64_t vectors, bool masked) {
    const int64_t j = from * kLanes;
    Product{at.s + j, kQueryLanes, at.keys, 1, at.q + j, kQueryLanes, at.channels, TileStart::kZero, nullptr}.run<kKeyStride>(
        count, vectors);
    T::soften(at.s, lanes, begin, count, from, vectors, masked);
    pack_weights(at, count, from, vectors);
    const auto start = begin == 0 ? TileStart::kZero : TileStart::kScaled;
    Product{at.o + j, kQueryLanes, at.values, kRowStride, at.weights + j, kQueryLanes, (count + 1) / 2, start, lanes.factor + j}
        .run<1>(task.d_v, vectors);
}

void forward(const AttentionTask& task, float* scratch) {
    const Space at(task, scratch);
    const int64_t last = task.visible[task.lanes - 1];
    T::Lanes lanes;
    T::reset(lanes, task);
    pack_queries(task, at);
    for (int64_t begin = 0; begin < last; begin += kKeyTile) {
        const int64_t count = last - begin < kKeyTile ? last - begin : kKeyTile;
        pack_keys(at.keys, task.keys, begin, count, 0);
        if (task.shared.width > 0) pack_keys(at.keys, task.shared, begin, count, task.keys.width / 2);
        pack_values(at.values, task.values, begin, count);
        T::for_visible(task, begin, count, [&](int64_t seen, int64_t from, int64_t vectors, bool masked) {
            meet(task, at, lanes, begin, seen, from, vectors, masked);
        });
    }
    T::finish(task, at.o, lanes);
}

}  // namespace

const AttentionKernels& attention_kernels_pairs() {
    static constexpr AttentionKernels kTable{.forward = forward};
    return kTable;
}

}  // namespace fathom
