// RMSNorm and rotary embedding of ReferenceOps; included by reference_ops.cpp only.
#pragma once

#include "reference/reference_ops.h"

namespace fathom {

// 1 / sqrt(mean(x_i^2) + eps)
template <class T>
T inverse_rms(const Values<T>& x, int64_t i, double eps) {
    using std::sqrt;
    T sum = 0;
    for (int64_t c = 0; c < x.dim(1); ++c) sum += x(i, c) * x(i, c);
    return T(1) / sqrt(sum / T(static_cast<double>(x.dim(1))) + T(eps));
}

template <class T>
void ReferenceOps<T>::rms_norm(const Tensor& y, const Tensor& x, const Tensor& w, double eps) {
    const Values<T> in(x), weight(w);
    Values<T> out(in.dim(0), in.dim(1));
    for (int64_t i = 0; i < in.dim(0); ++i) {
        const T r = inverse_rms(in, i, eps);
        for (int64_t c = 0; c < in.dim(1); ++c) out(i, c) = weight(c) * in(i, c) * r;
    }
    out.store(y);
}

// With r = 1 / rms, g = dy w: dx = r g - x r^3 mean(g x), dw += sum_i dy x r.
template <class T>
void ReferenceOps<T>::rms_norm_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                                        double eps) {
    const Values<T> in(x), weight(w), grad(dy);
    Values<T> din(in.dim(0), in.dim(1)), dweight(dw);
    const int64_t d = in.dim(1);
    for (int64_t i = 0; i < in.dim(0); ++i) {
        const T r = inverse_rms(in, i, eps);
        T mean = 0;
        for (int64_t c = 0; c < d; ++c) mean += grad(i, c) * weight(c) * in(i, c);
        mean /= T(static_cast<double>(d));
        for (int64_t c = 0; c < d; ++c) {
            din(i, c) = r * grad(i, c) * weight(c) - in(i, c) * r * r * r * mean;
            dweight(c) += grad(i, c) * in(i, c) * r;
        }
    }
    din.store(dx);
    dweight.store(dw);
}

template <class T>
void ReferenceOps<T>::rope_table(const Tensor& table, const Tensor& positions, const Tensor& inv_freq, double magnitude) {
    const Values<float> position(positions), frequency(inv_freq);
    const int64_t half = frequency.dim(0);
    Values<T> out(position.dim(0), 2 * half);
    for (int64_t i = 0; i < position.dim(0); ++i) {
        for (int64_t j = 0; j < half; ++j) {
            const float angle = position(i) * frequency(j);
            out(i, j) = T(magnitude * std::cos(static_cast<double>(angle)));
            out(i, half + j) = T(magnitude * std::sin(static_cast<double>(angle)));
        }
    }
    out.store(table);
}

template <class T>
void ReferenceOps<T>::rope(const Tensor& y, const Tensor& x, const Tensor& table, RopePairing pairing, bool inverse) {
    Values<T> out(x);
    const Values<T> angles(table);
    const int64_t half = out.dim(2) / 2;
    for (int64_t i = 0; i < out.dim(0); ++i) {
        for (int64_t j = 0; j < out.dim(1); ++j) {
            for (int64_t pair = 0; pair < half; ++pair) {
                const T c = angles(i, pair), s = inverse ? -angles(i, half + pair) : angles(i, half + pair);
                T& a = pairing == RopePairing::kInterleaved ? out(i, j, 2 * pair) : out(i, j, pair);
                T& b = pairing == RopePairing::kInterleaved ? out(i, j, 2 * pair + 1) : out(i, j, half + pair);
                const T rotated_a = a * c - b * s, rotated_b = a * s + b * c;
                a = rotated_a;
                b = rotated_b;
            }
        }
    }
    out.store(y);
}

}  // namespace fathom
