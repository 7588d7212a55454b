// Products with weights of the schemes kBlocks, kGroups and kPanels.
//   panels, forward  activations become int8 once per product, integer kernels (cpu/quant_kernels.h)
//   all others       rows of the weight become f32 a few MB at a time and meet the kernels of cpu/gemm.h; those of panels by
//                    the transpose meet the ones of pairs, rounded to bf16, where has_pairs(isa), and become halves for
//                    Isa::kAvx512Fp16 (cpu/halves.h)
// Which way a weight goes depends on its scheme alone, never on the number of rows, so docs/decisions/001 holds within a
// scheme.
#pragma once

#include <span>

#include "base/threads.h"
#include "cpu/isa.h"
#include "cpu/number_panel.h"
#include "cpu/scratch.h"
#include "tensor/tensor.h"

namespace fathom {

enum class QuantForm : uint8_t { kForward, kDgrad };  // c = a w^T, c = a w

struct QuantProduct {
    Tensor c;  // [m, out], or [m, in] for kDgrad; f32
    Tensor a;  // [m, in], or [m, out]; f32
    Weight w;
};

// Whether a product goes here; if not, it is one of cpu/gemm.h. Panels of numbers come here to be laid out in rows again.
[[nodiscard]] inline bool is_quantized(const Weight& w, QuantForm form) {
    if (is_number_panels(w)) return form == QuantForm::kDgrad;
    return w.scheme != Scheme::kPlain && w.scheme != Scheme::kFp8Block;
}

// Shapes are the caller's to check, but for K: panels and blocks need no tails because their columns are whole blocks.
void multiply_quantized(std::span<const QuantProduct> products, QuantForm form, ThreadPool& pool, Isa isa, Scratch& scratch);

// y[0:in] = row `row` of a quantized weight.
void decode_weight_row(float* y, const Weight& w, int64_t row);

// `to` [out / 16, ...] = the panels of w (panels_of or has_number_panels).
void pack_weight(const Tensor& to, const Weight& w, ThreadPool& pool);

}  // namespace fathom
