#include "tensor/weight_row.h"

namespace fathom {

float number_at(const Tensor& x, int64_t i) {
    switch (x.dtype) {
        case DType::kF32:
            return x.as<const float>()[i];
        case DType::kBF16:
            return static_cast<float>(x.as<const BFloat16>()[i]);
        case DType::kF16:
            return static_cast<float>(x.as<const Float16>()[i]);
        case DType::kF8E4M3:
            return static_cast<float>(x.as<const Float8E4M3>()[i]);
        default:
            check(false, "a number of type " + std::string(name_of(x.dtype)));
            return 0;
    }
}

namespace {

void decode_groups_row(float* y, const Weight& w, int64_t row) {
    const bool nibbles = w.codes.dtype == DType::kU8;
    const int64_t n = w.in_features(), groups = w.scales.dim(1), size = n / groups;
    const auto* codes = w.codes.as<const uint8_t>() + row * w.codes.stride[0];
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t at = row * w.scales.stride[0] + g;
        const float scale = number_at(w.scales, at);
        const int zero = w.zeros ? w.zeros.as<const uint8_t>()[row * w.zeros.stride[0] + g] : nibbles ? 8 : 0;
        for (int64_t k = g * size; k < (g + 1) * size; ++k) {
            const int code = nibbles ? (codes[k / 2] >> (k % 2 * 4)) & 15 : static_cast<int8_t>(codes[k]);
            y[k] = scale * static_cast<float>(code - zero);
        }
    }
}

}  // namespace

void decode_row(float* y, const Weight& w, int64_t row) {
    if (w.scheme == Scheme::kBlocks)
        return decode_blocks(w.block, w.codes.as<const uint8_t>() + row * w.codes.stride[0], y, w.in_features());
    if (w.scheme == Scheme::kGroups) return decode_groups_row(y, w, row);
    check(w.scheme != Scheme::kPanels, "decode_row: panels belong to their back end");
    const bool vector = w.codes.rank == 1;
    const int64_t n = w.codes.dim(-1), at = vector ? 0 : row * w.codes.stride[0];
    for (int64_t k = 0; k < n; ++k) y[k] = number_at(w.codes, at + k);
    if (w.scheme != Scheme::kFp8Block) return;
    const int64_t grid_row = (row + w.row0) / kFp8Block;
    for (int64_t k = 0; k < n; ++k) y[k] *= w.scales.as<const float>()[grid_row * w.scales.stride[0] + k / kFp8Block];
}

}  // namespace fathom
