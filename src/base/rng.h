// Philox4x32-10 (Salmon et al. 2011): random numbers as a pure function of (seed, stream, index).
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace fathom {

// The whole state is three integers, so it can be saved, and index i can be computed by any thread.
struct Philox {
    uint64_t seed = 0;
    uint64_t stream = 0;

    [[nodiscard]] constexpr std::array<uint32_t, 4> operator()(uint64_t index) const {
        uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
        std::array<uint32_t, 4> x{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                                  static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
        for (int round = 0; round < 10; ++round) {
            const uint64_t a = 0xD2511F53ull * x[0], b = 0xCD9E8D57ull * x[2];
            x = {static_cast<uint32_t>(b >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(b),
                 static_cast<uint32_t>(a >> 32) ^ x[3] ^ k1, static_cast<uint32_t>(a)};
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        return x;
    }

    // Uniform in [0, 1) with 53 bits.
    [[nodiscard]] double uniform(uint64_t index) const {
        const auto x = (*this)(index);
        return static_cast<double>((static_cast<uint64_t>(x[0]) << 21) ^ (x[1] >> 11)) * 0x1p-53;
    }

    // Standard normal (Box and Muller).
    [[nodiscard]] double normal(uint64_t index) const {
        const auto x = (*this)(index);
        const double u = (static_cast<double>(x[0]) + 1.0) * 0x1p-32, v = static_cast<double>(x[1]) * 0x1p-32;
        return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
    }
};

// The same generator as a sequence: what samplers and shuffles use.
struct Rng {
    Philox philox;
    uint64_t index = 0;

    explicit Rng(uint64_t seed = 0, uint64_t stream = 0) : philox{seed, stream} {}
    [[nodiscard]] double uniform() { return philox.uniform(index++); }
    [[nodiscard]] double normal() { return philox.normal(index++); }
    // Uniform in [0, bound), bound > 0.
    [[nodiscard]] uint64_t below(uint64_t bound) {
        const auto x = philox(index++);
        return static_cast<uint64_t>((static_cast<unsigned __int128>((static_cast<uint64_t>(x[0]) << 32) | x[1]) * bound) >>
                                     64);
    }
};

}  // namespace fathom
