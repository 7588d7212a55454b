#include "cpu/cpu_ops.h"

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace fathom {

CpuOps::CpuOps(ThreadPool& pool) : CpuOps(pool, choose_isa()) {}

CpuOps::CpuOps(ThreadPool& pool, Isa isa) : pool_(pool), isa_(isa), kernels_(kernels_of(isa)), scratch_(pool.size()) {}

}  // namespace fathom
