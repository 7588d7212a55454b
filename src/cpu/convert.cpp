#include "cpu/convert.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace fathom {
namespace {

double element(const void* x, DType type, int64_t i) {
    switch (type) {
        case DType::kF32:
            return static_cast<const float*>(x)[i];
        case DType::kBF16:
            return static_cast<float>(static_cast<const BFloat16*>(x)[i]);
        case DType::kF16:
            return static_cast<float>(static_cast<const Float16*>(x)[i]);
        case DType::kF8E4M3:
            return static_cast<float>(static_cast<const Float8E4M3*>(x)[i]);
        case DType::kF64:
            return static_cast<const double*>(x)[i];
        case DType::kI32:
            return static_cast<const int32_t*>(x)[i];
        case DType::kI64:
            return static_cast<double>(static_cast<const int64_t*>(x)[i]);
        default:
            check(false, "convert: a dtype without arithmetic");
            return 0;
    }
}

void set_element(void* y, DType type, int64_t i, double value) {
    switch (type) {
        case DType::kF32:
            static_cast<float*>(y)[i] = static_cast<float>(value);
            return;
        case DType::kBF16:
            static_cast<BFloat16*>(y)[i] = BFloat16(static_cast<float>(value));
            return;
        case DType::kF16:
            static_cast<Float16*>(y)[i] = Float16(static_cast<float>(value));
            return;
        case DType::kF8E4M3:
            static_cast<Float8E4M3*>(y)[i] = Float8E4M3(static_cast<float>(value));
            return;
        case DType::kF64:
            static_cast<double*>(y)[i] = value;
            return;
        case DType::kI32:
            static_cast<int32_t*>(y)[i] = static_cast<int32_t>(value);
            return;
        case DType::kI64:
            static_cast<int64_t*>(y)[i] = static_cast<int64_t>(value);
            return;
        default:
            check(false, "convert: a dtype without arithmetic");
    }
}

bool widens(DType type) { return type == DType::kF32 || type == DType::kBF16 || type == DType::kF16 || type == DType::kF8E4M3; }
bool narrows(DType type) { return type == DType::kBF16 || type == DType::kF16; }

}  // namespace

void convert_row(const Kernels& kernels, void* y, DType y_type, int64_t y_step, const void* x, DType x_type, int64_t x_step,
                 int64_t n) {
    if (y_step == 1 && x_step == 1) {
        if (y_type == x_type) {
            std::memcpy(y, x, static_cast<size_t>(n * size_of(x_type)));
            return;
        }
        if (y_type == DType::kF32 && widens(x_type)) return kernels.widen(static_cast<float*>(y), x, x_type, n);
        if (x_type == DType::kF32 && narrows(y_type)) return kernels.narrow(y, y_type, static_cast<const float*>(x), n);
    }
    for (int64_t i = 0; i < n; ++i) set_element(y, y_type, i * y_step, element(x, x_type, i * x_step));
}

}  // namespace fathom
