// Which vector instructions this process uses.
#pragma once

#include <cstdint>
#include <string_view>

namespace fathom {

enum class Isa : uint8_t {
    kAvx2,    // AVX2 + FMA + F16C: 8 lanes
    kAvx512,  // AVX-512 F, BW, DQ, VL: 16 lanes
};

[[nodiscard]] std::string_view name_of(Isa isa);

// Can this CPU, under this operating system, run `isa`?
[[nodiscard]] bool supports(Isa isa);

// The widest set that the CPU has; the environment variable FATHOM_CPU_ISA=avx2|avx512 overrides it. All levels give the same
// bits. Throws Error{kDevice} when the CPU has no AVX2 and FMA or lacks what was asked for, Error{kUsage} on another name.
[[nodiscard]] Isa choose_isa();

}  // namespace fathom
