#include "cpu/isa.h"

#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cstdlib>

#include "base/error.h"
#include "cpu/roofline.h"

namespace fathom {
namespace {

// Linux gives a process tiles when it asks for them, once: their 8 KB are part of what a thread's switch must save.
bool may_use_tiles() {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool kGranted = ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return kGranted;
}

}  // namespace

AttentionNumbers attention_numbers(Isa isa) {
    if (isa == Isa::kAvx512Bf16 || (has_tiles(isa) && bf16_pairs_pay())) return AttentionNumbers::kPairs;
    const bool halves = isa == Isa::kAvx512Fp16 || (has_tiles(isa) && supports(Isa::kAvx512Fp16) && halves_pay());
    return halves ? AttentionNumbers::kHalves : AttentionNumbers::kF32;
}

std::string_view name_of(Isa isa) {
    constexpr std::string_view kNames[] = {"avx2", "avx-vnni", "avx512", "avx512-fp16", "avx512-bf16", "amx-bf16", "amx"};
    return kNames[static_cast<size_t>(isa)];
}

bool supports(Isa isa) {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (isa == Isa::kAvx2) return avx2;
    if (isa == Isa::kAvxVnni) return avx2 && __builtin_cpu_supports("avxvnni");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (isa == Isa::kAvx512) return avx512;
    if (isa == Isa::kAvx512Fp16) return avx512 && __builtin_cpu_supports("avx512fp16");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (isa == Isa::kAvx512Bf16) return bf16;
    return bf16 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("amx-tile") &&
           __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-int8") && may_use_tiles();
}

Isa choose_isa() {
    if (!supports(Isa::kAvx2))
        throw Error(
            ErrorKind::kDevice,
            "this CPU lacks AVX2, FMA or F16C, which fathom needs (Intel since 2013, AMD since 2015; in a virtual machine, "
            "ask for the host's CPU model)");
    const char* const wish = std::getenv("FATHOM_CPU_ISA");
    if (wish == nullptr || *wish == '\0') {
        if (!supports(Isa::kAvx512)) return Isa::kAvx2;
        if (supports(Isa::kAmxBf16) && bf16_tiles_pay()) return Isa::kAmxBf16;
        if (supports(Isa::kAvx512Bf16) && bf16_pairs_pay()) return Isa::kAvx512Bf16;
        return supports(Isa::kAvx512Fp16) && halves_pay() ? Isa::kAvx512Fp16 : Isa::kAvx512;
    }
    for (const Isa isa : kEveryIsa) {
        if (name_of(isa) != wish) continue;
        if (!supports(isa))
            throw Error(ErrorKind::kDevice,
                        fmt::format("FATHOM_CPU_ISA={}: this CPU does not have it; unset the variable", wish));
        return isa;
    }
    throw Error(
        ErrorKind::kUsage,
        fmt::format("FATHOM_CPU_ISA={}: expected avx2, avx-vnni, avx512, avx512-fp16, avx512-bf16, amx-bf16 or amx", wish));
}

}  // namespace fathom
