#include "tensor/dtype.h"

#include <gtest/gtest.h>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace fathom {
namespace {

// The value of an IEEE-like code from the definition: sign, exponent, mantissa. What an 8 or 16 bit float means, in double.
double value_of(uint32_t code, int exponent_bits, int mantissa_bits, bool has_infinity) {
    const uint32_t exponent_mask = (1u << exponent_bits) - 1, mantissa_mask = (1u << mantissa_bits) - 1;
    const uint32_t exponent = (code >> mantissa_bits) & exponent_mask, mantissa = code & mantissa_mask;
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const double sign = (code >> (exponent_bits + mantissa_bits)) & 1 ? -1 : 1;
    if (has_infinity && exponent == exponent_mask) {
        return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
    }
    if (!has_infinity && exponent == exponent_mask && mantissa == mantissa_mask) return std::nan("");
    if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * std::ldexp(1.0 + std::ldexp(mantissa, -mantissa_bits), static_cast<int>(exponent) - bias);
}

template <class Float>
float widened(uint32_t code) {
    Float f;
    f.bits = static_cast<decltype(f.bits)>(code);
    return static_cast<float>(f);
}

bool same(double a, double b) { return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b)); }

// Every code means what its format says, and survives the way through float.
template <class Float>
void check_all_codes(int exponent_bits, int mantissa_bits, bool has_infinity) {
    const uint32_t count = 1u << (1 + exponent_bits + mantissa_bits);
    for (uint32_t code = 0; code < count; ++code) {
        const float value = widened<Float>(code);
        ASSERT_TRUE(same(value, value_of(code, exponent_bits, mantissa_bits, has_infinity))) << std::hex << code;
        if (std::isnan(value))
            ASSERT_TRUE(std::isnan(static_cast<float>(Float(value)))) << std::hex << code;
        else
            ASSERT_EQ(Float(value).bits, code) << std::hex << code;
    }
}

TEST(DType, AllHalvesMeanWhatIeeeSaysAndRoundTrip) { check_all_codes<Float16>(5, 10, true); }
TEST(DType, AllBfloatsMeanWhatTheySayAndRoundTrip) { check_all_codes<BFloat16>(8, 7, true); }
TEST(DType, AllFp8CodesMeanWhatOcpSaysAndRoundTrip) { check_all_codes<Float8E4M3>(4, 3, false); }

// Between two neighbours: below the middle goes down, above goes up, the middle goes to the even code.
template <class Float>
void check_rounding_between_neighbours(uint32_t largest_finite) {
    for (uint32_t code = 0; code < largest_finite; ++code) {
        const float low = widened<Float>(code), high = widened<Float>(code + 1);
        const auto middle = static_cast<float>((static_cast<double>(low) + high) / 2);  // exact: two more bits are enough
        const uint32_t even = code % 2 == 0 ? code : code + 1;
        ASSERT_EQ(Float(middle).bits, even) << std::hex << code;
        ASSERT_EQ(Float(std::nextafter(middle, low)).bits, code) << std::hex << code;
        ASSERT_EQ(Float(std::nextafter(middle, high)).bits, code + 1) << std::hex << code;
        const auto sign = static_cast<uint32_t>(std::bit_cast<decltype(Float::bits)>(Float(-1.0f).bits) ^ Float(1.0f).bits);
        ASSERT_EQ(Float(-middle).bits, even | sign) << std::hex << code;
    }
}

TEST(DType, HalvesRoundToNearestTiesToEven) { check_rounding_between_neighbours<Float16>(0x7bff); }
TEST(DType, Fp8RoundsToNearestTiesToEven) { check_rounding_between_neighbours<Float8E4M3>(0x7e); }
TEST(DType, BfloatsRoundToNearestTiesToEven) {
    // The middle of the two smallest subnormals is not below float's own smallest steps: still exact in float.
    check_rounding_between_neighbours<BFloat16>(0x7f7f);
}

TEST(DType, HalvesOverflowToInfinityAndFp8Saturates) {
    EXPECT_EQ(Float16(65519.0f).bits, 0x7bff);
    EXPECT_EQ(Float16(65520.0f).bits, 0x7c00);
    EXPECT_EQ(Float16(-1e30f).bits, 0xfc00);
    EXPECT_EQ(Float16(std::numeric_limits<float>::infinity()).bits, 0x7c00);
    EXPECT_EQ(Float8E4M3(448.0f).bits, 0x7e);
    EXPECT_EQ(Float8E4M3(1e9f).bits, 0x7e);
    EXPECT_EQ(Float8E4M3(-std::numeric_limits<float>::infinity()).bits, 0xfe);
    EXPECT_EQ(BFloat16(std::numeric_limits<float>::max()).bits, 0x7f80) << "rounds up to infinity, as IEEE says";
}

TEST(DType, ANanWithOnlyLowBitsStaysANan) {
    const auto nan = std::bit_cast<float>(0x7f800001u);
    EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(nan))));
    EXPECT_TRUE(std::isnan(static_cast<float>(Float16(nan))));
    EXPECT_TRUE(std::isnan(static_cast<float>(Float8E4M3(nan))));
}

TEST(DType, NamesAreThoseOfSafetensors) {
    const std::vector<std::pair<DType, const char*>> names{
        {DType::kF32, "F32"}, {DType::kBF16, "BF16"}, {DType::kF16, "F16"},  {DType::kF8E4M3, "F8_E4M3"},
        {DType::kF64, "F64"}, {DType::kI8, "I8"},     {DType::kU8, "U8"},    {DType::kI16, "I16"},
        {DType::kI32, "I32"}, {DType::kI64, "I64"},   {DType::kBool, "BOOL"}};
    for (const auto& [type, name] : names) {
        EXPECT_EQ(name_of(type), name);
        EXPECT_EQ(dtype_from_name(name), type);
    }
    EXPECT_EQ(dtype_from_name("F8_E5M2"), std::nullopt);
    EXPECT_EQ(dtype_from_name("DUAL"), std::nullopt) << "exists in tests only, never in a file";
}

TEST(DType, SizesAreThoseOfTheTypes) {
    EXPECT_EQ(size_of(DType::kF32), 4);
    EXPECT_EQ(size_of(DType::kBF16), static_cast<int64_t>(sizeof(BFloat16)));
    EXPECT_EQ(size_of(DType::kF16), static_cast<int64_t>(sizeof(Float16)));
    EXPECT_EQ(size_of(DType::kF8E4M3), static_cast<int64_t>(sizeof(Float8E4M3)));
    EXPECT_EQ(size_of(DType::kDual), 16);
    EXPECT_EQ(size_of(DType::kI64), 8);
    EXPECT_EQ(size_of(DType::kBool), 1);
}

}  // namespace
}  // namespace fathom
