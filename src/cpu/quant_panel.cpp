#include "cpu/quant_panel.h"

#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

constexpr int64_t kQuads = kPanelStep / 4;

// ---- codes ---------------------------------------------------------------------------------------------------------------

uint32_t load4(const uint8_t* from) {
    uint32_t value = 0;
    std::memcpy(&value, from, sizeof value);
    return value;
}
void store4(uint8_t* to, uint32_t value) { std::memcpy(to, &value, sizeof value); }

constexpr uint32_t kEach = 0x01010101;  // a number in each byte

// Bit `bit` of each byte as four bits, and back to bit `bit`.
uint32_t gather_bits(uint32_t four, int bit) {
    const uint32_t ones = (four >> bit) & kEach;
    return (ones | ones >> 7 | ones >> 14 | ones >> 21) & 15;
}
uint32_t spread_bits(uint32_t bits, int bit) { return ((bits & 15) * 0x00204081 & kEach) << bit; }

// The unsigned codes of columns i to i + 3 of a block of the file, i a multiple of 4: split_block, four at a time, which makes
// packing four times faster.
template <BlockType T>
uint32_t four_codes(const uint8_t* block, int64_t i) {
    constexpr PanelTraits kTraits = panel_traits(T);
    const uint8_t* const codes = block + kTraits.codes_at;
    const auto part = [&](const uint8_t* from, int64_t shift, uint32_t mask) { return (load4(from) >> shift) & mask * kEach; };
    const auto two_bits = [&](const uint8_t* from) { return part(from + i / 128 * 32 + i % 32, i / 32 % 4 * 2, 3); };
    const auto one_bit = [&](const uint8_t* from) { return part(from + i % 32, i / 32, 1); };
    switch (T) {
        case BlockType::kQ80:
            return load4(codes + i) ^ 0x80 * kEach;
        case BlockType::kQ2K:
            return two_bits(codes);
        case BlockType::kQ3K:
            return two_bits(codes) | one_bit(block) << 2;
        case BlockType::kQ4K:
        case BlockType::kQ5K: {
            const uint32_t low = part(codes + i / 64 * 32 + i % 32, i / 32 % 2 * 4, 15);
            return T == BlockType::kQ4K ? low : low | one_bit(block + 16) << 4;
        }
        case BlockType::kQ6K:
            return part(codes + i / 128 * 64 + i % 64, i / 64 % 2 * 4, 15) | two_bits(block + 128) << 4;
        default: {  // low nibbles are columns 0 to 15 of 32, Q5_0 and Q5_1 have 32 bits more before them
            const uint32_t low = part(codes + i / 32 * 16 + i % 16, i / 16 % 2 * 4, 15);
            return kTraits.bits == 4 ? low : low | spread_bits(load4(codes - 4) >> i, 4);
        }
    }
}

// Parts of two bits, `four[0:8] >> shift`, to two vectors.
void put_two_bits(uint8_t* to, int64_t r, const uint32_t* four, int shift) {
    for (int64_t h = 0; h < 2; ++h) {
        uint32_t all = 0;
        for (int64_t j = 0; j < 4; ++j) all |= ((four[4 * h + j] >> shift) & 3 * kEach) << (2 * j);
        store4(to + 64 * h + 4 * r, all);
    }
}

// Writes the 32 codes of lane r to a step; masks must be zeros before the first lane.
template <int kBits>
void put_step(uint8_t* step, int64_t r, const uint32_t* four) {
    if constexpr (kBits == 8)
#pragma GCC unroll 8
        for (int64_t q = 0; q < kQuads; ++q) store4(step + 64 * q + 4 * r, four[q]);
    if constexpr (kBits < 4) put_two_bits(step, r, four, 0);
    if constexpr (kBits >= 4 && kBits <= 6)
#pragma GCC unroll 4
        for (int64_t v = 0; v < kQuads / 2; ++v)
            store4(step + 64 * v + 4 * r, (four[2 * v] & 15 * kEach) | (four[2 * v + 1] & 15 * kEach) << 4);
    if constexpr (kBits == 6) put_two_bits(step + 256, r, four, 4);
    if constexpr (kBits == 3 || kBits == 5)
        for (int64_t q = 0; q < kQuads; ++q)
            step[64 * (kBits - 1) + 8 * q + r / 2] |= static_cast<uint8_t>(gather_bits(four[q], kBits - 1) << (r % 2 * 4));
}

int get_code(const uint8_t* step, int bits, int64_t k, int64_t r) {
    const int64_t q = k / 4, place = 4 * r + k % 4;
    const auto two = [&](const uint8_t* from) { return (from[64 * (q / 4) + place] >> (q % 4 * 2)) & 3; };
    const auto one = [&](const uint8_t* from) { return (from[8 * q + place / 8] >> (place % 8)) & 1; };
    if (bits == 8) return step[64 * q + place];
    if (bits < 4) return two(step) | (bits == 3 ? one(step + 128) << 2 : 0);
    const int low = (step[64 * (q / 2) + place] >> (q % 2 * 4)) & 15;
    return bits == 4 ? low : low | (bits == 5 ? one(step + 256) : two(step + 256)) << 4;
}

// ---- factors -------------------------------------------------------------------------------------------------------------

float half_at(const uint8_t* from) {
    Float16 half;
    std::memcpy(&half.bits, from, sizeof half.bits);
    return static_cast<float>(half);
}

float float_at(const uint8_t* from) {
    float number = 0;
    std::memcpy(&number, from, sizeof number);
    return number;
}

int six_bits(int low, int top) { return low | top << 4; }

// The byte of group g that the panel keeps: its scale, in Q2_K with its minimum.
uint8_t scale_byte(BlockType type, const uint8_t* block, int64_t g) {
    switch (type) {
        case BlockType::kQ2K:
            return block[g];
        case BlockType::kQ3K: {
            const uint8_t* s = block + 96;
            return static_cast<uint8_t>(six_bits(g < 8 ? s[g] & 15 : s[g - 8] >> 4, (s[8 + g % 4] >> (g / 4 * 2)) & 3) - 32);
        }
        case BlockType::kQ4K:
        case BlockType::kQ5K: {
            const uint8_t* s = block + 4;
            return static_cast<uint8_t>(g < 4 ? s[g] & 63 : six_bits(s[g + 4] & 15, s[g - 4] >> 6));
        }
        case BlockType::kQ6K:
            return block[192 + g];
        default:  // IQ4_XS
            return static_cast<uint8_t>(
                six_bits((block[4 + g / 2] >> (g % 2 * 4)) & 15, (block[2 + g / 4] >> (g % 4 * 2)) & 3) - 32);
    }
}

// Q4_K and Q5_K: the minimum of group g.
uint8_t min_byte(const uint8_t* block, int64_t g) {
    const uint8_t* s = block + 4;
    return static_cast<uint8_t>(g < 4 ? s[g + 4] & 63 : six_bits(s[g + 4] >> 4, s[g] >> 6));
}

// The factors of one block of the file, lane r, to the block of a panel that begins at `to`.
void put_factors(BlockType type, uint8_t* to, const uint8_t* block, int64_t r) {
    const PanelTraits traits = panel_traits(type);
    const int64_t groups = traits.groups_per_step();
    uint8_t* scales = to + traits.head_bytes() + traits.code_bytes() + r;
    if (traits.factors == PanelFactors::kE8m0) {
        *scales = block[0];
        return;
    }
    std::memcpy(to + 2 * r, block + traits.d_at, 2);
    if (traits.has_offset()) std::memcpy(to + 2 * kPanelLanes + 2 * r, block + traits.d_at + 2, 2);
    if (traits.factors == PanelFactors::kHalf || traits.factors == PanelFactors::kHalfMin) return;
    for (int64_t g = 0; g < traits.steps * groups; scales += traits.step_bytes())
        for (int64_t i = 0; i < groups; ++i, ++g) {
            scales[kPanelLanes * i] = scale_byte(type, block, g);
            if (traits.factors == PanelFactors::kScaleMin) scales[kPanelLanes * (groups + i)] = min_byte(block, g);
        }
}

// Group g of a step, lane r: `head` begins its block, `scales` are the step's, lane r.
void get_factors(float& scale, float& offset, BlockType type, const uint8_t* head, const uint8_t* scales, int64_t g,
                 int64_t r) {
    using enum PanelFactors;
    const PanelTraits traits = panel_traits(type);
    const auto number = [&](const uint8_t* from) { return traits.wide() ? float_at(from + 4 * r) : half_at(from + 2 * r); };
    const float d = traits.factors == kE8m0 ? 1.0f : number(head);
    const float m = traits.has_offset() ? number(head + traits.factor_bytes()) : 0.0f;
    scale = d;
    offset = traits.has_offset() ? m : -0.0f;  // x + -0 is x
    if (traits.of_block()) return;
    const int code = scales[kPanelLanes * g];
    switch (traits.factors) {
        case kE8m0:  // code < 2 gives subnormal numbers
            scale = std::bit_cast<float>(code < 2 ? uint32_t{0x00200000} << code : static_cast<uint32_t>(code - 1) << 23);
            return;
        case kSigned:
            scale = d * static_cast<float>(static_cast<int8_t>(code));
            return;
        case kNibbleMin:
            scale = d * static_cast<float>(code & 15);
            offset = -(m * static_cast<float>(code >> 4));
            return;
        default:
            scale = d * static_cast<float>(code);
            offset = -(m * static_cast<float>(scales[kPanelLanes * (traits.groups_per_step() + g)]));
    }
}

// ---- panels --------------------------------------------------------------------------------------------------------------

// Lane r of all blocks.
template <BlockType T>
void pack_lane(uint8_t* to, const uint8_t* block, int64_t blocks, int64_t r) {
    constexpr PanelTraits kTraits = panel_traits(T);
    const int64_t bytes = traits_of(T).bytes;
    for (; blocks > 0; --blocks, block += bytes, to += kTraits.block_bytes()) {
        put_factors(T, to, block, r);
        uint8_t* step = to + kTraits.head_bytes();
        for (int64_t i = 0; i < kTraits.steps * kPanelStep; step += kTraits.step_bytes()) {
            uint32_t four[kQuads];
#pragma GCC unroll 8
            for (int64_t q = 0; q < kQuads; ++q, i += 4) four[q] = four_codes<T>(block, i);
            put_step<kTraits.bits>(step, r, four);
        }
    }
}
using PackLane = void (*)(uint8_t* to, const uint8_t* block, int64_t blocks, int64_t r);
template <size_t... I>
constexpr std::array<PackLane, sizeof...(I)> make_lanes(std::index_sequence<I...>) {
    return {&pack_lane<static_cast<BlockType>(I + 1)>...};
}
constexpr auto kPackLanes = make_lanes(std::make_index_sequence<static_cast<size_t>(kLastBlockOfFiles)>{});

// The unsigned codes of columns i to i + 3 of a row of kGroups.
uint32_t four_integers(const uint8_t* row, int64_t i, int bits) {
    if (bits == 8) return load4(row + i) ^ 0x80 * kEach;
    const uint32_t low = row[i / 2], high = row[i / 2 + 1];  // even columns in the low nibbles
    return (low & 15) | (low >> 4) << 8 | (high & 15) << 16 | (high >> 4) << 24;
}

// Row `row` of kGroups as lane r of all blocks. Where groups are longer than blocks, several blocks have one scale.
template <int kBits>
void pack_integers(uint8_t* to, const Weight& w, int64_t row, BlockType type, int64_t r) {
    const PanelTraits traits = panel_traits(type);
    const int64_t elements = traits.steps * kPanelStep, group = w.in_features() / w.scales.dim(1);
    const auto* const codes = w.codes.as<const uint8_t>() + row * w.codes.stride[0];
    for (int64_t i = 0; i < w.in_features(); to += traits.block_bytes()) {
        const float scale = number_at(w.scales, row * w.scales.stride[0] + i / group);
        std::memcpy(to + 4 * r, &scale, sizeof scale);
        if (traits.has_offset()) {
            const float offset =
                -(scale * static_cast<float>(w.zeros.as<const uint8_t>()[row * w.zeros.stride[0] + i / group]));
            std::memcpy(to + traits.factor_bytes() + 4 * r, &offset, sizeof offset);
        }
        uint8_t* step = to + traits.head_bytes();
        for (const int64_t end = i + elements; i < end; step += traits.step_bytes()) {
            uint32_t four[kQuads];
            for (int64_t q = 0; q < kQuads; ++q, i += 4) four[q] = four_integers(codes, i, kBits);
            put_step<kBits>(step, r, four);
        }
    }
}

// The longest block that groups of so many columns consist of.
BlockType integer_panels(int64_t group, bool eight_bits, bool zeros) {
    using enum BlockType;
    if (eight_bits) return group % 128 == 0 ? kInt8By128 : kInt8By32;
    if (zeros) return group % 128 == 0 ? kInt4ZeroBy128 : group % 64 == 0 ? kInt4ZeroBy64 : kInt4ZeroBy32;
    return group % 128 == 0 ? kInt4By128 : group % 64 == 0 ? kInt4By64 : kInt4By32;
}

}  // namespace

BlockType panels_of(const Weight& w) {
    if (w.codes.rank != 2 || w.out_features() % kPanelLanes != 0) return BlockType::kNone;
    if (w.scheme == Scheme::kBlocks) return traits_of(w.block).panel_bytes > 0 ? w.block : BlockType::kNone;
    if (w.scheme != Scheme::kGroups) return BlockType::kNone;
    const bool eight_bits = w.codes.dtype == DType::kI8, zeros = w.zeros.defined();
    const int64_t group = w.in_features() / w.scales.dim(1);
    if (group % kPanelStep != 0 || (eight_bits && zeros)) return BlockType::kNone;
    return integer_panels(group, eight_bits, zeros);
}

void pack_panel(uint8_t* to, const Weight& w, int64_t panel) {
    const BlockType type = panels_of(w);
    const BlockTraits& block = traits_of(type);
    const PanelTraits traits = panel_traits(type);
    check(traits.block_bytes() == block.panel_bytes && traits.steps * kPanelStep == block.elements,
          "pack_panel: the traits of a block type disagree");
    const int64_t blocks = w.in_features() / block.elements;
    std::memset(to, 0, static_cast<size_t>(blocks * block.panel_bytes));
    for (int64_t r = 0; r < kPanelLanes; ++r) {
        const int64_t row = panel * kPanelLanes + r;
        if (w.scheme == Scheme::kBlocks)
            kPackLanes[static_cast<size_t>(type) - 1](to, w.codes.as<const uint8_t>() + row * w.codes.stride[0], blocks, r);
        else
            (traits.bits == 8 ? pack_integers<8> : pack_integers<4>)(to, w, row, type, r);
    }
}

void unpack_factors(PanelStep& out, BlockType type, const uint8_t* panel, int64_t step) {
    const PanelTraits traits = panel_traits(type);
    const uint8_t* const head = panel + step / traits.steps * traits.block_bytes();
    const uint8_t* const scales = head + traits.head_bytes() + step % traits.steps * traits.step_bytes() + traits.code_bytes();
    for (const int64_t half : {0, 1})
        for (int64_t r = 0; r < kPanelLanes; ++r)
            get_factors(out.scale[half][r], out.offset[half][r], type, head, scales + r, traits.half_groups ? half : 0, r);
}

void unpack_step(PanelStep& out, BlockType type, const uint8_t* panel, int64_t step) {
    const PanelTraits traits = panel_traits(type);
    const PanelTable table = table_of(type);
    const uint8_t* const codes =
        panel + step / traits.steps * traits.block_bytes() + traits.head_bytes() + step % traits.steps * traits.step_bytes();
    for (int64_t k = 0; k < kPanelStep; ++k)
        for (int64_t r = 0; r < kPanelLanes; ++r) {
            const int code = get_code(codes, traits.bits, k, r);
            out.code[k][r] = static_cast<int16_t>((traits.table ? table.value[code] : code) - traits.zero);
        }
    unpack_factors(out, type, panel, step);
}

void decode_panel(float* y, int64_t stride, BlockType type, const uint8_t* panel, int64_t steps, int64_t first, int64_t last) {
    PanelStep step;
    for (int64_t s = 0; s < steps; ++s) {
        unpack_step(step, type, panel, s);
        for (int64_t r = first; r < last; ++r)
            for (int64_t k = 0; k < kPanelStep; ++k)
                y[(r - first) * stride + s * kPanelStep + k] =
                    step.scale[k / 16][r] * static_cast<float>(step.code[k][r]) + step.offset[k / 16][r];
    }
}

}  // namespace fathom
