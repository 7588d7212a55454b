// GPTQ (Frantar et al. 2022): columns are rounded one after the other, and what a column loses is made up for by the columns
// still to come, as the inputs' second moments say it can be.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/threads.h"
#include "quant/integer_groups.h"

namespace fathom {

// How the columns of one matrix are gone through, the same for all of its rows.
struct GptqPlan {
    std::vector<int64_t> order;  // of columns: those with the largest inputs first, while later ones can still make up for them
    // [n, n] row-major, upper triangular, in that order: U^T U = (gram + damp mean(diagonal) I)^-1.
    std::vector<float> factor;
};

// gram: X^T X of the matrix's inputs, symmetric, f32 [n, n]. Where rounding spoiled its positive definiteness the damping is
// raised tenfold until it helps. O(2/3 n^3).
[[nodiscard]] GptqPlan gptq_plan(const float* gram, int64_t n, double damp, ThreadPool& pool);

// Encodes x [columns] as row `row` of `to`; x becomes what was left of the numbers when their turn came. The scales of groups
// are those of the row as it is given, by `cost` (encode_groups), so that groups stay neighbours whatever the order.
void gptq_encode(const Weight& to, int64_t row, std::span<float> x, const GptqPlan& plan, const GroupCost& cost = {});

}  // namespace fathom
