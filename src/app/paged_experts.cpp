#include "app/paged_experts.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/progress.h"

namespace fathom {
namespace {

// Activations, the program, and what the system's bookkeeping takes.
constexpr int64_t kWorkingBytes = int64_t{192} << 20;

int64_t dense_bytes(DeepSeek& model) {
    int64_t bytes = 0;
    model.visit([&](const std::string& name, Param& param) {
        if (name.find(".experts.") == std::string::npos) bytes += param.weight.bytes();
    });
    return bytes;
}

int64_t left_for_experts(LoadedModel& loaded, const Ops& ops, int64_t ram, int64_t cache_bytes) {
    if (!ops.sees_host_memory())
        throw Error(ErrorKind::kUsage, "--ram is for models on a CPU: add --device cpu, or leave it out");
    if (loaded.config.n_routed_experts == 0)
        throw Error(ErrorKind::kUsage, "--ram is for mixtures of experts: this model is dense");
    const int64_t left = ram - dense_bytes(*loaded.model) - cache_bytes - kWorkingBytes;
    if (left > 0) return left;
    throw Error(
        ErrorKind::kUsage,
        fmt::format("--ram {}: what every token needs takes {} of weights, {} of cache and {} to work in; give more, or a "
                    "smaller context or --cache-type",
                    human_bytes(static_cast<double>(ram)), human_bytes(static_cast<double>(dense_bytes(*loaded.model))),
                    human_bytes(static_cast<double>(cache_bytes)), human_bytes(static_cast<double>(kWorkingBytes))));
}

}  // namespace

PagedExperts::PagedExperts(LoadedModel& loaded, Ops& ops, int64_t ram, int64_t cache_bytes)
    : cache_(*loaded.model, ops, background_, left_for_experts(loaded, ops, ram, cache_bytes)) {}

PagingFigures PagedExperts::figures(const ExpertCache::Counters& before) const {
    return {cache_.slots(), cache_.experts(), cache_.counters() - before};
}

std::string PagingFigures::summary() const {
    const ExpertCache::Counters& n = counted;
    return fmt::format(
        "experts: room for {} of {}, {:.1f} % in memory when wanted ({} of {} fetches foreseen), {} read, waited {:.2f} s",
        slots, experts, 100 * n.hit_rate(), n.foreseen, n.fetched, human_bytes(static_cast<double>(n.bytes_read)),
        n.stalled_seconds);
}

nlohmann::ordered_json PagingFigures::json() const {
    const ExpertCache::Counters& n = counted;
    return {{"slots", slots},
            {"experts", experts},
            {"required", n.required},
            {"hits", n.hits},
            {"hit_rate", n.hit_rate()},
            {"foreseen", n.foreseen},
            {"recalled", n.recalled},
            {"fetched", n.fetched},
            {"bytes_read", n.bytes_read},
            {"stalled_seconds", n.stalled_seconds}};
}

}  // namespace fathom
