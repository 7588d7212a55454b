#include "quant/integer_groups.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

constexpr int kRanges = 20;             // tried where an error has a cost
constexpr float kSmallestRange = 0.5f;  // of the largest number
constexpr float kLargestHalf = 65504.0f;

float rounded(float value, DType type) {
    if (type == DType::kF32) return value;
    if (type == DType::kBF16) return static_cast<float>(BFloat16(value));
    return static_cast<float>(Float16(std::min(value, kLargestHalf)));
}

void store(const Tensor& to, int64_t at, float value) {
    if (to.dtype == DType::kF32)
        to.as<float>()[at] = value;
    else if (to.dtype == DType::kBF16)
        to.as<BFloat16>()[at] = BFloat16(value);
    else
        to.as<Float16>()[at] = Float16(value);
}

bool nibbles(const Weight& w) { return w.codes.dtype == DType::kU8; }

// The scale and zero for numbers from `low` <= 0 to `high` >= 0.
GroupScale scale_of_range(const Weight& to, float low, float high) {
    const int bits = nibbles(to) ? 4 : 8, top = (1 << bits) - 1;
    GroupScale s;
    if (to.zeros) {
        s.scale = rounded((high - low) / static_cast<float>(top), to.scales.dtype);
        s.high = top;
    } else {
        s.scale = rounded(std::max(-low, high) * 2 / static_cast<float>(top), to.scales.dtype);
        s.zero = nibbles(to) ? 8 : 0;
        s.low = nibbles(to) ? 0 : -128;
        s.high = s.low + top;
    }
    if (!(s.scale > 0)) s.scale = 1;  // all zero, or too small for the type of the scales: all codes are the zero
    if (to.zeros) s.zero = static_cast<int>(std::clamp(std::nearbyint(-low / s.scale), 0.0f, static_cast<float>(top)));
    return s;
}

double cost_of(const GroupScale& s, const float* x, int64_t n, const GroupCost& cost, std::vector<float>& off) {
    for (int64_t i = 0; i < n; ++i) off[static_cast<size_t>(i)] = s.number(s.code_of(x[i])) - x[i];
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float d = off[static_cast<size_t>(i)];
        if (cost.gram == nullptr) {
            sum += static_cast<double>(cost.diagonal[i] * d * d);
            continue;
        }
        const float* row = cost.gram + i * cost.stride;
        float dot = 0;
        for (int64_t j = 0; j < n; ++j) dot += row[j] * off[static_cast<size_t>(j)];
        sum += static_cast<double>(d * dot);
    }
    return sum;
}

}  // namespace

Weight allocate_groups(Arena& arena, int64_t rows, int64_t columns, const GroupFormat& format) {
    check(format.fits(columns) && (format.bits == 4 || format.bits == 8), "allocate_groups: columns that are no whole groups");
    Weight w;
    w.scheme = Scheme::kGroups;
    w.codes = format.bits == 4 ? arena.allocate(DType::kU8, {rows, columns / 2}) : arena.allocate(DType::kI8, {rows, columns});
    w.scales = arena.allocate(format.scales, {rows, format.groups_of(columns)});
    if (format.bits == 4 && !format.symmetric) w.zeros = arena.allocate(DType::kU8, {rows, format.groups_of(columns)});
    return w;
}

int GroupScale::code_of(float x) const {
    const float code = std::nearbyint(x / scale) + static_cast<float>(zero);
    return static_cast<int>(std::clamp(code, static_cast<float>(low), static_cast<float>(high)));
}

GroupScale fit_group(const Weight& to, const float* x, int64_t n, const GroupCost& cost) {
    const auto [lowest, highest] = std::minmax_element(x, x + n);
    const float low = std::min(*lowest, 0.0f), high = std::max(*highest, 0.0f);
    GroupScale best = scale_of_range(to, low, high);
    if (cost.diagonal == nullptr && cost.gram == nullptr) return best;
    std::vector<float> off(static_cast<size_t>(n));
    double least = cost_of(best, x, n, cost, off);
    for (int i = 1; i < kRanges; ++i) {
        const float part = 1 - (1 - kSmallestRange) * static_cast<float>(i) / kRanges;
        const GroupScale s = scale_of_range(to, low * part, high * part);
        const double sum = cost_of(s, x, n, cost, off);
        if (sum < least) {
            least = sum;
            best = s;
        }
    }
    return best;
}

void put_scale(const Weight& to, int64_t row, int64_t group, const GroupScale& scale) {
    store(to.scales, row * to.scales.stride[0] + group, scale.scale);
    if (to.zeros) to.zeros.as<uint8_t>()[row * to.zeros.stride[0] + group] = static_cast<uint8_t>(scale.zero);
}

void put_code(const Weight& to, int64_t row, int64_t column, int code) {
    if (!nibbles(to)) {
        to.codes.as<int8_t>()[row * to.codes.stride[0] + column] = static_cast<int8_t>(code);
        return;
    }
    uint8_t& byte = to.codes.as<uint8_t>()[row * to.codes.stride[0] + column / 2];
    byte = static_cast<uint8_t>(column % 2 == 0 ? (byte & 0xf0) | code : (byte & 0x0f) | code << 4);
}

void encode_groups(const Weight& to, int64_t row, const float* x, const GroupCost& cost) {
    const int64_t columns = to.in_features(), groups = to.scales.dim(1), size = columns / groups;
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t at = g * size;
        const GroupScale scale = fit_group(to, x + at, size, cost.of_group(at));
        put_scale(to, row, g, scale);
        for (int64_t k = at; k < at + size; ++k) put_code(to, row, k, scale.code_of(x[k]));
    }
}

void scale_row(const Weight& to, int64_t row, float factor) {
    for (int64_t g = 0; g < to.scales.dim(1); ++g) {
        const int64_t at = row * to.scales.stride[0] + g;
        store(to.scales, at, rounded(number_at(to.scales, at) * factor, to.scales.dtype));
    }
}

}  // namespace fathom
