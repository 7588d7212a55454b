// Bit layouts after ggml's ggml-common.h; every block type is the integers and factors of split_block.
#include "tensor/blocks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cstring>

#include "base/error.h"
#include "tensor/dtype.h"

namespace fathom {
namespace {

constexpr uint32_t kNoFile = 0xffffffff;
constexpr std::array<BlockTraits, static_cast<size_t>(kLastBlockType) + 1> kTraits{
    {{"none", kNoFile, 1, 1, 0},      {"Q4_0", 2, 32, 18, 288},      {"Q4_1", 3, 32, 20, 320},
     {"Q5_0", 6, 32, 22, 352},        {"Q5_1", 7, 32, 24, 384},      {"Q8_0", 8, 32, 34, 544},
     {"Q2_K", 10, 256, 84, 1344},     {"Q3_K", 11, 256, 110, 1824},  {"Q4_K", 12, 256, 144, 2368},
     {"Q5_K", 13, 256, 176, 2880},    {"Q6_K", 14, 256, 210, 3360},  {"IQ4_NL", 20, 32, 18, 288},
     {"IQ4_XS", 23, 256, 136, 2208},  {"MXFP4", 39, 32, 17, 272},    {"int8", kNoFile, 32, 0, 576},
     {"int8", kNoFile, 128, 0, 2112}, {"int4", kNoFile, 32, 0, 320}, {"int4", kNoFile, 64, 0, 576},
     {"int4", kNoFile, 128, 0, 1088}, {"int4", kNoFile, 32, 0, 384}, {"int4", kNoFile, 64, 0, 640},
     {"int4", kNoFile, 128, 0, 1152}}};
constexpr auto kTypesOfFiles = static_cast<size_t>(kLastBlockOfFiles) + 1;

// The non-linear 4-bit values of IQ4, and e2m1 (OCP MX) doubled.
constexpr std::array<int8_t, 16> kIq4Values{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr std::array<int8_t, 16> kE2M1Doubled{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

constexpr float kNoOffset = -0.0f;  // x + -0 is x, for x = -0 as well

float half_at(const uint8_t* from) {
    Float16 half;
    std::memcpy(&half.bits, from, sizeof half.bits);
    return static_cast<float>(half);
}

// The nibbles of 16 bytes: the low ones are columns 0 to 15, the high ones 16 to 31.
int nibble(const uint8_t* bytes, int i) { return i < 16 ? bytes[i] & 15 : bytes[i - 16] >> 4; }

// The one scale and offset of a block of 32.
void set_factors(BlockCodes& out, float scale, float offset) {
    for (const int g : {0, 1}) {
        out.scale[g] = scale;
        out.offset[g] = offset;
    }
}

// Q4_0, Q4_1, Q5_0, Q5_1: [d][m][32 high bits][nibbles].
void split_nibbles(const uint8_t* p, BlockCodes& out, bool has_min, bool has_high) {
    const float d = half_at(p), m = has_min ? half_at(p + 2) : kNoOffset;
    p += has_min ? 4 : 2;
    uint32_t high = 0;
    if (has_high) {
        std::memcpy(&high, p, sizeof high);
        p += sizeof high;
    }
    const int zero = has_min ? 0 : has_high ? 16 : 8;
    for (int i = 0; i < 32; ++i) out.code[i] = static_cast<int16_t>((nibble(p, i) | ((high >> i) & 1) << 4) - zero);
    set_factors(out, d, m);
}

void split_q8_0(const uint8_t* p, BlockCodes& out) {
    for (int i = 0; i < 32; ++i) out.code[i] = static_cast<int8_t>(p[2 + i]);
    set_factors(out, half_at(p), kNoOffset);
}

// IQ4_NL and MXFP4: nibbles index a table of 16 values.
void split_table(const uint8_t* nibbles, const std::array<int8_t, 16>& values, float scale, BlockCodes& out) {
    for (int i = 0; i < 32; ++i) out.code[i] = values[static_cast<size_t>(nibble(nibbles, i))];
    set_factors(out, scale, kNoOffset);
}

// Half of 2^(e - 127), because the table of values is doubled; e < 2 gives subnormal numbers.
float half_e8m0(uint8_t e) {
    return std::bit_cast<float>(e < 2 ? uint32_t{0x00200000} << e : static_cast<uint32_t>(e - 1) << 23);
}

// [16 x (scale | min << 4)][64 bytes of 2-bit codes][d][dmin]
void split_q2k(const uint8_t* p, BlockCodes& out) {
    const uint8_t* codes = p + 16;
    const float d = half_at(p + 80), dmin = half_at(p + 82);
    for (int i = 0; i < 256; ++i) out.code[i] = static_cast<int16_t>((codes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2)) & 3);
    for (int g = 0; g < 16; ++g) {
        out.scale[g] = d * static_cast<float>(p[g] & 15);
        out.offset[g] = -(dmin * static_cast<float>(p[g] >> 4));
    }
}

// [32 bytes of high bits][64 bytes of 2-bit codes][12 bytes: 16 scales of 6 bits][d]; a high bit that is 0 takes 4 off.
void split_q3k(const uint8_t* p, BlockCodes& out) {
    const uint8_t *high = p, *codes = p + 32, *scales = p + 96;
    const float d = half_at(p + 108);
    for (int i = 0; i < 256; ++i) {
        const int low = (codes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2)) & 3;
        out.code[i] = static_cast<int16_t>(low - (((high[i % 32] >> (i / 32)) & 1) == 0 ? 4 : 0));
    }
    for (int g = 0; g < 16; ++g) {
        const int low = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4;
        const int top = (scales[8 + g % 4] >> (g / 4 * 2)) & 3;
        out.scale[g] = d * static_cast<float>((low | top << 4) - 32);
        out.offset[g] = kNoOffset;
    }
}

// Q4_K and Q5_K: [d][dmin][12 bytes: 8 scales and 8 mins of 6 bits][32 bytes of high bits][128 bytes of nibbles]
void split_q45k(const uint8_t* p, BlockCodes& out, bool has_high) {
    const float d = half_at(p), dmin = half_at(p + 2);
    const uint8_t *six = p + 4, *high = p + 16, *codes = has_high ? p + 48 : p + 16;
    for (int i = 0; i < 256; ++i) {
        const int low = (codes[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4)) & 15;
        const int top = has_high ? (high[i % 32] >> (i / 32)) & 1 : 0;
        out.code[i] = static_cast<int16_t>(low | top << 4);
    }
    for (int g = 0; g < 8; ++g) {
        const int scale = g < 4 ? six[g] & 63 : (six[g + 4] & 15) | (six[g - 4] >> 6 << 4);
        const int min = g < 4 ? six[g + 4] & 63 : (six[g + 4] >> 4) | (six[g] >> 6 << 4);
        for (const int half : {0, 1}) {
            out.scale[2 * g + half] = d * static_cast<float>(scale);
            out.offset[2 * g + half] = -(dmin * static_cast<float>(min));
        }
    }
}

// [128 bytes of low nibbles][64 bytes of 2 high bits][16 x int8 scale][d]
void split_q6k(const uint8_t* p, BlockCodes& out) {
    const uint8_t *low = p, *high = p + 128, *scales = p + 192;
    const float d = half_at(p + 208);
    for (int i = 0; i < 256; ++i) {
        const int half = i / 128, r = i % 128;
        const int nib = (low[half * 64 + r % 64] >> (r / 64 * 4)) & 15;
        const int top = (high[half * 32 + r % 32] >> (r / 32 * 2)) & 3;
        out.code[i] = static_cast<int16_t>((nib | top << 4) - 32);
    }
    for (int g = 0; g < 16; ++g) {
        out.scale[g] = d * static_cast<float>(static_cast<int8_t>(scales[g]));
        out.offset[g] = kNoOffset;
    }
}

// [d][8 x 2 high bits of the scales][8 x 4 low bits][128 bytes of nibbles]
void split_iq4xs(const uint8_t* p, BlockCodes& out) {
    const float d = half_at(p);
    uint16_t high = 0;
    std::memcpy(&high, p + 2, sizeof high);
    for (int g = 0; g < 8; ++g) {
        const int low = (p[4 + g / 2] >> (g % 2 * 4)) & 15, top = (high >> (2 * g)) & 3;
        for (int i = 0; i < 32; ++i) out.code[32 * g + i] = kIq4Values[static_cast<size_t>(nibble(p + 8 + 16 * g, i))];
        for (const int half : {0, 1}) {
            out.scale[2 * g + half] = d * static_cast<float>((low | top << 4) - 32);
            out.offset[2 * g + half] = kNoOffset;
        }
    }
}

}  // namespace

const BlockTraits& traits_of(BlockType type) { return kTraits[static_cast<size_t>(type)]; }

std::optional<BlockType> block_type_of_ggml(uint32_t ggml_type) {
    for (size_t i = 1; i < kTypesOfFiles; ++i)
        if (kTraits[i].ggml_type == ggml_type) return static_cast<BlockType>(i);
    return std::nullopt;
}

std::optional<BlockType> block_type_from_name(std::string_view name) {
    const auto same = [](char a, char b) {
        return std::tolower(static_cast<uint8_t>(a)) == std::tolower(static_cast<uint8_t>(b));
    };
    for (size_t i = 1; i < kTypesOfFiles; ++i)
        if (std::ranges::equal(kTraits[i].name, name, same)) return static_cast<BlockType>(i);
    return std::nullopt;
}

void split_block(BlockType type, const void* block, BlockCodes& codes) {
    const auto* p = static_cast<const uint8_t*>(block);
    switch (type) {
        case BlockType::kQ40:
            return split_nibbles(p, codes, false, false);
        case BlockType::kQ41:
            return split_nibbles(p, codes, true, false);
        case BlockType::kQ50:
            return split_nibbles(p, codes, false, true);
        case BlockType::kQ51:
            return split_nibbles(p, codes, true, true);
        case BlockType::kQ80:
            return split_q8_0(p, codes);
        case BlockType::kQ2K:
            return split_q2k(p, codes);
        case BlockType::kQ3K:
            return split_q3k(p, codes);
        case BlockType::kQ4K:
            return split_q45k(p, codes, false);
        case BlockType::kQ5K:
            return split_q45k(p, codes, true);
        case BlockType::kQ6K:
            return split_q6k(p, codes);
        case BlockType::kIq4Nl:
            return split_table(p + 2, kIq4Values, half_at(p), codes);
        case BlockType::kIq4Xs:
            return split_iq4xs(p, codes);
        case BlockType::kMxfp4:
            return split_table(p + 1, kE2M1Doubled, half_e8m0(p[0]), codes);
        default:  // not of files
            break;
    }
    check(false, "split_block: not a block type of files");
}

void decode_blocks(BlockType type, const void* codes, float* y, int64_t n) {
    const BlockTraits& traits = traits_of(type);
    check(n % traits.elements == 0, "decode_blocks: part of a block");
    BlockCodes split;
    for (const auto* block = static_cast<const uint8_t*>(codes); n > 0; n -= traits.elements, block += traits.bytes) {
        split_block(type, block, split);
        for (int64_t i = 0; i < traits.elements; ++i, ++y) {
            const auto g = static_cast<size_t>(i / BlockCodes::kGroup);
            *y = split.scale[g] * static_cast<float>(split.code[i]) + split.offset[g];
        }
    }
}

}  // namespace fathom
