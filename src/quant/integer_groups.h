// Numbers -> whole numbers in groups of columns (Scheme::kGroups), one scale and zero point per group:
//   number = scale (code - zero)
// Codes are 0 .. 15 with zero 8 (nibbles without zero points), 0 .. 15 with a zero of their own, or -128 .. 127 (I8, zero 0).
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace fathom {

struct GroupFormat {
    int64_t bits = 4;          // 4 or 8
    int64_t group_size = 128;  // columns; 0: a whole row
    bool symmetric = true;     // 4 bits only; 8 are symmetric always
    DType scales = DType::kBF16;

    [[nodiscard]] int64_t groups_of(int64_t columns) const { return group_size > 0 ? columns / group_size : 1; }
    // Whether rows of so many columns can be stored: whole groups, and whole 32-bit words of codes.
    [[nodiscard]] bool fits(int64_t columns) const {
        return columns > 0 && columns % 8 == 0 && (group_size == 0 || columns % group_size == 0);
    }
    bool operator==(const GroupFormat&) const = default;
};

// A matrix [rows, columns] of that format in memory of `arena`, without content.
[[nodiscard]] Weight allocate_groups(Arena& arena, int64_t rows, int64_t columns, const GroupFormat& format);

// What an error of a group's numbers costs: sum_ij d_i gram_ij d_j, or without a gram sum_i diagonal_i d_i^2, or without either
// nothing is weighed: the scale is that of the largest number.
struct GroupCost {
    const float* diagonal = nullptr;  // [group]
    const float* gram = nullptr;      // [group, group], rows `stride` apart
    int64_t stride = 0;

    // Of the group that begins at column `at` of all that this is the cost of.
    [[nodiscard]] GroupCost of_group(int64_t at) const {
        return {diagonal == nullptr ? nullptr : diagonal + at, gram == nullptr ? nullptr : gram + at * stride + at, stride};
    }
};

// The scale and zero of one group, the scale already rounded to its type.
struct GroupScale {
    float scale = 1;
    int zero = 0;
    int low = 0, high = 0;  // of codes

    [[nodiscard]] int code_of(float x) const;
    [[nodiscard]] float number(int code) const { return scale * static_cast<float>(code - zero); }
};

// For the n numbers of a group of `to`. Without a cost as compressed-tensors and GPTQ round: symmetric scale = max |x| /
// (2^bits
// - 1) * 2; with zero points the range from min to max, 0 within it. With a cost the best of 20 ranges down to half of that.
[[nodiscard]] GroupScale fit_group(const Weight& to, const float* x, int64_t n, const GroupCost& cost = {});

void put_scale(const Weight& to, int64_t row, int64_t group, const GroupScale& scale);
void put_code(const Weight& to, int64_t row, int64_t column, int code);

// Row `row` of `to` from x [columns], rounded to nearest. `cost`: of all columns (diagonal [columns], gram [columns, columns]);
// only the blocks of the groups are looked at.
void encode_groups(const Weight& to, int64_t row, const float* x, const GroupCost& cost = {});

// The scales of row `row` times `factor`.
void scale_row(const Weight& to, int64_t row, float factor);

}  // namespace fathom
