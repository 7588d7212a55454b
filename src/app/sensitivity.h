// Mixed precision: what each part of a model costs in each type, measured, and which types fit a budget.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "checkpoint/quantized_folder.h"

namespace fathom {

// Matrices that get one type together.
struct SensitivityUnit {
    struct Candidate {
        std::string type;
        int64_t bytes = 0;  // of all matrices of the unit
        // Row of numbers [cols] in place: what it is once stored so. Absent: as it was.
        std::function<void(float* row, int64_t cols)> through;
    };
    std::string name;
    std::vector<Param*> matrices;
    std::vector<Candidate> candidates;
};

// For every unit and candidate: the mean KL divergence, in nats, of the model from the model with that unit alone changed, over
// `tokens` in windows of `context`. One forward pass per candidate.
[[nodiscard]] std::vector<std::vector<double>> measure_sensitivity(DeepSeek& model, Ops& ops, ThreadPool& pool,
                                                                   std::span<const SensitivityUnit> units,
                                                                   std::span<const int32_t> tokens, int64_t context,
                                                                   ProgressMode progress);

// "8M", "1.5G", "4000000" (bytes of all tensors) or "4.5bpw" (bits per number of the model). Throws Error{kUsage}.
[[nodiscard]] int64_t parse_budget(const std::string& text, int64_t numbers);

struct Sensitivity {
    std::span<const int32_t> tokens;
    int64_t context = 512;
    int64_t budget = 0;  // bytes of all tensors
    ProgressMode progress = ProgressMode::kQuiet;
};

// Changes plan.parameters to 4 bits (in plan's groups), 8 bits or plain. Parts: the matrices of a layer that other engines
// fuse, all experts of a layer. Throws Error{kUsage} when not even 4 bits fit.
void fit_plan_to_budget(DeepSeek& model, Ops& ops, ThreadPool& pool, FolderPlan& plan, const Sensitivity& options);

// Types of GGUF tensors by name: per tensor one of the K types, or what takes its place.
[[nodiscard]] std::map<std::string, GgufType> gguf_types_for_budget(DeepSeek& model, Ops& ops, ThreadPool& pool,
                                                                    const Sensitivity& options);

}  // namespace fathom
