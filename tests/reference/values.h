// The numbers of a tensor as a dense array of one C++ type: read all, compute in plain loops, store all. Slow and hard to get
// wrong, which is what a reference is for.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "reference/dual.h"
#include "tensor/tensor.h"

namespace fathom {

template <class T>
[[nodiscard]] constexpr DType dtype_of() {
    if constexpr (std::is_same_v<T, float>) return DType::kF32;
    if constexpr (std::is_same_v<T, double>) return DType::kF64;
    if constexpr (std::is_same_v<T, Dual>) return DType::kDual;
    if constexpr (std::is_same_v<T, int32_t>) return DType::kI32;
    if constexpr (std::is_same_v<T, int64_t>) return DType::kI64;
}

// Conversion among all number types; a Dual becomes its value unless it stays a Dual.
template <class To, class From>
[[nodiscard]] To number_cast(From from) {
    if constexpr (std::is_same_v<To, From>) {
        return from;
    } else if constexpr (std::is_same_v<From, Dual>) {
        return number_cast<To>(from.value);
    } else if constexpr (std::is_same_v<To, Dual>) {
        return Dual(number_cast<double>(from));
    } else if constexpr (std::is_class_v<From>) {
        return number_cast<To>(static_cast<float>(from));
    } else if constexpr (std::is_class_v<To>) {
        return To(static_cast<float>(from));
    } else {
        return static_cast<To>(from);
    }
}

// Calls f(C{}) with the C++ type of a dtype.
template <class F>
decltype(auto) with_type(DType type, F&& f) {
    switch (type) {
        case DType::kF32:
            return f(float{});
        case DType::kBF16:
            return f(BFloat16{});
        case DType::kF16:
            return f(Float16{});
        case DType::kF8E4M3:
            return f(Float8E4M3{});
        case DType::kF64:
            return f(double{});
        case DType::kDual:
            return f(Dual{});
        case DType::kI8:
            return f(int8_t{});
        case DType::kI16:
            return f(int16_t{});
        case DType::kI32:
            return f(int32_t{});
        case DType::kI64:
            return f(int64_t{});
        default:
            return f(uint8_t{});
    }
}

template <class T>
struct Values {
    std::array<int64_t, 4> shape{1, 1, 1, 1};
    std::vector<T> data;

    Values() = default;
    explicit Values(int64_t a, int64_t b = 1, int64_t c = 1, int64_t d = 1)
        : shape{a, b, c, d},
          data(static_cast<size_t>(a * b * c * d)) {}
    // Zeros.
    explicit Values(const std::array<int64_t, 4>& dims)
        : shape(dims),
          data(static_cast<size_t>(dims[0] * dims[1] * dims[2] * dims[3])) {}
    // Reads a tensor of any dtype and strides.
    explicit Values(const Tensor& x) : shape(shape_of(x)) {
        data.reserve(static_cast<size_t>(x.size()));
        if (x.size() == 0) return;
        with_type(x.dtype, [&](auto type) {
            for_each_offset(x, [&](int64_t at) { data.push_back(number_cast<T>(x.as<decltype(type)>()[at])); });
        });
    }

    // Writes all numbers in row-major order, rounded to the tensor's dtype.
    void store(const Tensor& y) const {
        check(shape_of(y) == shape, "Values::store: another shape");
        if (y.size() == 0) return;
        with_type(y.dtype, [&](auto type) {
            size_t i = 0;
            for_each_offset(y, [&](int64_t at) { y.as<decltype(type)>()[at] = number_cast<decltype(type)>(data[i++]); });
        });
    }

    [[nodiscard]] int64_t dim(int i) const { return shape[static_cast<size_t>(i)]; }
    [[nodiscard]] T& operator()(int64_t i, int64_t j = 0, int64_t k = 0) { return data[index(i, j, k)]; }
    [[nodiscard]] const T& operator()(int64_t i, int64_t j = 0, int64_t k = 0) const { return data[index(i, j, k)]; }

private:
    [[nodiscard]] size_t index(int64_t i, int64_t j, int64_t k) const {
        check(i >= 0 && i < shape[0] && j >= 0 && j < shape[1] && k >= 0 && k < shape[2] && shape[3] == 1,
              "Values: index out of range");
        return static_cast<size_t>((i * shape[1] + j) * shape[2] + k);
    }
    static std::array<int64_t, 4> shape_of(const Tensor& x) {
        if (!x) return {0, 0, 0, 0};
        std::array<int64_t, 4> shape{1, 1, 1, 1};
        for (int i = 0; i < x.rank; ++i) shape[static_cast<size_t>(i)] = x.dim(i);
        return shape;
    }
    // Element offsets in row-major order.
    template <class F>
    static void for_each_offset(const Tensor& x, F&& f) {
        const auto n = shape_of(x);
        std::array<int64_t, 4> s{};
        for (int i = 0; i < x.rank; ++i) s[static_cast<size_t>(i)] = x.stride[static_cast<size_t>(i)];
        for (int64_t a = 0; a < n[0]; ++a)
            for (int64_t b = 0; b < n[1]; ++b)
                for (int64_t c = 0; c < n[2]; ++c)
                    for (int64_t d = 0; d < n[3]; ++d) f(a * s[0] + b * s[1] + c * s[2] + d * s[3]);
    }
};

// The numbers that a stored matrix [out, in] stands for.
template <class T>
[[nodiscard]] Values<T> weight_values(const Weight& w) {
    Values<T> values(w.codes);
    if (w.scheme == Scheme::kPlain) return values;
    const Values<T> scales(w.scales);
    for (int64_t o = 0; o < values.dim(0); ++o)
        for (int64_t i = 0; i < values.dim(1); ++i) values(o, i) *= scales((w.row0 + o) / kFp8Block, i / kFp8Block);
    return values;
}

}  // namespace fathom
