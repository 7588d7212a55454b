// Element types and their conversions to and from float.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>

namespace fathom {

enum class DType : uint8_t {
    kF32,
    kBF16,
    kF16,
    kF8E4M3,  // e4m3fn: no infinities, NaN is 0x7f and 0xff, maximum 448
    kF64,
    kDual,  // tests only: a value and its derivative, two doubles (Dual)
    kI8,
    kU8,
    kI16,
    kI32,
    kI64,
    kBool,
};

[[nodiscard]] constexpr int64_t size_of(DType type) {
    switch (type) {
        case DType::kDual:
            return 16;
        case DType::kF64:
        case DType::kI64:
            return 8;
        case DType::kF32:
        case DType::kI32:
            return 4;
        case DType::kBF16:
        case DType::kF16:
        case DType::kI16:
            return 2;
        default:
            return 1;
    }
}

// Safetensors spelling: "F32", "BF16", "F8_E4M3", ...
[[nodiscard]] std::string_view name_of(DType type);
[[nodiscard]] std::optional<DType> dtype_from_name(std::string_view name);

// Upper half of a float, rounded to nearest even; NaN stays NaN.
struct BFloat16 {
    uint16_t bits = 0;

    BFloat16() = default;
    explicit BFloat16(float value) {
        const auto u = std::bit_cast<uint32_t>(value);
        bits = static_cast<uint16_t>(value != value ? (u >> 16) | 0x40 : (u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
    explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// IEEE binary16.
struct Float16 {
    uint16_t bits = 0;

    Float16() = default;
    explicit Float16(float value);
    explicit operator float() const;
};

// OCP FP8 e4m3fn.
struct Float8E4M3 {
    uint8_t bits = 0;

    Float8E4M3() = default;
    explicit Float8E4M3(float value);  // to nearest even, saturating at +-448
    explicit operator float() const;
};

}  // namespace fathom
