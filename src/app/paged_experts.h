// --ram: a model that need not fit into memory.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "cpu/cpu_ops.h"
#include "infer/expert_cache.h"

namespace fathom {

// An ExpertCache with what `ram` bytes leave after the weights that every token needs, `cache_bytes` of latents, and room to
// work in. Stays where it was built; the model must outlive it.
class PagedExperts {
public:
    // Throws Error{kUsage} where the budget is too small, saying what is missing.
    PagedExperts(LoadedModel& loaded, Ops& ops, int64_t ram, int64_t cache_bytes);

    [[nodiscard]] ExpertCache& cache() { return cache_; }
    [[nodiscard]] std::string summary() const;  // "experts: 412 of 1664 in memory, 93.1 % hits, ..."
    [[nodiscard]] nlohmann::ordered_json json() const;

private:
    ThreadPool thread_{1};
    CpuOps background_{thread_};
    ExpertCache cache_;
};

}  // namespace fathom
