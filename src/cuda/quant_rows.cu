// y = x w^T of few rows of x with weights of 4 or 8 bits: bound by reading the codes once.
//
// A block of four warps has 16 rows of the weight and 8 of x, or 32 and up to 32. Tensor cores multiply (m16n8k16): the
// weight's rows are the 16, so that one to eight rows of x cost the same. The order in which columns enter a sum is free, so a
// lane reads what it multiplies as it lies in memory: a quarter of a chunk of columns (16 bytes of a row in int4), of two rows
// of the weight and of its row of x. Codes become bf16 without rounding (integers up to 255, e4m3), f32 sums of a chunk are
// multiplied by its scale and added up. Warp i has chunks i, i + 4, ..., whose codes are fetched several chunks ahead, the
// first ones before the kernel ahead has ended; the four sums are added in order. Bytes: codes and scales once, x once per 16
// or 32 rows of the weight, from L2. 2 m n k FLOP, and about 1.4 (int4), 1.8 (int8) or 2.3 (FP8) integer instructions per code.
#include "cuda/find_tile.cuh"
#include "cuda/mma.cuh"
#include "cuda/quant.h"

namespace fathom::cuda {
namespace {

constexpr int kWarps = 4, kTileRows = 8;

// What a lane has of a chunk in one row of the weight: kChunk / 4 columns, in words of 8 (int4) or 4 codes.
template <CodeKind kKind, int kChunk>
constexpr int kWords = kChunk / 4 / (kKind == CodeKind::kInt4 ? 8 : 4);

// Codes are read once: they need no place in L1, which x has use for.
template <int kCount>
__device__ __forceinline__ void load_words(uint32_t (&to)[kCount], const uint8_t* from) {
    if constexpr (kCount % 4 == 0) {
#pragma unroll
        for (int i = 0; i < kCount; i += 4)
            asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(to[i]), "=r"(to[i + 1]), "=r"(to[i + 2]), "=r"(to[i + 3])
                         : "l"(from + 4 * i));
    } else if constexpr (kCount == 2) {
        const uint2 two = __ldg(reinterpret_cast<const uint2*>(from));
        to[0] = two.x, to[1] = two.y;
    } else {
        static_assert(kCount == 1);
        to[0] = __ldg(reinterpret_cast<const uint32_t*>(from));
    }
}

__device__ __forceinline__ uint32_t subtract(uint32_t a, uint32_t b) {
    const auto difference = __hsub2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
    return *reinterpret_cast<const uint32_t*>(&difference);
}

// (x & mask) | bits: left to itself the compiler makes two instructions of it.
__device__ __forceinline__ uint32_t masked_or(uint32_t x, uint32_t mask, uint32_t bits) {
    uint32_t y = 0;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(bits));
    return y;
}
// The compiler then keeps the address, instead of computing it again wherever it is needed.
template <class T>
__device__ __forceinline__ void keep(T& value) {
    if constexpr (sizeof(T) == 8)
        asm volatile("" : "+l"(value));
    else
        asm volatile("" : "+r"(value));
}

// Two bf16 in a word are called a pair. A word of codes becomes pairs in the order that costs least; `columns` of x are put in
// the same order.
template <CodeKind kKind>
struct Decoder;

// 128 + nibble is the bits 0x4300 | nibble. Pairs: columns (0, 4), (1, 5), (2, 6), (3, 7).
template <>
struct Decoder<CodeKind::kInt4> {
    static constexpr int kPairs = 4;
    static __device__ __forceinline__ void decode(uint32_t (&pairs)[4], uint32_t word, uint32_t zero) {
#pragma unroll
        for (int i = 0; i < 4; ++i) pairs[i] = subtract(masked_or(word >> (4 * i), 0x000f000fu, 0x43004300u), zero);
    }
    static __device__ __forceinline__ void columns(uint32_t (&pairs)[4], const uint4& x) {
        pairs[0] = __byte_perm(x.x, x.z, 0x5410);
        pairs[1] = __byte_perm(x.x, x.z, 0x7632);
        pairs[2] = __byte_perm(x.y, x.w, 0x5410);
        pairs[3] = __byte_perm(x.y, x.w, 0x7632);
    }
};

// Words of bytes. Pairs: columns (0, 2), (1, 3), and of the next word (4, 6), (5, 7).
struct ByteColumns {
    static constexpr int kPairs = 2;
    static __device__ __forceinline__ void columns(uint32_t (&pairs)[4], const uint4& x) {
        pairs[0] = __byte_perm(x.x, x.y, 0x5410);
        pairs[1] = __byte_perm(x.x, x.y, 0x7632);
        pairs[2] = __byte_perm(x.z, x.w, 0x5410);
        pairs[3] = __byte_perm(x.z, x.w, 0x7632);
    }
};

// Seven bits above 128, less 128 or, where the sign bit is set, less 256.
template <>
struct Decoder<CodeKind::kInt8> : ByteColumns {
    static __device__ __forceinline__ void decode(uint32_t (&pairs)[2], uint32_t word, uint32_t /*zero*/) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t codes = word >> (8 * i);
            pairs[i] = subtract(masked_or(codes, 0x007f007fu, 0x43004300u), masked_or(codes, 0x00800080u, 0x43004300u));
        }
    }
};

// Exponent and fraction put where bf16 has the low end of them are 2^-120 of the number, subnormal numbers included.
template <>
struct Decoder<CodeKind::kFp8> : ByteColumns {
    static __device__ __forceinline__ void decode(uint32_t (&pairs)[2], uint32_t word, uint32_t /*zero*/) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t codes = i == 0 ? word << 8 : word;
            uint32_t small = masked_or(codes, 0x80008000u, (codes >> 4) & 0x07f007f0u), up = 0x7b807b80u;  // 2^120
            const auto number = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&small), *reinterpret_cast<__nv_bfloat162*>(&up));
            pairs[i] = *reinterpret_cast<const uint32_t*>(&number);
        }
    }
};

// A lane's part of a chunk in its rows of the weight, two of each 16, 8 apart: as it came, so that nothing waits for it yet.
template <CodeKind kKind, int kChunk, int kSixteens>
struct Fetched {
    uint32_t codes[2 * kSixteens][kWords<kKind, kChunk>];
    uint32_t scale[2 * kSixteens];  // bits of the scale's type
    uint32_t zero[2 * kSixteens];
};

__device__ __forceinline__ float scale_of(uint32_t bits, DType type) {
    if (type == DType::kF32) return __uint_as_float(bits);
    if (type == DType::kBF16) return __uint_as_float(bits << 16);
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// A lane's rows of one matrix. Behind the matrix's last row they are that row again.
template <CodeKind kKind, int kChunk, int kSixteens>
class Lines {
public:
    __device__ Lines(const CodeFormat& format, const CodeTable& table, int group, int64_t row, int quarter)
        : wide_scales_(format.scale_type == DType::kF32),
          has_zeros_(kKind == CodeKind::kInt4 && format.has_zeros),
          chunks_per_group_(static_cast<unsigned>(format.group) / kChunk) {
        const auto scale_at = [&](int64_t r) {
            const int64_t scale_row = kKind == CodeKind::kFp8 ? (table.first_row[group] + r) / kFp8Block : r;
            return scale_row * format.scale_row * (wide_scales_ ? 4 : 2);
        };
        const int64_t first = min(row, format.rows - 1);
        codes_ = table.codes[group] + first * format.code_row + quarter * kBytes;
        scales_ = static_cast<const uint8_t*>(table.scales[group]) + scale_at(first);
        zeros_ = has_zeros_ ? table.zeros[group] + first * format.zero_row : nullptr;
        keep(codes_), keep(scales_);
        if constexpr (kKind == CodeKind::kInt4) keep(zeros_);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            const int64_t at = min(row + 8 * i, format.rows - 1);
            to_codes_[i] = static_cast<unsigned>((at - first) * format.code_row);
            to_scales_[i] = static_cast<unsigned>(scale_at(at) - scale_at(first));
            to_zeros_[i] = static_cast<unsigned>((at - first) * format.zero_row);
            if (i == 0) continue;
            keep(to_codes_[i]), keep(to_scales_[i]);
            if constexpr (kKind == CodeKind::kInt4) keep(to_zeros_[i]);
        }
    }

    __device__ __forceinline__ void fetch(Fetched<kKind, kChunk, kSixteens>& to, unsigned chunk) const {
        const unsigned group = chunks_per_group_ == 1 ? chunk : chunk / chunks_per_group_;
        const uint8_t* codes = codes_ + chunk * (4u * kBytes);
        const uint8_t* scales = scales_ + group * (wide_scales_ ? 4u : 2u);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            load_words(to.codes[i], codes + to_codes_[i]);
            if (wide_scales_)
                to.scale[i] = __ldg(reinterpret_cast<const uint32_t*>(scales + to_scales_[i]));
            else
                to.scale[i] = __ldg(reinterpret_cast<const uint16_t*>(scales + to_scales_[i]));
            if constexpr (kKind == CodeKind::kInt4) to.zero[i] = has_zeros_ ? __ldg(zeros_ + group + to_zeros_[i]) : 8u;
        }
    }

private:
    static constexpr int kRows = 2 * kSixteens;
    static constexpr int kBytes = 4 * kWords<kKind, kChunk>;  // of a lane's part in one row

    bool wide_scales_, has_zeros_;
    unsigned chunks_per_group_;
    const uint8_t *codes_, *scales_, *zeros_;                        // of the first row
    unsigned to_codes_[kRows], to_scales_[kRows], to_zeros_[kRows];  // bytes from there to each
};

// What a lane has of a chunk in its row of each tile of x: eight columns at a time. Loaded as a whole, before it is needed; of
// four tiles, which would take 64 registers, when it is. Not by way of __ldg, which may be moved before the wait for the kernel
// ahead.
template <int kChunk, int kTiles>
class Columns {
public:
    // x[t]: row lane / 4 of tile t.
    __device__ __forceinline__ void load(const Bf16* const (&x)[kTiles], unsigned chunk) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
            from_[t] = reinterpret_cast<const uint4*>(x[t] + chunk * kChunk);
#pragma unroll
            for (int e = 0; e < kHeld; ++e) eight_[t][e] = from_[t][e];
        }
    }
    __device__ __forceinline__ uint4 at(int t, int e) const { return kHeld > 0 ? eight_[t][e] : from_[t][e]; }

private:
    static constexpr int kHeld = kTiles < 4 ? kChunk / 32 : 0;
    const uint4* from_[kTiles];
    uint4 eight_[kTiles][kHeld > 0 ? kHeld : 1];
};

// sums += scale (codes x) of one chunk.
template <CodeKind kKind, int kChunk, int kSixteens, int kTiles>
__device__ __forceinline__ void multiply_chunk(float (&sums)[kSixteens][kTiles][4], const Fetched<kKind, kChunk, kSixteens>& w,
                                               const Columns<kChunk, kTiles>& x, DType scale_type) {
    constexpr int kPairs = Decoder<kKind>::kPairs;  // of a word
    uint32_t zero[2 * kSixteens]{};                 // 128 + zero point, as a pair; zero points are at most 15
    if constexpr (kKind == CodeKind::kInt4) {
#pragma unroll
        for (int i = 0; i < 2 * kSixteens; ++i) zero[i] = 0x43004300u + w.zero[i] * 0x00010001u;
    }
    float part[kSixteens][kTiles][4]{};
#pragma unroll
    for (int e = 0; e < kChunk / 32; ++e) {
        uint32_t right[kTiles][4];
#pragma unroll
        for (int t = 0; t < kTiles; ++t) Decoder<kKind>::columns(right[t], x.at(t, e));
#pragma unroll
        for (int s = 0; s < kSixteens; ++s) {
            uint32_t left[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int word = 0; word < 4 / kPairs; ++word)
                    Decoder<kKind>::decode(*reinterpret_cast<uint32_t(*)[kPairs]>(left[i] + word * kPairs),
                                           w.codes[2 * s + i][e * 4 / kPairs + word], zero[2 * s + i]);
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                multiply_add(part[s][t], {left[0][0], left[1][0], left[0][1], left[1][1]}, right[t][0], right[t][1]);
                multiply_add(part[s][t], {left[0][2], left[1][2], left[0][3], left[1][3]}, right[t][2], right[t][3]);
            }
        }
    }
#pragma unroll
    for (int s = 0; s < kSixteens; ++s) {
        const float scale[2] = {scale_of(w.scale[2 * s], scale_type), scale_of(w.scale[2 * s + 1], scale_type)};
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[s][t][i] = fmaf(scale[i / 2], part[s][t][i], sums[s][t][i]);
    }
}

// The warps' sums, added in order, as rows of y. c[i] of a lane: row 2 (lane % 4) + i % 2 of x, lane / 4 + 8 (i / 2) of w.
template <int kSixteens, int kTiles>
__device__ __forceinline__ void add_and_store(const CodedProduct& p, int64_t y_at, const float (&sums)[kSixteens][kTiles][4],
                                              const TileRows& tile, int64_t row) {
    constexpr int kOfWeight = 16 * kSixteens, kOfX = kTiles * kTileRows;
    __shared__ float shared[kWarps][kOfX][kOfWeight + 1];
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
#pragma unroll
    for (int s = 0; s < kSixteens; ++s)
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                shared[warp][t * kTileRows + 2 * (lane % 4) + i % 2][16 * s + lane / 4 + 8 * (i / 2)] = sums[s][t][i];
    __syncthreads();
#pragma unroll
    for (int e = thread; e < kOfX * kOfWeight; e += kWarps * kWarp) {
        const int of_x = e / kOfWeight, of_w = e % kOfWeight;
        if (tile.begin + of_x >= tile.end || row + of_w >= p.format.rows) continue;
        float sum = shared[0][of_x][of_w];
#pragma unroll
        for (int other = 1; other < kWarps; ++other) sum += shared[other][of_x][of_w];
        store(p.y, p.y_type, y_at + (tile.begin + of_x) * p.y_row + row + of_w, sum);
    }
}

// Which rows of x meet which matrix in this block; group -1: none.
template <int kRows>
__device__ TileRows rows_of_block(const CodedProduct& p) {
    if (p.offsets != nullptr) return find_tile<kRows>(p.offsets, p.groups, blockIdx.y);
    const int64_t first = static_cast<int64_t>(blockIdx.y) * kRows;
    return {static_cast<int>(blockIdx.z), first, min(p.m, first + kRows)};
}

template <CodeKind kKind, int kChunk, int kSixteens, int kTiles>
__global__ void __launch_bounds__(kWarps* kWarp)
    coded_rows_kernel(const __grid_constant__ CodedProduct p, const __grid_constant__ CodeTable table) {
    constexpr int kRows = kTiles * kTileRows, kAhead = kKind == CodeKind::kInt4 && kSixteens == 1 ? 4 : 2;  // even
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp, quarter = lane % 4;
    const int chunks = static_cast<int>(p.format.columns / kChunk);
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (16 * kSixteens);
    Fetched<kKind, kChunk, kSixteens> ahead[kAhead];
    const auto first_chunks_of = [&](int group) {
        const Lines<kKind, kChunk, kSixteens> lines(p.format, table, group, row + lane / 4, quarter);
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
            if (warp + i * kWarps < chunks) lines.fetch(ahead[i], warp + i * kWarps);
    };
    // Before the kernel ahead has ended, and letting the next one do the same: codes are nothing that kernels write. Offsets
    // may be, so they are looked up again.
    let_next_begin();
    const int guess = rows_of_block<kRows>(p).group;
    if (guess >= 0) first_chunks_of(guess);
    begin_early();
    const TileRows tile = rows_of_block<kRows>(p);
    if (tile.group < 0) return;
    if (tile.group != guess) first_chunks_of(tile.group);

    const int64_t apart = p.offsets == nullptr ? tile.group : 0;
    const Bf16* x[kTiles];  // behind the last row that row again: its results are not stored
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
        const int64_t at = min(tile.begin + t * kTileRows + lane / 4, tile.end - 1);
        x[t] = static_cast<const Bf16*>(p.x) + apart * p.x_group + at * p.x_row + quarter * (kChunk / 4);
    }
    const Lines<kKind, kChunk, kSixteens> lines(p.format, table, tile.group, row + lane / 4, quarter);
    // Of one tile the next chunk's columns are on their way while this one's are multiplied; more would not fit in registers.
    constexpr int kColumns = kTiles == 1 ? 2 : 1;
    Columns<kChunk, kTiles> columns[kColumns];
    if (warp < chunks) columns[0].load(x, warp);
    float sums[kSixteens][kTiles][4]{};
    for (int base = warp; base < chunks; base += kAhead * kWarps) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int chunk = base + i * kWarps;
            if (chunk >= chunks) break;
            if (kColumns == 2 && chunk + kWarps < chunks) columns[(i + 1) % kColumns].load(x, chunk + kWarps);
            multiply_chunk<kKind, kChunk, kSixteens, kTiles>(sums, ahead[i], columns[i % kColumns], p.format.scale_type);
            if (chunk + kAhead * kWarps < chunks) lines.fetch(ahead[i], chunk + kAhead * kWarps);
            if (kColumns == 1 && chunk + kWarps < chunks) columns[0].load(x, chunk + kWarps);
        }
    }
    add_and_store<kSixteens, kTiles>(p, apart * p.y_group, sums, tile, row);
}

// Columns that a warp reads at a time: of one scale, up to 128; 0: no such kernel.
int chunk_of(const CodeFormat& format) {
    for (const int chunk : {128, 64, 32})
        if (format.group % chunk == 0 && format.columns % chunk == 0) return chunk;
    return 0;
}

template <CodeKind kKind, int kChunk, int kSixteens, int kTiles>
void launch(cudaStream_t stream, const CodedProduct& p, const CodeTable& table) {
    constexpr int64_t kRows = kTiles * kTileRows;
    // Every matrix with rows may end in a tile that is not full.
    const int64_t tiles = p.offsets == nullptr ? ceil_div(p.m, kRows) : std::min<int64_t>(p.m, p.m / kRows + p.groups);
    const dim3 grid(static_cast<unsigned>(ceil_div(p.format.rows, 16 * kSixteens)), static_cast<unsigned>(tiles),
                    p.offsets == nullptr ? static_cast<unsigned>(p.groups) : 1u);
    launch_early(coded_rows_kernel<kKind, kChunk, kSixteens, kTiles>, grid, kWarps * kWarp, 0, stream, p, table);
}

// The fewest rows per block that most matrices' rows fit in; of small groups only the smallest and the largest. With more than
// one tile of x, 32 rows of the weight share what is read of x.
template <CodeKind kKind, int kChunk>
void launch(cudaStream_t stream, const CodedProduct& p, const CodeTable& table) {
    const int64_t rows = p.offsets == nullptr ? p.m : ceil_div(p.m * 5, p.groups * 4);
    if (rows <= kTileRows) return launch<kKind, kChunk, 1, 1>(stream, p, table);
    if constexpr (kChunk == 128) {
        if (rows <= 2 * kTileRows) return launch<kKind, kChunk, 2, 2>(stream, p, table);
    }
    launch<kKind, kChunk, 2, 4>(stream, p, table);
}

template <CodeKind kKind>
void launch(cudaStream_t stream, const CodedProduct& p, const CodeTable& table) {
    switch (chunk_of(p.format)) {
        case 128:
            return launch<kKind, 128>(stream, p, table);
        case 64:
            return launch<kKind, 64>(stream, p, table);
        default:
            return launch<kKind, 32>(stream, p, table);
    }
}

}  // namespace

bool suits_coded_rows(const CodedProduct& p, const CodeTable& table) {
    const CodeFormat& f = p.format;
    const int chunk = chunk_of(f);
    if (chunk == 0 || (f.has_zeros && f.kind != CodeKind::kInt4)) return false;
    const int64_t bytes = std::min(chunk / 4 * (f.kind == CodeKind::kInt4 ? 1 : 2) / 2, 16);  // of one load
    bool all = reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && p.x_row % 8 == 0 && p.x_group % 8 == 0 && f.code_row % bytes == 0;
    for (int g = 0; g < p.groups; ++g) all = all && reinterpret_cast<uintptr_t>(table.codes[g]) % bytes == 0;
    return all;
}

void run_coded_rows(cudaStream_t stream, const char* op, const CodedProduct& p, const CodeTable& table) {
    if (p.m == 0 || p.format.rows == 0) return;
    switch (p.format.kind) {
        case CodeKind::kInt4:
            launch<CodeKind::kInt4>(stream, p, table);
            break;
        case CodeKind::kInt8:
            launch<CodeKind::kInt8>(stream, p, table);
            break;
        case CodeKind::kFp8:
            launch<CodeKind::kFp8>(stream, p, table);
            break;
    }
    check_launch(op);
}

}  // namespace fathom::cuda
