#include "cpu/cpu_ops.h"

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace fathom {

CpuOps::CpuOps(ThreadPool& pool, bool deterministic) : CpuOps(pool, choose_isa(), deterministic) {}

CpuOps::CpuOps(ThreadPool& pool, Isa isa, bool deterministic)
    : pool_(pool),
      isa_(isa),
      deterministic_(deterministic),
      kernels_(kernels_of(isa)),
      scratch_(pool.size()) {}

}  // namespace fathom
