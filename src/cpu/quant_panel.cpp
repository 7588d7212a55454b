#include "cpu/quant_panel.h"

#include <cstring>

#include "base/error.h"

namespace fathom {
namespace {

constexpr int64_t kCodes = kPanelStep * kPanelLanes;  // of a step

// Where column k of lane r stands among the 512 codes of a step: quad, then lane, then column in the quad.
constexpr int64_t quad_of(int64_t k) { return k / 4; }
constexpr int64_t byte_of(int64_t k, int64_t r) { return 4 * r + k % 4; }

void put_nibble(uint8_t* codes, int64_t k, int64_t r, int value) {
    codes[64 * (quad_of(k) / 2) + byte_of(k, r)] |= static_cast<uint8_t>(value << (quad_of(k) % 2 * 4));
}
int get_nibble(const uint8_t* codes, int64_t k, int64_t r) {
    return (codes[64 * (quad_of(k) / 2) + byte_of(k, r)] >> (quad_of(k) % 2 * 4)) & 15;
}

void put_code(BlockType type, uint8_t* codes, int64_t k, int64_t r, int value) {
    if (type == BlockType::kQ8_0) {
        codes[64 * quad_of(k) + byte_of(k, r)] = static_cast<uint8_t>(value);
        return;
    }
    put_nibble(codes, k, r, value & 15);
    uint8_t* high = codes + kCodes / 2;
    const int64_t bit = 64 * quad_of(k) + byte_of(k, r);
    if (type == BlockType::kQ5_0) high[bit / 8] |= static_cast<uint8_t>((value >> 4) << (bit % 8));
    if (type == BlockType::kQ6K)
        high[64 * (quad_of(k) / 4) + byte_of(k, r)] |= static_cast<uint8_t>((value >> 4) << (2 * (quad_of(k) % 4)));
}

int get_code(BlockType type, const uint8_t* codes, int64_t k, int64_t r) {
    if (type == BlockType::kQ8_0) return codes[64 * quad_of(k) + byte_of(k, r)];
    const int low = get_nibble(codes, k, r);
    const uint8_t* high = codes + kCodes / 2;
    const int64_t bit = 64 * quad_of(k) + byte_of(k, r);
    if (type == BlockType::kQ5_0) return low | ((high[bit / 8] >> (bit % 8)) & 1) << 4;
    if (type == BlockType::kQ6K)
        return low | ((high[64 * (quad_of(k) / 4) + byte_of(k, r)] >> (2 * (quad_of(k) % 4))) & 3) << 4;
    return low;
}

// The factors of one block of the file, row r of the panel.
void put_factors(BlockType type, uint8_t* factors, const uint8_t* block, int64_t r) {
    switch (type) {
        case BlockType::kQ4K:
            std::memcpy(factors + 2 * r, block, 2);
            std::memcpy(factors + 32 + 2 * r, block + 2, 2);
            for (int64_t g = 0; g < 8; ++g) {
                const uint8_t* six = block + 4;
                factors[64 + 16 * g + r] =
                    static_cast<uint8_t>(g < 4 ? six[g] & 63 : (six[g + 4] & 15) | (six[g - 4] >> 6 << 4));
                factors[192 + 16 * g + r] =
                    static_cast<uint8_t>(g < 4 ? six[g + 4] & 63 : (six[g + 4] >> 4) | (six[g] >> 6 << 4));
            }
            return;
        case BlockType::kQ6K:
            std::memcpy(factors + 2 * r, block + 208, 2);
            for (int64_t g = 0; g < 16; ++g) factors[32 + 16 * g + r] = block[192 + g];
            return;
        default:
            std::memcpy(factors + 2 * r, block, 2);
    }
}

float half_at(const uint8_t* from) {
    Float16 half;
    std::memcpy(&half.bits, from, sizeof half.bits);
    return static_cast<float>(half);
}

}  // namespace

PanelTraits panel_traits(BlockType type) {
    switch (type) {
        case BlockType::kQ8_0:
            return {512, 32, 128, false, false};
        case BlockType::kQ4_0:
            return {256, 32, 8, false, false};
        case BlockType::kQ5_0:
            return {320, 32, 16, false, false};
        case BlockType::kQ4K:
            return {256, 320, 0, false, true};
        case BlockType::kQ6K:
            return {384, 288, 32, true, false};
        default:
            break;
    }
    check(false, "panel_traits: a block type without panels");
    return {};
}

bool has_panels(const Weight& w) {
    return w.scheme == Scheme::kBlocks && traits_of(w.block).panel_bytes > 0 && w.out_features() % kPanelLanes == 0;
}

void pack_panel(uint8_t* to, const Weight& w, int64_t panel) {
    const BlockTraits& block = traits_of(w.block);
    const PanelTraits traits = panel_traits(w.block);
    const int64_t blocks = w.codes.dim(1) / block.bytes, steps_of_block = block.elements / kPanelStep;
    uint8_t* const factors = to + blocks * steps_of_block * traits.step_bytes;
    std::memset(to, 0, static_cast<size_t>(blocks * block.panel_bytes));
    BlockCodes split;
    for (int64_t r = 0; r < kPanelLanes; ++r) {
        const auto* row = w.codes.as<const uint8_t>() + (panel * kPanelLanes + r) * w.codes.stride[0];
        for (int64_t b = 0; b < blocks; ++b) {
            split_block(w.block, row + b * block.bytes, split);
            put_factors(w.block, factors + b * traits.factor_bytes, row + b * block.bytes, r);
            for (int64_t k = 0; k < block.elements; ++k)
                put_code(w.block, to + (b * steps_of_block + k / kPanelStep) * traits.step_bytes, k % kPanelStep, r,
                         split.code[k] + traits.zero);
        }
    }
}

void unpack_step(PanelStep& out, BlockType type, const uint8_t* panel, int64_t steps, int64_t step) {
    const PanelTraits traits = panel_traits(type);
    const uint8_t* codes = panel + step * traits.step_bytes;
    const int64_t per_block = traits_of(type).elements / kPanelStep, g = step % per_block;
    const uint8_t* factors = panel + steps * traits.step_bytes + step / per_block * traits.factor_bytes;
    for (int64_t k = 0; k < kPanelStep; ++k)
        for (int64_t r = 0; r < kPanelLanes; ++r)
            out.code[k][r] = static_cast<int16_t>(get_code(type, codes, k, r) - traits.zero);
    for (int64_t r = 0; r < kPanelLanes; ++r) {
        const float d = half_at(factors + 2 * r);
        out.scale[0][r] = out.scale[1][r] = d;
        out.offset[r] = -0.0f;  // x + -0 is x
        if (type == BlockType::kQ4K) {
            out.scale[0][r] = out.scale[1][r] = d * static_cast<float>(factors[64 + 16 * g + r]);
            out.offset[r] = -(half_at(factors + 32 + 2 * r) * static_cast<float>(factors[192 + 16 * g + r]));
        } else if (type == BlockType::kQ6K) {
            for (const int64_t half : {0, 1})
                out.scale[half][r] = d * static_cast<float>(static_cast<int8_t>(factors[32 + 16 * (2 * g + half) + r]));
        }
    }
}

}  // namespace fathom
