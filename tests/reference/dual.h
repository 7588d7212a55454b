// Forward-mode derivatives: a number that carries its derivative along one direction.
#pragma once

#include <cmath>

namespace fathom {

// value + derivative * epsilon, epsilon^2 = 0. Compared by value, so that a branch goes the way the plain number would.
struct Dual {
    double value = 0;
    double derivative = 0;

    constexpr Dual() = default;
    constexpr Dual(double v, double d = 0) : value(v), derivative(d) {}  // NOLINT(google-explicit-constructor): a constant

    friend constexpr Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.derivative + b.derivative}; }
    friend constexpr Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.derivative - b.derivative}; }
    friend constexpr Dual operator-(Dual a) { return {-a.value, -a.derivative}; }
    friend constexpr Dual operator*(Dual a, Dual b) {
        return {a.value * b.value, a.derivative * b.value + a.value * b.derivative};
    }
    friend constexpr Dual operator/(Dual a, Dual b) {
        return {a.value / b.value, (a.derivative * b.value - a.value * b.derivative) / (b.value * b.value)};
    }
    constexpr Dual& operator+=(Dual b) { return *this = *this + b; }
    constexpr Dual& operator-=(Dual b) { return *this = *this - b; }
    constexpr Dual& operator*=(Dual b) { return *this = *this * b; }
    constexpr Dual& operator/=(Dual b) { return *this = *this / b; }

    friend constexpr bool operator==(Dual a, Dual b) { return a.value == b.value; }
    friend constexpr auto operator<=>(Dual a, Dual b) { return a.value <=> b.value; }
};
static_assert(sizeof(Dual) == 16);

inline Dual fma(Dual a, Dual b, Dual c) {
    return {std::fma(a.value, b.value, c.value),
            std::fma(a.derivative, b.value, std::fma(a.value, b.derivative, c.derivative))};
}
inline Dual exp(Dual a) { return {std::exp(a.value), std::exp(a.value) * a.derivative}; }
inline Dual log(Dual a) { return {std::log(a.value), a.derivative / a.value}; }
inline Dual sqrt(Dual a) { return {std::sqrt(a.value), a.derivative / (2 * std::sqrt(a.value))}; }
inline Dual sin(Dual a) { return {std::sin(a.value), std::cos(a.value) * a.derivative}; }
inline Dual cos(Dual a) { return {std::cos(a.value), -std::sin(a.value) * a.derivative}; }
inline bool isfinite(Dual a) { return std::isfinite(a.value) && std::isfinite(a.derivative); }

}  // namespace fathom
