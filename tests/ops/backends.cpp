#include "ops/backends.h"

#include "base/threads.h"
#include "cpu/cpu_ops.h"
#include "cpu/isa.h"

namespace fathom {
namespace {

std::shared_ptr<Ops> make_cpu(Isa isa, int threads) {
    struct Cpu {
        ThreadPool pool;
        CpuOps ops;
        Cpu(Isa instructions, int size) : pool(size), ops(pool, instructions) {}
    };
    const auto cpu = std::make_shared<Cpu>(isa, threads);
    return {cpu, &cpu->ops};
}

}  // namespace

std::vector<Backend> backends() {
    std::vector<Backend> found;
    for (const auto& [name, isa] : {std::pair{"CpuAvx2", Isa::kAvx2}, std::pair{"CpuAvx512", Isa::kAvx512}})
        if (supports(isa)) found.push_back({name, [isa](int threads) { return make_cpu(isa, threads); }});
    return found;
}

}  // namespace fathom
