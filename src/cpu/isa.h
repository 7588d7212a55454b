// Which vector instructions this process uses.
#pragma once

#include <cstdint>
#include <string_view>

namespace fathom {

// In ascending order: each level has what those before it have, but for AVX-VNNI and FP16.
enum class Isa : uint8_t {
    kAvx2,        // AVX2 + FMA + F16C: 8 lanes
    kAvxVnni,     // and vpdpbusd of 256 bits: run on no machine yet, so chosen by FATHOM_CPU_ISA only
    kAvx512,      // AVX-512 F, BW, DQ, VL: 16 lanes; VNNI where the CPU has it
    kAvx512Fp16,  // and multiply-adds of halves in attention (docs/decisions/014), where CpuOps is not deterministic
    kAvx512Bf16,  // and vdpbf16ps instead, for panels of bf16 too, likewise
    kAmxBf16,     // and tiles of AMX for panels of bf16 instead, likewise
    kAmx,         // and tiles for many rows times quantized panels, with the same bits: chosen by FATHOM_CPU_ISA only
};
inline constexpr Isa kEveryIsa[] = {Isa::kAvx2,       Isa::kAvxVnni, Isa::kAvx512, Isa::kAvx512Fp16,
                                    Isa::kAvx512Bf16, Isa::kAmxBf16, Isa::kAmx};

[[nodiscard]] constexpr bool has_avx512(Isa isa) { return isa >= Isa::kAvx512; }

[[nodiscard]] constexpr bool has_tiles(Isa isa) { return isa >= Isa::kAmxBf16; }
// Does it round activations to bf16 for panels of bf16?
[[nodiscard]] constexpr bool has_pairs(Isa isa) { return isa >= Isa::kAvx512Bf16; }

// What expanded attention multiplies (the expansion of its keys too, but for tiles, which do that themselves). Beside tiles it
// is what was measured to be faster than f32.
enum class AttentionNumbers : uint8_t { kF32, kPairs, kHalves };
[[nodiscard]] AttentionNumbers attention_numbers(Isa isa);

[[nodiscard]] std::string_view name_of(Isa isa);

// Can this CPU, under this operating system, run `isa`? Tiles need the system's leave, which the first question asks for.
[[nodiscard]] bool supports(Isa isa);

// The widest set that the CPU has, kAvx512Fp16, kAvx512Bf16 and kAmxBf16 only where they were measured to be faster than f32
// (cpu/roofline.h); the environment variable FATHOM_CPU_ISA=avx2|avx-vnni|avx512|avx512-fp16|avx512-bf16|amx-bf16|amx overrides
// both. The first three give the same bits. Throws Error{kDevice} when the CPU has no AVX2 and FMA or lacks what was asked for,
// Error{kUsage} on another name.
[[nodiscard]] Isa choose_isa();

}  // namespace fathom
