// Elementary functions on vectors of 16 floats (V is Avx2 or Avx512).
#pragma once

namespace fathom {

// e^x within 1 ulp for x in [-87.3, 88.7]; 0 below (so -inf gives 0, where the true value is under 1.2e-38), inf above, NaN for
// NaN, and exactly 1 at 0. x = n ln 2 + r, e^r = 1 + r + r^2 p(r) with p a minimax polynomial on |r| <= ln(2)/2 (our fit:
// relative error 5.2e-11 before rounding).
template <class V>
inline V exp(V x) {
    constexpr float kLowest = -87.33654f, kHighest = 88.72283f;
    const V n = V::round(x * V::all(1.44269504f));
    V r = V::fma(n, V::all(-0x1.62e400p-1f), x);  // ln 2 in two parts: the first has 9 trailing zero bits, n has 8,
    r = V::fma(n, V::all(-0x1.7f7d1cp-20f), r);   // so n times it is exact
    V p = V::all(0x1.9f0896p-13f);
    p = V::fma(p, r, V::all(0x1.6d8d06p-10f));
    p = V::fma(p, r, V::all(0x1.111270p-7f));
    p = V::fma(p, r, V::all(0x1.55548ep-5f));
    p = V::fma(p, r, V::all(0x1.555554p-3f));
    p = V::fma(p, r, V::all(0.5f));
    p = V::fma(p * r, r, r) + V::all(1.0f);
    const V y = V::scale_exponent(p, n);
    const V bounded = V::if_less(V::all(kHighest), x, V::all(__builtin_inff()), y);
    return V::if_less(x, V::all(kLowest), V::zero(), bounded);
}

// 1 / (1 + e^-x): 0 and 1 at the ends, never NaN for a number.
template <class V>
inline V sigmoid(V x) {
    return V::all(1.0f) / (V::all(1.0f) + exp(V::zero() - x));
}

}  // namespace fathom
