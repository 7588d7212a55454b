#include "cpu/isa.h"

#include <fmt/format.h>
#include <cstdlib>

#include "base/error.h"

namespace fathom {

std::string_view name_of(Isa isa) { return isa == Isa::kAvx512 ? "avx512" : "avx2"; }

bool supports(Isa isa) {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (isa == Isa::kAvx2) return avx2;
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

Isa choose_isa() {
    if (!supports(Isa::kAvx2))
        throw Error(
            ErrorKind::kDevice,
            "this CPU lacks AVX2, FMA or F16C, which fathom needs (Intel since 2013, AMD since 2015; in a virtual machine, "
            "ask for the host's CPU model)");
    const char* const wish = std::getenv("FATHOM_CPU_ISA");
    if (wish == nullptr || *wish == '\0') return supports(Isa::kAvx512) ? Isa::kAvx512 : Isa::kAvx2;
    for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
        if (name_of(isa) != wish) continue;
        if (!supports(isa))
            throw Error(ErrorKind::kDevice,
                        fmt::format("FATHOM_CPU_ISA={}: this CPU does not have it; unset the variable", wish));
        return isa;
    }
    throw Error(ErrorKind::kUsage, fmt::format("FATHOM_CPU_ISA={}: expected avx2 or avx512", wish));
}

}  // namespace fathom
