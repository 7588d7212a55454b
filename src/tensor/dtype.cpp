#include "tensor/dtype.h"

#include <algorithm>
#include <array>
#include <utility>

namespace fathom {
namespace {

constexpr std::array<std::pair<DType, std::string_view>, 12> kNames{{{DType::kF32, "F32"},
                                                                     {DType::kBF16, "BF16"},
                                                                     {DType::kF16, "F16"},
                                                                     {DType::kF8E4M3, "F8_E4M3"},
                                                                     {DType::kF64, "F64"},
                                                                     {DType::kDual, "DUAL"},
                                                                     {DType::kI8, "I8"},
                                                                     {DType::kU8, "U8"},
                                                                     {DType::kI16, "I16"},
                                                                     {DType::kI32, "I32"},
                                                                     {DType::kI64, "I64"},
                                                                     {DType::kBool, "BOOL"}}};

}  // namespace

std::string_view name_of(DType type) {
    return std::ranges::find(kNames, type, &std::pair<DType, std::string_view>::first)->second;
}

std::optional<DType> dtype_from_name(std::string_view name) {
    const auto* found = std::ranges::find(kNames, name, &std::pair<DType, std::string_view>::second);
    if (found == kNames.end() || found->first == DType::kDual) return std::nullopt;
    return found->first;
}

Float16::Float16(float value) {
    const auto u = std::bit_cast<uint32_t>(value);
    const auto sign = static_cast<uint16_t>((u >> 16) & 0x8000);
    const float magnitude = std::fabs(value);
    if (value != value) {
        bits = static_cast<uint16_t>(sign | 0x7e00);
    } else if (magnitude >= 65520.0f) {
        bits = static_cast<uint16_t>(sign | 0x7c00);
    } else if (magnitude < 0x1p-14f) {  // subnormal: adding 0.5 aligns the mantissa and rounds to nearest even
        bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(magnitude + 0.5f) - std::bit_cast<uint32_t>(0.5f)));
    } else {
        const auto m = std::bit_cast<uint32_t>(magnitude);
        bits = static_cast<uint16_t>(sign | ((m + 0xfff + ((m >> 13) & 1) - (112u << 23)) >> 13));
    }
}

Float16::operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 0x3ff;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
    if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24f));
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

Float8E4M3::Float8E4M3(float value) {
    const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80 : 0);
    const float magnitude = std::fabs(value);
    if (value != value) {
        bits = sign | 0x7f;
    } else if (magnitude >= 448.0f) {
        bits = sign | 0x7e;
    } else if (magnitude < 0x1p-6f) {  // subnormal step 2^-9: adding 2^14 leaves the rounded multiple in the low mantissa bits
        bits = static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(magnitude + 0x1p14f) - std::bit_cast<uint32_t>(0x1p14f)));
    } else {
        const auto m = std::bit_cast<uint32_t>(magnitude);
        bits = static_cast<uint8_t>(sign | ((m + 0x7ffff + ((m >> 20) & 1) - (120u << 23)) >> 20));
    }
}

Float8E4M3::operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24, exponent = (bits >> 3) & 15, mantissa = bits & 7;
    if ((bits & 0x7f) == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000);
    if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-9f));
    return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

}  // namespace fathom
