#include "cpu/isa.h"

#include <fmt/format.h>
#include <cstdlib>

#include "base/error.h"
#include "cpu/roofline.h"

namespace fathom {

std::string_view name_of(Isa isa) {
    constexpr std::string_view kNames[] = {"avx2", "avx-vnni", "avx512", "avx512-bf16"};
    return kNames[static_cast<size_t>(isa)];
}

bool supports(Isa isa) {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (isa == Isa::kAvx2) return avx2;
    if (isa == Isa::kAvxVnni) return avx2 && __builtin_cpu_supports("avxvnni");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 && (isa == Isa::kAvx512 || __builtin_cpu_supports("avx512bf16"));
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
        return supports(Isa::kAvx512Bf16) && bf16_pairs_pay() ? Isa::kAvx512Bf16 : Isa::kAvx512;
    }
    for (const Isa isa : kEveryIsa) {
        if (name_of(isa) != wish) continue;
        if (!supports(isa))
            throw Error(ErrorKind::kDevice,
                        fmt::format("FATHOM_CPU_ISA={}: this CPU does not have it; unset the variable", wish));
        return isa;
    }
    throw Error(ErrorKind::kUsage, fmt::format("FATHOM_CPU_ISA={}: expected avx2, avx-vnni, avx512 or avx512-bf16", wish));
}

}  // namespace fathom
