#include "cpu/cpu_ops.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace fathom {

CpuOps::CpuOps(ThreadPool& pool, bool deterministic) : CpuOps(pool, choose_isa(), deterministic) {}

CpuOps::CpuOps(ThreadPool& pool, Isa isa, bool deterministic)
    : pool_(pool),
      isa_(deterministic ? std::min(isa, Isa::kAvx512) : isa),
      deterministic_(deterministic),
      kernels_(kernels_of(isa)),
      scratch_(pool.size()) {}

}  // namespace fathom
