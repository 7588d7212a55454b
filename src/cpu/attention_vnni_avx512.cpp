// Latent attention over a cache of int8 or int4 blocks with AVX512-VNNI: both products in whole numbers, 16 x 4 multiply-adds
// an instruction. Not the bits of the f32 kernels (docs/decisions/013): queries and the softmax's weights are rounded to 8
// bits.
//   begin    per lane and 32 channels: query = dq code + rounding, code in [-127, 127]
//   scores   s = sum over blocks of dq d sum(code of the query, code of the key);  p = exp(s - top), top of this tile of keys
//   values   per tile and block of 32 channels: w = round(255 p d / d_max) in [0, 255], d_max of the keys that the lane sees;
//            o = o f + sum(w code) f_tile d_max / 255, f and f_tile as in attention_kernels.h, for a top per tile
// A lane meets no other one and a tile no other tile but in f and f_tile, so the bits do not depend on the batch, the chunk or
// the threads. A key of 576 channels and 16 heads takes 144 + 128 vpdpbusd and about as many other instructions: 159 ns of a
// Zen 4 core, 351 in f32.
#include <immintrin.h>
#include <cstring>

#include "cpu/attention_kernels.h"
#include "cpu/attention_task.h"
#include "cpu/kernels.h"
#include "cpu/quant_rows_avx512.h"
#include "cpu/simd_avx512.h"

namespace fathom {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kQuads = kCacheBlock / 4;
constexpr int64_t kMaxBlocks = kMaxHeadWidth / kCacheBlock;
constexpr int64_t kKeyStride = kMaxHeadWidth + 64;  // bytes between staged keys: 10 cache lines
constexpr float kNothing = -3e38f;                  // below every score, and still a number

using T = AttentionTemplates<Avx512>;

// What the steps share: of one task in `forward`, in AttentionSplit::memory else.
struct Space {
    int64_t blocks, vectors, d_v;  // of a key; of lanes
    uint8_t* codes;                // queries [blocks, 8, vectors, 16 x 4 bytes]
    float* dq;                     // [blocks, 64]
    int32_t* shift;                // [blocks, 64]: -128 sum of codes
    float* last;                   // [2, 64]: maximum and sum over all tiles
    float* o;                      // [lanes, d_v], channels in the order of interleaved()
    Space(const AttentionTask& task, float* memory)
        : blocks((task.d_q + kCacheBlock - 1) / kCacheBlock),
          vectors(T::vectors_of(task.lanes)),
          d_v(task.d_v) {
        dq = memory;
        shift = reinterpret_cast<int32_t*>(dq + blocks * kQueryLanes);
        last = dq + 2 * blocks * kQueryLanes;
        codes = reinterpret_cast<uint8_t*>(last + 2 * kQueryLanes);
        o = last + 2 * kQueryLanes + blocks * kCacheBlock / 4 * kQueryLanes;
    }
    [[nodiscard]] float* end() const { return o + d_v * kQueryLanes; }
};

// The 32 codes of block g of a row.
template <BlockType kType>
__m256i codes_of(const std::byte* row, int64_t g) {
    const auto* const from = reinterpret_cast<const __m128i*>(row + g * cache_block_bytes(kType) + 2);
    if constexpr (kType == BlockType::kQ80) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m128i bytes = _mm_loadu_si128(from), mask = _mm_set1_epi8(15);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_and_si128(bytes, mask)),
                                                 _mm_and_si128(_mm_srli_epi16(bytes, 4), mask), 1);
    return _mm256_sub_epi8(both, _mm256_set1_epi8(8));
}

// Where the keys of a tile lie: pages make finding a row cost a division.
struct TileRows {
    const std::byte* row[kKeyTile];
    TileRows(const KeyRows& keys, int64_t begin, int64_t count) {
        for (int64_t t = 0; t < count; ++t) row[t] = keys.row(begin + t);
    }
};

uint16_t half_of(BlockType type, const std::byte* row, int64_t g) {
    uint16_t half;
    std::memcpy(&half, row + g * cache_block_bytes(type), sizeof half);
    return half;
}

__m512i broadcast4(const uint8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}

// ---- queries -------------------------------------------------------------------------------------------------------------

void pack_queries(const AttentionTask& task, const Space& at) {
    const int64_t width = at.blocks * kCacheBlock;
    float x[kMaxHeadWidth] = {};
    int8_t q[kMaxHeadWidth];
    StepFactors factors[kMaxBlocks];
    std::memset(at.dq, 0, static_cast<size_t>(2 * at.blocks * kQueryLanes) * sizeof(float));
    std::memset(at.codes, 0, static_cast<size_t>(width * at.vectors * kLanes));
    for (int64_t lane = 0; lane < task.lanes; ++lane) {
        for (int64_t c = 0; c < task.d_q; ++c) x[c] = task.scale * task.q[lane][c];
        quantize_row_avx512(q, factors, x, width, 128, false);
        for (int64_t g = 0; g < at.blocks; ++g) {
            at.dq[g * kQueryLanes + lane] = factors[g].d;
            at.shift[g * kQueryLanes + lane] = factors[g].shift[0];
        }
        for (int64_t quad = 0; quad < width / 4; ++quad)
            std::memcpy(at.codes + 4 * (quad * at.vectors * kLanes + lane), q + 4 * quad, 4);
    }
}

// ---- scores --------------------------------------------------------------------------------------------------------------

// A tile of keys as codes + 128 and f32 scales.
struct StagedKeys {
    alignas(64) uint8_t codes[kKeyTile * kKeyStride];
    float d[kKeyTile * kMaxBlocks];
};

template <BlockType kType>
void stage(StagedKeys& to, const TileRows& keys, int64_t count, int64_t blocks) {
    for (int64_t t = 0; t < count; ++t) {
        const std::byte* const row = keys.row[t];
        for (int64_t g = 0; g < blocks; ++g) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.codes + t * kKeyStride + g * kCacheBlock),
                                _mm256_xor_si256(codes_of<kType>(row, g), _mm256_set1_epi8(-128)));
            to.d[t * kMaxBlocks + g] = _cvtsh_ss(half_of(kType, row, g));
        }
    }
}

// s[t, 16 lanes] of kKeys keys from `first` on, vector `vector` of the queries.
template <int kKeys>
void score_keys(float* s, const Space& at, const StagedKeys& keys, int64_t first, int64_t vector) {
    const uint8_t* const from = keys.codes + first * kKeyStride;
    const uint8_t* codes = at.codes + 64 * vector;
    __m512 y[kKeys];
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) y[i] = _mm512_setzero_ps();
    for (int64_t g = 0; g < at.blocks; ++g) {
        __m512i sum[kKeys];
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) sum[i] = _mm512_loadu_si512(at.shift + g * kQueryLanes + vector * kLanes);
#pragma GCC unroll 8
        for (int64_t quad = 0; quad < kQuads; ++quad, codes += 64 * at.vectors) {
            const __m512i q = _mm512_loadu_si512(codes);
#pragma GCC unroll 8
            for (int i = 0; i < kKeys; ++i)
                sum[i] = _mm512_dpbusd_epi32(sum[i], broadcast4(from + i * kKeyStride + g * kCacheBlock + 4 * quad), q);
        }
        const __m512 dq = _mm512_loadu_ps(at.dq + g * kQueryLanes + vector * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) {
            const __m512 d = _mm512_set1_ps(keys.d[(first + i) * kMaxBlocks + g]);
            y[i] = _mm512_fmadd_ps(dq, _mm512_mul_ps(d, _mm512_cvtepi32_ps(sum[i])), y[i]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) _mm512_storeu_ps(s + i * kQueryLanes, y[i]);
}

// s [kKeyTile, 64] = exp(scores - top) of the tile that begins at `begin`, its top and sum per lane. Rows of s behind the last
// key become zeros up to a multiple of 4.
void score_tile(float* s, float* top, float* sum, const AttentionTask& task, const Space& at, int64_t begin, int64_t count,
                float* scratch) {
    auto& keys = *reinterpret_cast<StagedKeys*>(scratch);
    const TileRows rows(task.keys, begin, count);
    (task.keys.type == BlockType::kQ80 ? stage<BlockType::kQ80> : stage<BlockType::kQ40>)(keys, rows, count, at.blocks);
    float visible[kQueryLanes];
    for (int64_t i = 0; i < kQueryLanes; ++i)
        visible[i] = static_cast<float>(task.visible[i < task.lanes ? i : task.lanes - 1]);
    for (int64_t j = 0; j < at.vectors; ++j) {
        int64_t t = 0;
        for (; t + 8 <= count; t += 8) score_keys<8>(s + t * kQueryLanes + j * kLanes, at, keys, t, j);
        for (; t < count; ++t) score_keys<1>(s + t * kQueryLanes + j * kLanes, at, keys, t, j);
        float* const lanes = s + j * kLanes;
        const Avx512 most =
            T::mask_and_top(lanes, Avx512::all(kNothing), Avx512::load(visible + j * kLanes), begin, count, true);
        most.store(top + j * kLanes);
        T::exponentials(lanes, most, count).store(sum + j * kLanes);
        for (; t % 4 != 0; ++t) _mm512_storeu_ps(lanes + t * kQueryLanes, _mm512_setzero_ps());
    }
}

// ---- values --------------------------------------------------------------------------------------------------------------

// Of a tile and 32 channels: four keys' codes side by side, [16, 2, 64 bytes], and the lanes' weights, [16, lanes, 4 bytes].
struct StagedValues {
    alignas(64) uint8_t codes[kKeyTile / 4 * 128];
    alignas(64) int32_t weights[kKeyTile / 4 * kQueryLanes];
    float d[kKeyTile];        // scales
    uint16_t half[kKeyTile];  // the same, and the largest so far: positive halves are ordered as whole numbers
    uint16_t most[kKeyTile];
    alignas(64) float factor[kQueryLanes];  // 255 / the largest scale of the keys that a lane sees
};

// Channels {0-3, 16-19, 4-7, 20-23} and {8-11, 24-27, 12-15, 28-31}, four bytes each.
void interleave(uint8_t* to, const __m256i (&row)[4]) {
    const __m256i low01 = _mm256_unpacklo_epi8(row[0], row[1]), high01 = _mm256_unpackhi_epi8(row[0], row[1]);
    const __m256i low23 = _mm256_unpacklo_epi8(row[2], row[3]), high23 = _mm256_unpackhi_epi8(row[2], row[3]);
    auto* const at = reinterpret_cast<__m256i*>(to);
    _mm256_store_si256(at, _mm256_unpacklo_epi16(low01, low23));
    _mm256_store_si256(at + 1, _mm256_unpackhi_epi16(low01, low23));
    _mm256_store_si256(at + 2, _mm256_unpacklo_epi16(high01, high23));
    _mm256_store_si256(at + 3, _mm256_unpackhi_epi16(high01, high23));
}
// Where `interleave` has put 4 channels from 4 i on, in fours.
constexpr int64_t kPlaceOfFour[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// Codes of block g, negated where the scale is negative (Q4_0), keys in excess as zeros.
template <BlockType kType>
void stage_values(StagedValues& to, const TileRows& keys, int64_t count, int64_t g) {
    uint16_t most = 0;
    for (int64_t t = 0; t < count; t += 4) {
        __m256i row[4];
        for (int64_t i = 0; i < 4; ++i) {
            const bool there = t + i < count;
            const uint16_t half = there ? half_of(kType, keys.row[t + i], g) : 0;
            row[i] = there ? codes_of<kType>(keys.row[t + i], g) : _mm256_setzero_si256();
            if constexpr (kType == BlockType::kQ40)  // a branch on the sign would be guessed wrong every other time
                row[i] = _mm256_sign_epi8(row[i], _mm256_set1_epi8(static_cast<char>(1 - 2 * (half >> 15))));
            to.half[t + i] = half & 0x7fff;
            most = most > to.half[t + i] ? most : to.half[t + i];
            to.most[t + i] = most;
        }
        interleave(to.codes + 32 * t, row);
    }
    for (int64_t t = 0; t < count; t += kLanes) Avx512::load(reinterpret_cast<const Float16*>(to.half + t)).store(to.d + t);
}

// weights = round(255 p d / most), rows of p, p_row floats apart, up to a multiple of 4 being zeros.
void stage_weights(StagedValues& to, const float* p, int64_t p_row, int64_t count, int64_t vectors) {
    for (int64_t j = 0; j < vectors; ++j) {
        const __m512 factor = _mm512_load_ps(to.factor + j * kLanes);
        for (int64_t t = 0; t < count; t += 4) {
            __m512i w[4];
#pragma GCC unroll 4
            for (int64_t i = 0; i < 4; ++i) {
                const __m512 d = _mm512_mul_ps(factor, _mm512_set1_ps(to.d[t + i]));
                w[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(p + (t + i) * p_row + j * kLanes), d));
            }
            const __m512i low = _mm512_or_si512(w[0], _mm512_slli_epi32(w[1], 8));
            const __m512i high = _mm512_or_si512(w[2], _mm512_slli_epi32(w[3], 8));
            const __m512i four = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
            _mm512_store_si512(to.weights + t / 4 * kQueryLanes + j * kLanes, four);
        }
    }
}

// o[lane, 32 channels] = o f + weights codes f_tile for kCount lanes from `lane` on.
template <int kCount>
void add_values(float* o, int64_t o_row, const StagedValues& from, int64_t quads, int64_t lane, const float* f,
                const float* f_tile) {
    __m512i sum[kCount][2];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_si512();
    for (int64_t quad = 0; quad < quads; ++quad) {
        const __m512i left = _mm512_load_si512(from.codes + 128 * quad),
                      right = _mm512_load_si512(from.codes + 128 * quad + 64);
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i) {
            const __m512i w = _mm512_set1_epi32(from.weights[quad * kQueryLanes + lane + i]);
            sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], w, left);
            sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], w, right);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            float* const to = o + i * o_row + 16 * half;
            const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(to), _mm512_set1_ps(f[i]));
            _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][half]), _mm512_set1_ps(f_tile[i]), kept));
        }
}

// Channels [first, last) of a tile, whole blocks. p: what score_tile left, p_row floats apart; f, f_tile [64].
void value_tile(const AttentionTask& task, const Space& at, const float* p, int64_t p_row, const float* f, const float* f_tile,
                int64_t begin, int64_t count, int64_t first, int64_t last, float* scratch) {
    auto& staged = *reinterpret_cast<StagedValues*>(scratch);
    const int64_t quads = (count + 3) / 4;
    const TileRows rows(task.keys, begin, count);
    float scaled[kQueryLanes];
    for (int64_t c = first; c < last; c += kCacheBlock) {
        (task.keys.type == BlockType::kQ80 ? stage_values<BlockType::kQ80> : stage_values<BlockType::kQ40>)(staged, rows, count,
                                                                                                            c / kCacheBlock);
        for (int64_t i = 0; i < kQueryLanes; ++i) {
            const int64_t sees = i < task.lanes ? task.visible[i] - begin : 0;
            const float most = sees > 0 ? _cvtsh_ss(staged.most[sees < count ? sees - 1 : count - 1]) : 0.0f;
            staged.factor[i] = most > 0 ? 255.0f / most : 0.0f;
            scaled[i] = f_tile[i] * (most / 255.0f);
        }
        stage_weights(staged, p, p_row, count, at.vectors);
        int64_t lane = 0;
        for (; lane + 8 <= task.lanes; lane += 8)
            add_values<8>(at.o + lane * at.d_v + c, at.d_v, staged, quads, lane, f + lane, scaled + lane);
        for (; lane < task.lanes; ++lane)
            add_values<1>(at.o + lane * at.d_v + c, at.d_v, staged, quads, lane, f + lane, scaled + lane);
    }
}

// ---- tiles to a whole ----------------------------------------------------------------------------------------------------

// A tile's top and sum meet the running ones in `last`: top becomes f_tile, f is for what came before.
void join(float* last, float* top, const float* sum, float* f, int64_t vectors) {
    for (int64_t j = 0; j < vectors * kLanes; j += kLanes) {
        const Avx512 old = Avx512::load(last + j), tile = Avx512::load(top + j), now = Avx512::max(old, tile);
        const Avx512 kept = exp(old - now), taken = exp(tile - now);
        now.store(last + j);
        kept.store(f + j);
        taken.store(top + j);
        float* const total = last + kQueryLanes + j;
        Avx512::fma(Avx512::load(total), kept, Avx512::load(sum + j) * taken).store(total);
    }
}

void begin_task(const AttentionTask& task, const Space& at) {
    pack_queries(task, at);
    for (int64_t i = 0; i < kQueryLanes; ++i) at.last[i] = kNothing, at.last[kQueryLanes + i] = 0;
    std::memset(at.o, 0, static_cast<size_t>(task.lanes * task.d_v) * sizeof(float));
}

void finish(const AttentionTask& task, const Space& at) {
    for (int64_t i = 0; i < task.lanes; ++i) {
        const float sum = at.last[kQueryLanes + i], inverse = 1.0f / sum;
        for (int64_t c = 0; c < task.d_v; c += 4) {
            const float* const from =
                at.o + i * task.d_v + c / kCacheBlock * kCacheBlock + 4 * kPlaceOfFour[c % kCacheBlock / 4];
            for (int64_t k = 0; k < 4; ++k) task.o[i][c + k] = from[k] * inverse;
        }
        *task.lse[i] = at.last[i] + __builtin_logf(sum);
    }
}

void forward(const AttentionTask& task, float* scratch) {
    const Space at(task, scratch);
    float* const s = at.end();
    float* const staged = s + kKeyTile * kQueryLanes;
    float top[kQueryLanes], sum[kQueryLanes], f[kQueryLanes];
    const int64_t keys = task.visible[task.lanes - 1];
    begin_task(task, at);
    for (int64_t begin = 0; begin < keys; begin += kKeyTile) {
        const int64_t count = keys - begin < kKeyTile ? keys - begin : kKeyTile;
        score_tile(s, top, sum, task, at, begin, count, staged);
        join(at.last, top, sum, f, at.vectors);
        value_tile(task, at, s, kQueryLanes, f, top, begin, count, 0, task.d_v, staged);
    }
    finish(task, at);
}

// ---- the same, split over threads ----------------------------------------------------------------------------------------

struct SplitSpace : Space {
    int64_t keys, tiles;
    float *top, *sum, *factor, *s;  // [tiles, 64] each, s [tiles 64, row()]
    explicit SplitSpace(const AttentionSplit& split) : Space(*split.task, split.memory) {
        keys = split.task->visible[split.task->lanes - 1];
        tiles = (keys + kKeyTile - 1) / kKeyTile;
        top = end();
        sum = top + tiles * kQueryLanes;
        factor = sum + tiles * kQueryLanes;
        s = factor + tiles * kQueryLanes;
    }
    [[nodiscard]] int64_t count(int64_t tile) const {
        return keys - tile * kKeyTile < kKeyTile ? keys - tile * kKeyTile : kKeyTile;
    }
    // Without the lanes that no query has: they pass through the caches once for each part of the channels.
    [[nodiscard]] int64_t row() const { return vectors * kLanes; }
    [[nodiscard]] float* scores(int64_t tile) const { return s + tile * kKeyTile * row(); }
};

void split_begin(const AttentionSplit& split) { begin_task(*split.task, SplitSpace(split)); }

void split_scores(const AttentionSplit& split, int64_t tile, float* scratch) {
    const SplitSpace at(split);
    float* const s = scratch + kKeyTile * kRowStride;
    const int64_t count = at.count(tile);
    score_tile(s, at.top + tile * kQueryLanes, at.sum + tile * kQueryLanes, *split.task, at, tile * kKeyTile, count, scratch);
    for (int64_t t = 0; t < (count + 3) / 4 * 4; ++t)
        std::memcpy(at.scores(tile) + t * at.row(), s + t * kQueryLanes, static_cast<size_t>(at.row()) * sizeof(float));
}

void split_maxima(const AttentionSplit& split) {
    const SplitSpace at(split);
    for (int64_t tile = 0; tile < at.tiles; ++tile)
        join(at.last, at.top + tile * kQueryLanes, at.sum + tile * kQueryLanes, at.factor + tile * kQueryLanes, at.vectors);
}

void split_weights(const AttentionSplit& /*split*/, int64_t /*tile*/) {}  // score_tile has done it

void split_values(const AttentionSplit& split, int64_t first, int64_t last, float* scratch) {
    const SplitSpace at(split);
    for (int64_t tile = 0; tile < at.tiles; ++tile)
        value_tile(*split.task, at, at.scores(tile), at.row(), at.factor + tile * kQueryLanes, at.top + tile * kQueryLanes,
                   tile * kKeyTile, at.count(tile), first, last, scratch);
}

void split_end(const AttentionSplit& split) { finish(*split.task, SplitSpace(split)); }

// `forward` has the memory of attention_scratch_floats: two tiles of packed rows, of which this file needs less.
static_assert(sizeof(StagedKeys) <= sizeof(float) * kKeyTile * kRowStride);
static_assert(sizeof(StagedValues) <= sizeof(float) * kKeyTile * kRowStride);

}  // namespace

const AttentionKernels& attention_kernels_vnni() {
    static constexpr AttentionKernels kTable{.forward = forward,
                                             .backward = nullptr,
                                             .split_begin = split_begin,
                                             .split_scores = split_scores,
                                             .split_maxima = split_maxima,
                                             .split_weights = split_weights,
                                             .split_values = split_values,
                                             .split_end = split_end};
    return kTable;
}

bool has_whole_number_attention(const AttentionTask& task) {
    return __builtin_cpu_supports("avx512vnni") && (task.keys.type == BlockType::kQ80 || task.keys.type == BlockType::kQ40) &&
           task.values.width == 0 && task.shared.width == 0 && task.d_q >= kCacheBlock && task.d_v % kCacheBlock == 0;
}

}  // namespace fathom
