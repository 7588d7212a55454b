#include "tensor/blocks_nearest.h"

#include "base/error.h"

namespace fathom {
namespace {

void put_high_bits(uint8_t* to, const int* codes) {
    uint32_t bits = 0;
    for (uint32_t i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(codes[i] >> 4 & 1) << i;
    std::memcpy(to, &bits, sizeof bits);
}

void encode_q8_0(const float* x, uint8_t* to) {
    const float d = std::fabs(extreme(x, 32)) / 127, id = inverse(d);
    put_half(to, d);
    for (int i = 0; i < 32; ++i) to[2 + i] = static_cast<uint8_t>(clamped(std::round(x[i] * id), -127, 127));
}

// The number of largest magnitude becomes code 0, exactly; the others lie towards and beyond zero.
void encode_symmetric(const float* x, uint8_t* to, int levels) {
    const int half = levels / 2;
    const float d = extreme(x, 32) / static_cast<float>(-half), id = inverse(d);
    int codes[32];
    for (int i = 0; i < 32; ++i) codes[i] = clamped(std::trunc(x[i] * id + static_cast<float>(half) + 0.5f), 0, levels - 1);
    put_half(to, d);
    to += 2;
    if (levels == 32) {
        put_high_bits(to, codes);
        to += 4;
    }
    put_nibbles(to, codes);
}

void encode_with_min(const float* x, uint8_t* to, int levels) {
    const auto [low, high] = std::minmax_element(x, x + 32);
    const float d = (*high - *low) / static_cast<float>(levels - 1), id = inverse(d);
    int codes[32];
    for (int i = 0; i < 32; ++i) codes[i] = clamped(std::trunc((x[i] - *low) * id + 0.5f), 0, levels - 1);
    put_half(to, d);
    put_half(to + 2, *low);
    to += 4;
    if (levels == 32) {
        put_high_bits(to, codes);
        to += 4;
    }
    put_nibbles(to, codes);
}

void encode_block(BlockType type, const float* x, uint8_t* to) {
    switch (type) {
        case BlockType::kQ80:
            return encode_q8_0(x, to);
        case BlockType::kQ40:
            return encode_symmetric(x, to, 16);
        case BlockType::kQ50:
            return encode_symmetric(x, to, 32);
        case BlockType::kQ41:
            return encode_with_min(x, to, 16);
        case BlockType::kQ51:
            return encode_with_min(x, to, 32);
        default:
            check(false, "encode_nearest: not a type that is rounded to nearest");
    }
}

}  // namespace

void encode_nearest(BlockType type, const float* x, void* codes, int64_t n) {
    const BlockTraits& traits = traits_of(type);
    check(n % traits.elements == 0, "encode_nearest: part of a block");
    auto* to = static_cast<uint8_t*>(codes);
    for (int64_t at = 0; at < n; at += traits.elements, to += traits.bytes) encode_block(type, x + at, to);
}

}  // namespace fathom
