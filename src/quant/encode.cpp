#include "quant/encode.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "tensor/blocks_nearest.h"
#include "tensor/dtype.h"

namespace fathom {
namespace {

float through_half(float value) { return static_cast<float>(Float16(value)); }
int nearest(float value, int low, int high) { return clamped(std::nearbyint(value), low, high); }

// ---- searches ------------------------------------------------------------------------------------------------------------

// x ~ scale code - min with codes 0 .. top, min >= 0.
struct Affine {
    float scale = 0, min = 0;
};

// Tries ranges a little narrower and wider than the numbers' own; for each the codes are rounded and scale and min solved for.
Affine fit_affine(const float* x, const float* w, int n, int top) {
    const auto [lowest, highest] = std::minmax_element(x, x + n);
    const float low = std::min(*lowest, 0.0f), high = *highest;
    if (high <= low) return {0, -low};
    Affine best;
    float least = std::numeric_limits<float>::max();
    for (int step = -10; step <= 10; ++step) {
        const float id = (static_cast<float>(top) + 0.1f * static_cast<float>(step)) / (high - low);
        float sw = 0, sx = 0, sl = 0, sll = 0, sxl = 0;
        for (int i = 0; i < n; ++i) {
            const auto l = static_cast<float>(nearest(id * (x[i] - low), 0, top));
            sw += w[i], sx += w[i] * x[i], sl += w[i] * l, sll += w[i] * l * l, sxl += w[i] * x[i] * l;
        }
        const float determinant = sw * sll - sl * sl;
        if (determinant <= 0) continue;
        Affine fit{(sw * sxl - sx * sl) / determinant, -(sll * sx - sl * sxl) / determinant};
        if (fit.min < 0) fit = {sll > 0 ? sxl / sll : 0, 0};
        float error = 0;
        for (int i = 0; i < n; ++i) {
            const auto l = static_cast<float>(nearest(id * (x[i] - low), 0, top));
            const float off = fit.scale * l - fit.min - x[i];
            error += w[i] * off * off;
        }
        if (error < least && fit.scale > 0) {
            least = error;
            best = fit;
        }
    }
    if (best.scale == 0) return {(high - low) / static_cast<float>(top), -low};
    return best;
}

// x ~ scale code with codes -half .. half - 1. The scale may be negative: then the extreme number has code -half.
float fit_symmetric(const float* x, const float* w, int n, int half) {
    const float peak = extreme(x, n);
    if (std::fabs(peak) < 1e-15f) return 0;
    float best = 0, most = -1;
    for (int step = -9; step <= 9; ++step) {
        const float id = -(static_cast<float>(half) + 0.1f * static_cast<float>(step)) / peak;
        float sxl = 0, sll = 0;
        for (int i = 0; i < n; ++i) {
            const auto l = static_cast<float>(nearest(id * x[i], -half, half - 1));
            sxl += w[i] * x[i] * l, sll += w[i] * l * l;
        }
        // The error of the best scale is sum w x^2 - sxl^2 / sll.
        if (sll > 0 && sxl * sxl / sll > most) {
            most = sxl * sxl / sll;
            best = sxl / sll;
        }
    }
    return best;
}

// ---- super-blocks of 256 -------------------------------------------------------------------------------------------------

// Scales and mins of `groups` groups as whole numbers 0 .. top times d and dmin.
struct AffineGroups {
    float d = 0, dmin = 0;
    int scale[16] = {}, min[16] = {};

    AffineGroups(const float* x, const float* w, int groups, int codes_top, int top) {
        const int size = 256 / groups;
        Affine fits[16];
        float largest = 0, largest_min = 0;
        for (int g = 0; g < groups; ++g) {
            fits[g] = fit_affine(x + g * size, w + g * size, size, codes_top);
            largest = std::max(largest, fits[g].scale);
            largest_min = std::max(largest_min, fits[g].min);
        }
        d = through_half(largest / static_cast<float>(top));
        dmin = through_half(largest_min / static_cast<float>(top));
        for (int g = 0; g < groups; ++g) {
            scale[g] = nearest(fits[g].scale * inverse(d), 0, top);
            min[g] = nearest(fits[g].min * inverse(dmin), 0, top);
        }
    }
    void encode(const float* x, int* codes, int groups, int codes_top) const {
        const int size = 256 / groups;
        for (int i = 0; i < 256; ++i) {
            const int g = i / size;
            const float id = inverse(d * static_cast<float>(scale[g])), m = dmin * static_cast<float>(min[g]);
            codes[i] = nearest((x[i] + m) * id, 0, codes_top);
        }
    }
};

void encode_q2k(const float* x, const float* w, uint8_t* to) {
    const AffineGroups fit(x, w, 16, 3, 15);
    int codes[256];
    fit.encode(x, codes, 16, 3);
    for (int g = 0; g < 16; ++g) to[g] = static_cast<uint8_t>(fit.scale[g] | fit.min[g] << 4);
    for (int i = 0; i < 256; ++i) to[16 + i / 128 * 32 + i % 32] |= static_cast<uint8_t>(codes[i] << (i / 32 % 4 * 2));
    put_half(to + 80, fit.d);
    put_half(to + 82, fit.dmin);
}

void encode_q45k(const float* x, const float* w, uint8_t* to, bool five) {
    const int top = five ? 31 : 15;
    const AffineGroups fit(x, w, 8, top, 63);
    int codes[256];
    fit.encode(x, codes, 8, top);
    put_half(to, fit.d);
    put_half(to + 2, fit.dmin);
    uint8_t *six = to + 4, *high = to + 16, *nibbles = five ? to + 48 : to + 16;
    for (int g = 0; g < 4; ++g) {
        six[g] = static_cast<uint8_t>(fit.scale[g] | fit.scale[g + 4] >> 4 << 6);
        six[g + 4] = static_cast<uint8_t>(fit.min[g] | fit.min[g + 4] >> 4 << 6);
        six[g + 8] = static_cast<uint8_t>((fit.scale[g + 4] & 15) | (fit.min[g + 4] & 15) << 4);
    }
    for (int i = 0; i < 256; ++i) {
        nibbles[i / 64 * 32 + i % 32] |= static_cast<uint8_t>((codes[i] & 15) << (i / 32 % 2 * 4));
        if (five) high[i % 32] |= static_cast<uint8_t>(codes[i] >> 4 << (i / 32));
    }
}

// Scales of `groups` groups as whole numbers -half .. half - 1 times d.
struct SymmetricGroups {
    float d = 0;
    int scale[16] = {};

    SymmetricGroups(const float* x, const float* w, int groups, int codes_half, int half) {
        const int size = 256 / groups;
        float fits[16] = {};
        for (int g = 0; g < groups; ++g) fits[g] = fit_symmetric(x + g * size, w + g * size, size, codes_half);
        d = through_half(extreme(fits, groups) / static_cast<float>(-half));
        for (int g = 0; g < groups; ++g) scale[g] = nearest(fits[g] * inverse(d), -half, half - 1);
    }
    void encode(const float* x, int* codes, int groups, int codes_half) const {
        for (int i = 0; i < 256; ++i) {
            const float id = inverse(d * static_cast<float>(scale[i / (256 / groups)]));
            codes[i] = nearest(x[i] * id, -codes_half, codes_half - 1) + codes_half;
        }
    }
};

void encode_q3k(const float* x, const float* w, uint8_t* to) {
    const SymmetricGroups fit(x, w, 16, 4, 32);
    int codes[256];
    fit.encode(x, codes, 16, 4);
    uint8_t *high = to, *low = to + 32, *scales = to + 96;
    for (int i = 0; i < 256; ++i) {
        high[i % 32] |= static_cast<uint8_t>(codes[i] >> 2 << (i / 32));
        low[i / 128 * 32 + i % 32] |= static_cast<uint8_t>((codes[i] & 3) << (i / 32 % 4 * 2));
    }
    for (int g = 0; g < 16; ++g) {
        const int scale = fit.scale[g] + 32;
        scales[g % 8] |= static_cast<uint8_t>((scale & 15) << (g / 8 * 4));
        scales[8 + g % 4] |= static_cast<uint8_t>(scale >> 4 << (g / 4 * 2));
    }
    put_half(to + 108, fit.d);
}

void encode_q6k(const float* x, const float* w, uint8_t* to) {
    const SymmetricGroups fit(x, w, 16, 32, 128);
    int codes[256];
    fit.encode(x, codes, 16, 32);
    for (int i = 0; i < 256; ++i) {
        const int half = i / 128, r = i % 128;
        to[half * 64 + r % 64] |= static_cast<uint8_t>((codes[i] & 15) << (r / 64 * 4));
        to[128 + half * 32 + r % 32] |= static_cast<uint8_t>(codes[i] >> 4 << (r / 32 * 2));
    }
    for (int g = 0; g < 16; ++g) to[192 + g] = static_cast<uint8_t>(static_cast<int8_t>(fit.scale[g]));
    put_half(to + 208, fit.d);
}

// ---- tables of values ----------------------------------------------------------------------------------------------------

// What the 16 codes of a type mean, read off its decoder.
std::array<float, 16> values_of(BlockType type) {
    std::array<uint8_t, 32> block{};
    block[0] = type == BlockType::kMxfp4 ? 127 : 0;
    const int at = type == BlockType::kMxfp4 ? 1 : 2;
    for (int i = 0; i < 16; ++i) block[static_cast<size_t>(at + i)] = static_cast<uint8_t>(i);
    BlockCodes codes;
    split_block(type, block.data(), codes);
    std::array<float, 16> values{};
    for (size_t i = 0; i < 16; ++i) values[i] = static_cast<float>(codes.code[i]);
    return values;
}

int nearest_code(const std::array<float, 16>& values, float x) {
    int best = 0;
    for (int i = 1; i < 16; ++i)
        if (std::fabs(values[static_cast<size_t>(i)] - x) < std::fabs(values[static_cast<size_t>(best)] - x)) best = i;
    return best;
}

// The scale for 32 numbers with values of a table, its largest near 113 to 127.
float fit_table(const std::array<float, 16>& values, const float* x, const float* w) {
    const float peak = extreme(x, 32);
    if (std::fabs(peak) < 1e-15f) return 0;
    float best = 0, most = -1;
    for (int step = -8; step <= 8; ++step) {
        for (const float end : {values.front(), values.back()}) {
            const float id = (end + static_cast<float>(step)) / peak;
            float sxl = 0, sll = 0;
            for (int i = 0; i < 32; ++i) {
                const float l = values[static_cast<size_t>(nearest_code(values, id * x[i]))];
                sxl += w[i] * x[i] * l, sll += w[i] * l * l;
            }
            if (sll > 0 && sxl * sxl / sll > most) {
                most = sxl * sxl / sll;
                best = sxl / sll;
            }
        }
    }
    return best;
}

void encode_table(const std::array<float, 16>& values, const float* x, float scale, uint8_t* nibbles) {
    int codes[32];
    for (int i = 0; i < 32; ++i) codes[i] = nearest_code(values, x[i] * inverse(scale));
    put_nibbles(nibbles, codes);
}

void encode_iq4nl(const float* x, const float* w, uint8_t* to) {
    const auto values = values_of(BlockType::kIq4Nl);
    const float d = through_half(fit_table(values, x, w));
    put_half(to, d);
    encode_table(values, x, d, to + 2);
}

void encode_iq4xs(const float* x, const float* w, uint8_t* to) {
    const auto values = values_of(BlockType::kIq4Nl);
    float fits[8];
    for (int g = 0; g < 8; ++g) fits[g] = fit_table(values, x + 32 * g, w + 32 * g);
    const float d = through_half(extreme(fits, 8) / -32);
    put_half(to, d);
    uint32_t high = 0;
    for (int g = 0; g < 8; ++g) {
        const int scale = nearest(fits[g] * inverse(d), -32, 31);
        to[4 + g / 2] |= static_cast<uint8_t>(((scale + 32) & 15) << (g % 2 * 4));
        high |= static_cast<uint32_t>((scale + 32) >> 4) << (2 * g);
        encode_table(values, x + 32 * g, d * static_cast<float>(scale), to + 8 + 16 * g);
    }
    const auto bits = static_cast<uint16_t>(high);
    std::memcpy(to + 2, &bits, sizeof bits);
}

// OCP MX 6.3: the shared exponent is that of the largest magnitude, less e2m1's largest exponent 2.
void encode_mxfp4(const float* x, uint8_t* to) {
    const float peak = std::fabs(extreme(x, 32));
    const int e = peak > 0 ? std::clamp(std::ilogb(peak) - 2 + 127, 0, 254) : 0;
    to[0] = static_cast<uint8_t>(e);
    encode_table(values_of(BlockType::kMxfp4), x, std::ldexp(1.0f, e - 128), to + 1);
}

void encode_block(BlockType type, const float* x, const float* w, uint8_t* to) {
    switch (type) {
        case BlockType::kQ80:
        case BlockType::kQ40:
        case BlockType::kQ50:
        case BlockType::kQ41:
        case BlockType::kQ51:
            return encode_nearest(type, x, to, 32);
        case BlockType::kQ2K:
            return encode_q2k(x, w, to);
        case BlockType::kQ3K:
            return encode_q3k(x, w, to);
        case BlockType::kQ4K:
            return encode_q45k(x, w, to, false);
        case BlockType::kQ5K:
            return encode_q45k(x, w, to, true);
        case BlockType::kQ6K:
            return encode_q6k(x, w, to);
        case BlockType::kIq4Nl:
            return encode_iq4nl(x, w, to);
        case BlockType::kIq4Xs:
            return encode_iq4xs(x, w, to);
        case BlockType::kMxfp4:
            return encode_mxfp4(x, to);
        default:  // not of files
            break;
    }
    check(false, "encode_blocks: not a block type of files");
}

}  // namespace

void encode_blocks(BlockType type, const float* x, void* codes, int64_t n, const float* importance) {
    const BlockTraits& traits = traits_of(type);
    check(n % traits.elements == 0, "encode_blocks: part of a block");
    std::array<float, BlockCodes::kMax> ones;
    ones.fill(1);
    auto* to = static_cast<uint8_t*>(codes);
    for (int64_t at = 0; at < n; at += traits.elements, to += traits.bytes) {
        std::memset(to, 0, static_cast<size_t>(traits.bytes));
        const float* w = importance == nullptr ? ones.data() : importance + at;
        // A block whose columns were never active is fitted as if all mattered.
        if (std::all_of(w, w + traits.elements, [](float one) { return one == 0; })) w = ones.data();
        encode_block(type, x + at, w, to);
    }
}

}  // namespace fathom
