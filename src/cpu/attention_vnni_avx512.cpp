// Latent attention over a cache of int8 or int4 blocks with AVX512-VNNI: both products in whole numbers, 16 x 4 multiply-adds
// an instruction. Not the bits of the f32 kernels (docs/decisions/013): queries and the softmax's weights are rounded to 8
// bits.
//   queries  per lane and 32 channels: query = dq code + rounding, code in [-127, 127]
//   scores   s = sum over blocks of dq d sum(code of the query, code of the key);  p = exp(s - top), top of this tile of keys,
//            in 16 bits: p' = round(65535 p)
//   values   per tile and block of 32 channels: w = (e p' / 65536 + 128) / 256 in [0, 255], e = round(65280 d / d_max), both
//            quotients rounded down, d_max of the keys that the lane sees: w is 255 p d / d_max rounded;
//            o = sum over tiles of f sum(w code) d_max / 255, f = exp(top - top of the span)
// A lane meets no other one and a tile no other tile but in f, so the bits do not depend on the batch, the chunk or the
// threads. A key of 576 channels and 16 heads takes 144 + 128 vpdpbusd, 42 ns of a Sapphire Rapids core, of 91 in all.
#include "cpu/attention_vnni_spans.h"

#include <immintrin.h>
#include <cstring>

#include "cpu/attention_vnni_keys.h"
#include "cpu/quant_rows_avx512.h"
#include "cpu/simd_avx512.h"
#include "cpu/simd_math.h"

namespace fathom {
namespace {

constexpr float kNothing = -3e38f;  // below every score, and still a number

int64_t vectors_of(const AttentionTask& task) { return (task.lanes + kLanes - 1) / kLanes; }
// In whole pairs: of an odd number of blocks the last comes again, and queries have nothing there.
int64_t blocks_of(const AttentionTask& task) { return (task.d_q + 2 * kCacheBlock - 1) / (2 * kCacheBlock) * 2; }

// sum + bytes without a sign x codes. GCC 12 copies the sums of the intrinsic twice an instruction, and spills them.
[[gnu::always_inline]] inline __m512i add_products(__m512i sum, __m512i bytes, __m512i codes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(codes));
    return sum;
}

// ---- queries -------------------------------------------------------------------------------------------------------------

struct Queries {
    float* dq;       // [blocks, 64]
    int32_t* shift;  // [blocks, 64]: -zero_of() sum of codes
    uint8_t* codes;  // [blocks, 8, vectors, 16 x 4 bytes]
    Queries(const AttentionTask& task, float* memory)
        : dq(memory),
          shift(reinterpret_cast<int32_t*>(dq + blocks_of(task) * kQueryLanes)),
          codes(reinterpret_cast<uint8_t*>(shift + blocks_of(task) * kQueryLanes)) {}
};

// ---- scores --------------------------------------------------------------------------------------------------------------

__m512i broadcast4(const uint8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}

// What a group is multiplied with, and where it goes.
struct ScoreStep {
    const Queries& queries;
    int64_t blocks, vectors, value_blocks;
    int64_t first;                 // key of the group, in the span
    const std::byte* const* next;  // rows of the next group, to be fetched ahead
    Staged& staged;
};

// Scores of kKeys keys of a group from its key `t` on, vector `vector` of the queries. With the first vector values are staged
// and rows fetched, which the products hide.
constexpr int kKeys = 8;
template <BlockType kType>
void score_keys(const ScoreStep& at, int64_t t, int64_t vector) {
    const uint8_t* const keys = at.staged.keys + t * kKeyStride;
    const uint8_t* codes = at.queries.codes + 64 * vector;
    float* const s = at.staged.scores + (vector * kKeyTile + (at.first + t) % kKeyTile) * kLanes;
    __m512 y[kKeys];
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) y[i] = _mm512_setzero_ps();
    for (int64_t g = 0; g < at.blocks; g += 2, codes += 64 * kQuads * at.vectors) {
        if (vector == 0) {
#pragma GCC unroll 8
            for (int i = 0; i < kKeys; ++i) {
                _mm_prefetch(at.next[t + i] + g * cache_block_bytes(kType), _MM_HINT_T0);
                _mm_prefetch(at.next[t + i] + (g + 1) * cache_block_bytes(kType), _MM_HINT_T0);
            }
            uint8_t* const values = at.staged.values + g * kValueStride + (at.first + t) * kCacheBlock;
            if (g < at.value_blocks)
                for (int64_t i = 0; i < kKeys; i += 4) interleave<kType>(values + i * kCacheBlock, at.staged, t + i, g);
        }
        __m512i sum[2][kKeys];
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
#pragma GCC unroll 8
            for (int i = 0; i < kKeys; ++i)
                sum[half][i] = _mm512_loadu_si512(at.queries.shift + (g + half) * kQueryLanes + vector * kLanes);
#pragma GCC unroll 8
        for (int64_t quad = 0; quad < kQuads; ++quad, codes += 64 * at.vectors)
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                const __m512i q = _mm512_loadu_si512(codes + half * 64 * kQuads * at.vectors);
#pragma GCC unroll 8
                for (int i = 0; i < kKeys; ++i)
                    sum[half][i] =
                        add_products(sum[half][i], broadcast4(keys + i * kKeyStride + (g + half) * kCacheBlock + 4 * quad), q);
            }
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const __m512 dq = _mm512_loadu_ps(at.queries.dq + (g + half) * kQueryLanes + vector * kLanes);
            const float* const d = at.staged.d + (g + half) * kScaleStride + at.first + t;
#pragma GCC unroll 8
            for (int i = 0; i < kKeys; ++i)
                y[i] = _mm512_fmadd_ps(_mm512_mul_ps(dq, _mm512_set1_ps(d[i])), _mm512_cvtepi32_ps(sum[half][i]), y[i]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) _mm512_storeu_ps(s + i * kLanes, y[i]);
}

// Scores [count, 16] of a tile become -infinity from key `seen` of each lane on; the largest.
Avx512 mask_and_top(float* s, Avx512 seen, int64_t count, bool masked) {
    const Avx512 least = Avx512::all(-__builtin_inff());
    Avx512 top[4] = {least, least, least, Avx512::all(kNothing)};
    for (int64_t t = 0; t < count; t += 4)
#pragma GCC unroll 4
        for (int64_t i = 0; i < 4; ++i) {
            Avx512 x = Avx512::load(s + (t + i) * kLanes);
            if (masked) {
                x = Avx512::if_less(Avx512::all(static_cast<float>(t + i)), seen, x, least);
                x.store(s + (t + i) * kLanes);
            }
            top[i] = Avx512::max(x, top[i]);
        }
    return Avx512::max(Avx512::max(top[0], top[1]), Avx512::max(top[2], top[3]));
}

// p = exp(s - top) of one vector of lanes in 16 bits; returns the sum. Vectors of p are p_row numbers apart.
Avx512 exponentials(uint16_t* p, int64_t p_row, const float* s, Avx512 top, int64_t count) {
    Avx512 sum = Avx512::zero();
    for (int64_t t = 0; t < count; t += 4, p += p_row) {
        __m512i q[4];
#pragma GCC unroll 4
        for (int64_t i = 0; i < 4; ++i) {
            const Avx512 x = exp(Avx512::load(s + (t + i) * kLanes) - top);
            sum = sum + x;
            q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(x.v, _mm512_set1_ps(65535.0f)));
        }
        _mm512_store_si512(p, _mm512_or_si512(q[0], _mm512_slli_epi32(q[2], 16)));
        _mm512_store_si512(p + 32, _mm512_or_si512(q[1], _mm512_slli_epi32(q[3], 16)));
    }
    return sum;
}

// ---- values --------------------------------------------------------------------------------------------------------------

// The largest |d| of a tile's first `count` scales.
float largest(const float* d, int64_t count) {
    Avx512 most = Avx512::zero();
    for (int64_t t = 0; t < count; t += kLanes) {
        const Avx512 x = Avx512::load(d + t, count - t < kLanes ? count - t : kLanes);
        most = Avx512::max(most, {_mm512_abs_ps(x.v)});
    }
    return most.largest();
}

// e of a tile's keys. Behind the last one that a lane sees it may be anything: p is 0 there, and in what it spills into.
void scale_steps(int32_t* e, const float* d, float factor, int64_t count) {
    for (int64_t t = 0; t < count; t += kLanes) {
        const __m512 scaled = _mm512_mul_ps(_mm512_abs_ps(_mm512_loadu_ps(d + t)), _mm512_set1_ps(factor));
        const __m512i x = _mm512_cvtps_epi32(scaled);
        _mm512_store_si512(e + t, _mm512_or_si512(x, _mm512_slli_epi32(_mm512_bsrli_epi128(x, 8), 16)));
    }
}

// Weights of the lanes in `mask` of one vector.
void weigh(int32_t* weights, int64_t row, const uint16_t* p, const int32_t* e, int64_t count, __mmask16 mask) {
    const auto product = [](const uint16_t* of, int32_t steps) {
        return _mm512_add_epi16(_mm512_mulhi_epu16(_mm512_load_si512(of), _mm512_set1_epi32(steps)), _mm512_set1_epi16(128));
    };
    for (int64_t t = 0; t < count; t += 4, p += 4 * row, weights += row) {
        const __m512i even = product(p, e[t]), odd = product(p + 32, e[t + 1]);
        const __m512i four = _mm512_mask_mov_epi8(_mm512_srli_epi16(even, 8), 0xaaaaaaaaaaaaaaaa, odd);
        _mm512_mask_store_epi32(weights, mask, four);
    }
}

// o[8 lanes, 32 channels] = sum over tiles of factor (weights codes).
void add_values(float* o, const Staged& from, const uint8_t* codes, int64_t row, int64_t lane, int64_t keys) {
    constexpr int kCount = 8;
    const int32_t* weights = from.weights + lane;
    const float* factor = from.factor + lane;
    for (int64_t begin = 0; begin < keys; begin += kKeyTile, factor += kQueryLanes) {
        __m512i sum[kCount][2];
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_si512();
        const int64_t end = begin + kKeyTile < keys ? begin + kKeyTile : keys;
        for (int64_t t = begin; t < end; t += 4, codes += 128, weights += row) {
            const __m512i left = _mm512_load_si512(codes), right = _mm512_load_si512(codes + 64);
#pragma GCC unroll 8
            for (int i = 0; i < kCount; ++i) {
                const __m512i w = _mm512_set1_epi32(weights[i]);
                sum[i][0] = add_products(sum[i][0], w, left);
                sum[i][1] = add_products(sum[i][1], w, right);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i)
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                float* const to = o + i * kCacheBlock + 16 * half;
                const __m512 before = begin == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(to);
                _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][half]), _mm512_set1_ps(factor[i]), before));
            }
    }
}

// ---- a span --------------------------------------------------------------------------------------------------------------

struct Span {
    const AttentionTask& task;
    int64_t begin;
    int64_t keys, tiles;           // in whole groups: the last key that any lane sees comes again, masked
    int64_t blocks, vectors;       // of a key; of lanes
    int64_t seen[kQueryLanes];     // of the span's keys, by each lane
    int64_t run_end[kQueryLanes];  // behind the last of the lanes from this one on that see as many
    Staged& staged;

    Span(const AttentionTask& of, int64_t first, int64_t end, float* scratch)
        : task(of),
          begin(first),
          blocks(blocks_of(of)),
          vectors(vectors_of(of)),
          staged(*reinterpret_cast<Staged*>(scratch)) {
        for (int64_t i = 0; i < kQueryLanes; ++i) {
            const int64_t visible = task.visible[i < task.lanes ? i : task.lanes - 1] - begin;
            seen[i] = visible < 0 ? 0 : visible < end - begin ? visible : end - begin;
        }
        for (int64_t i = kQueryLanes - 1, run = vectors * kLanes; i >= 0; --i) {
            if (i + 1 < kQueryLanes && seen[i] != seen[i + 1]) run = i + 1;
            run_end[i] = run;
        }
        keys = (seen[task.lanes - 1] + kGroup - 1) / kGroup * kGroup;
        tiles = (keys + kKeyTile - 1) / kKeyTile;
    }
    // kGroup rows from the span's key `first` on; behind the last key, that one's.
    void rows(const std::byte** to, int64_t first) const {
        const int64_t last = begin + seen[task.lanes - 1] - 1;
        for (int64_t i = 0; i < kGroup; ++i) to[i] = task.keys.row(begin + first + i < last ? begin + first + i : last);
    }
    [[nodiscard]] int64_t tile_keys(int64_t tile) const {
        return keys - tile * kKeyTile < kKeyTile ? keys - tile * kKeyTile : kKeyTile;
    }
};

// Scores of a tile, as they come from the product.
template <BlockType kType>
void score_tile(const Span& span, const Queries& queries, int64_t tile) {
    const std::byte* rows[2][kGroup];
    span.rows(rows[0], tile * kKeyTile);
    for (int64_t t = 0; t < span.tile_keys(tile); t += kGroup) {
        const int64_t first = tile * kKeyTile + t, turn = t / kGroup % 2;
        span.rows(rows[1 - turn], first + kGroup);
        stage<kType>(span.staged, rows[turn], first, span.blocks, span.task.d_q);
        const ScoreStep step{queries, span.blocks,    span.vectors, span.task.d_v / kCacheBlock,
                             first,   rows[1 - turn], span.staged};
        for (int64_t j = 0; j < span.vectors; ++j)
            for (int64_t i = 0; i < kGroup; i += kKeys) score_keys<kType>(step, i, j);
    }
}

// Their exponentials; the tile's tops and sums.
void soften_tile(const Span& span, int64_t tile, float (&sum)[kTiles * kQueryLanes]) {
    Staged& staged = span.staged;
    const int64_t first = tile * kKeyTile, count = span.tile_keys(tile);
    for (int64_t j = 0; j < span.vectors; ++j) {
        float* const s = staged.scores + j * kKeyTile * kLanes;
        float seen[kLanes];
        bool masked = false;
        for (int64_t i = 0; i < kLanes; ++i) {
            seen[i] = static_cast<float>(span.seen[j * kLanes + i] - first);
            masked = masked || span.seen[j * kLanes + i] - first < count;
        }
        const Avx512 top = mask_and_top(s, Avx512::load(seen), count, masked);
        uint16_t* const p = staged.p + first * span.vectors * kLanes + j * 64;
        top.store(staged.top + tile * kQueryLanes + j * kLanes);
        exponentials(p, 64 * span.vectors, s, top, count).store(sum + tile * kQueryLanes + j * kLanes);
    }
}

// The span's maximum and sum; `top` of each tile becomes its f.
void join_tiles(const Span& span, float* last, const float (&sum)[kTiles * kQueryLanes]) {
    for (int64_t j = 0; j < span.vectors * kLanes; j += kLanes) {
        Avx512 top = Avx512::all(kNothing), total = Avx512::zero();
        for (int64_t t = j; t < span.tiles * kQueryLanes; t += kQueryLanes)
            top = Avx512::max(Avx512::load(span.staged.top + t), top);
        for (int64_t t = j; t < span.tiles * kQueryLanes; t += kQueryLanes) {
            const Avx512 f = exp(Avx512::load(span.staged.top + t) - top);
            f.store(span.staged.top + t);
            total = Avx512::fma(f, Avx512::load(sum + t), total);
        }
        top.store(last + j);
        total.store(last + kQueryLanes + j);
    }
}

// Weights and factors of block g, for each run of lanes that see the same keys.
void weigh_block(const Span& span, int64_t g) {
    Staged& staged = span.staged;
    const int64_t lanes = span.vectors * kLanes;
    for (int64_t lane = 0, end = 0; lane < lanes; lane = end) {
        end = span.run_end[lane];
        for (int64_t tile = 0; tile < span.tiles; ++tile) {
            const int64_t first = tile * kKeyTile, count = span.tile_keys(tile), seen = span.seen[lane] - first;
            const float* const d = staged.d + g * kScaleStride + first;
            const float most = largest(d, seen < count ? seen : count);
            scale_steps(staged.e + first, d, most > 0 ? 65280.0f / most : 0.0f, count);
            staged.most[tile] = most * (65536.0f / 65535.0f / 255.0f);
        }
        for (int64_t j = lane / kLanes * kLanes; j < end; j += kLanes) {
            const int from = static_cast<int>(lane > j ? lane - j : 0),
                      to = static_cast<int>(end - j < kLanes ? end - j : kLanes);
            const auto mask = static_cast<__mmask16>((1 << to) - (1 << from));
            weigh(staged.weights + j, lanes, staged.p + 4 * j, staged.e, span.keys, mask);
            for (int64_t at = j, tile = 0; tile < span.tiles; ++tile, at += kQueryLanes)
                _mm512_mask_store_ps(staged.factor + at, mask,
                                     _mm512_mul_ps(_mm512_load_ps(staged.top + at), _mm512_set1_ps(staged.most[tile])));
        }
    }
}

}  // namespace

bool has_whole_number_attention(const AttentionTask& task) {
    return __builtin_cpu_supports("avx512vnni") && (task.keys.type == BlockType::kQ80 || task.keys.type == BlockType::kQ40) &&
           task.values.width == 0 && task.shared.width == 0 && task.d_q >= kCacheBlock && task.d_v % kCacheBlock == 0;
}

int64_t packed_queries_floats(const AttentionTask& task) {
    return blocks_of(task) * (2 * kQueryLanes + kQuads * vectors_of(task) * kLanes);
}

void pack_queries_vnni(const AttentionTask& task, float* queries) {
    const Queries at(task, queries);
    const int64_t blocks = blocks_of(task), width = blocks * kCacheBlock, vectors = vectors_of(task);
    float x[kMaxHeadWidth] = {};
    int8_t q[kMaxHeadWidth];
    StepFactors factors[kMaxBlocks];
    std::memset(queries, 0, static_cast<size_t>(packed_queries_floats(task)) * sizeof(float));
    for (int64_t lane = 0; lane < task.lanes; ++lane) {
        for (int64_t c = 0; c < task.d_q; c += kLanes) {
            const int64_t count = task.d_q - c < kLanes ? task.d_q - c : kLanes;
            (Avx512::load(task.q[lane] + c, count) * Avx512::all(task.scale)).store(x + c);
        }
        quantize_row_avx512(q, factors, x, width, zero_of(task.keys.type), false);
        for (int64_t g = 0; g < blocks; ++g) {
            at.dq[g * kQueryLanes + lane] = factors[g].d;
            at.shift[g * kQueryLanes + lane] = factors[g].shift[0];
        }
        for (int64_t quad = 0; quad < width / 4; ++quad)
            std::memcpy(at.codes + 4 * (quad * vectors * kLanes + lane), q + 4 * quad, 4);
    }
}

int64_t span_scratch_floats() { return sizeof(Staged) / sizeof(float); }

void attend_to_span_vnni(const AttentionTask& task, float* queries, int64_t begin, int64_t end, const SpanSums& sums,
                         float* scratch) {
    const Span span(task, begin, end, scratch);
    const Queries at(task, queries);
    const int64_t lanes = span_lanes(task);
    float sum[kTiles * kQueryLanes];
    for (int64_t tile = 0; tile < span.tiles; ++tile) {
        (task.keys.type == BlockType::kQ80 ? score_tile<BlockType::kQ80> : score_tile<BlockType::kQ40>)(span, at, tile);
        soften_tile(span, tile, sum);
    }
    join_tiles(span, sums.last, sum);
    for (int64_t g = 0; g < task.d_v / kCacheBlock; ++g) {
        weigh_block(span, g);
        for (int64_t lane = 0; lane < lanes; lane += 8)
            add_values(sums.o + (g * lanes + lane) * kCacheBlock, span.staged, span.staged.values + g * kValueStride,
                       span.vectors * kLanes, lane, span.keys);
    }
}

void join_span_vnni(const AttentionTask& task, const SpanSums& sums, const SpanSums& next, int64_t first, int64_t end) {
    alignas(64) float kept[kQueryLanes], taken[kQueryLanes];
    const int64_t lanes = span_lanes(task);
    for (int64_t j = 0; j < lanes; j += kLanes) {
        const Avx512 old = Avx512::load(sums.last + j), top = Avx512::load(next.last + j), now = Avx512::max(old, top);
        const Avx512 f = exp(old - now), f_next = exp(top - now);
        f.store(kept + j);
        f_next.store(taken + j);
        now.store(sums.last + j);
        float* const sum = sums.last + kQueryLanes + j;
        Avx512::fma(Avx512::load(sum), f, Avx512::load(next.last + kQueryLanes + j) * f_next).store(sum);
    }
    for (int64_t g = first; g < end; ++g)
        for (int64_t lane = 0; lane < lanes; ++lane)
            for (int64_t c = 0; c < kCacheBlock; c += kLanes) {
                float* const o = sums.o + (g * lanes + lane) * kCacheBlock + c;
                const Avx512 add = Avx512::load(next.o + (g * lanes + lane) * kCacheBlock + c) * Avx512::all(taken[lane]);
                Avx512::fma(Avx512::load(o), Avx512::all(kept[lane]), add).store(o);
            }
}

void finish_spans_vnni(const AttentionTask& task, const SpanSums& sums, int64_t first, int64_t end) {
    for (int64_t lane = 0; lane < task.lanes; ++lane) {
        const float sum = sums.last[kQueryLanes + lane];
        const Avx512 inverse = Avx512::all(1.0f / sum);
        for (int64_t g = first; g < end; ++g) {
            const float* const o = sums.o + (g * span_lanes(task) + lane) * kCacheBlock;
            const Avx512 left = Avx512::load(o) * inverse, right = Avx512::load(o + kLanes) * inverse;
            float* const to = task.o[lane] + g * kCacheBlock;  // 128 bits hold 4 channels: see interleave
            Avx512{_mm512_shuffle_f32x4(left.v, right.v, 0x88)}.store(to);
            Avx512{_mm512_shuffle_f32x4(left.v, right.v, 0xdd)}.store(to + kLanes);
        }
        if (first == 0) *task.lse[lane] = sums.last[lane] + __builtin_logf(sum);
    }
}

}  // namespace fathom
