// --ram: a model that need not fit into memory.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "cpu/cpu_ops.h"
#include "infer/expert_cache.h"

namespace fathom {

struct PagingFigures {
    int64_t slots = 0, experts = 0;
    ExpertCache::Counters counted;

    [[nodiscard]] std::string summary() const;  // "experts: room for 412 of 1664, 93.1 % in memory when wanted, ..."
    [[nodiscard]] nlohmann::ordered_json json() const;
};

// An ExpertCache with what `ram` bytes leave after the weights that every token needs, `cache_bytes` of latents, and room to
// work in. Stays where it was built; the model must outlive it.
class PagedExperts {
public:
    // Throws Error{kUsage} where the budget is too small, saying what is missing.
    PagedExperts(LoadedModel& loaded, Ops& ops, int64_t ram, int64_t cache_bytes);

    [[nodiscard]] ExpertCache& cache() { return cache_; }
    [[nodiscard]] const ExpertCache& cache() const { return cache_; }
    // What was counted since the cache was built, or since `before`.
    [[nodiscard]] PagingFigures figures(const ExpertCache::Counters& before = {}) const;

private:
    ThreadPool thread_{1};
    CpuOps background_{thread_};
    ExpertCache cache_;
};

}  // namespace fathom
