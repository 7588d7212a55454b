#include "app/sensitivity.h"

#include <fmt/format.h>
#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/interrupt.h"
#include "checkpoint/gguf_names.h"
#include "infer/divergence.h"
#include "quant/allocation.h"
#include "quant/encode.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

// Logits of all tokens, [tokens, vocab].
std::vector<float> all_logits(const DeepSeek& model, Ops& ops, std::span<const int32_t> tokens, int64_t context) {
    Arena scratch("scratch", Buffer::host), saved("saved", Buffer::host);
    std::vector<float> result;
    const auto total = static_cast<int64_t>(tokens.size());
    for (int64_t begin = 0; begin < total; begin += context) {
        const ArenaScope scope(scratch);
        Context cx{ops, scratch, saved};
        const auto window = tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(std::min(context, total - begin)));
        const SequenceChunk chunk{window, 0, AttentionForm::kExpanded, {}};
        const Tensor logits =
            model.logits(cx, model.forward(cx, make_batch(cx, std::span(&chunk, 1), 0, false), nullptr, nullptr));
        result.insert(result.end(), logits.as<float>(), logits.as<float>() + logits.size());
    }
    return result;
}

double mean_kl(const std::vector<float>& original, const std::vector<float>& changed, int64_t vocab, ThreadPool& pool) {
    const int64_t rows = static_cast<int64_t>(original.size()) / vocab;
    std::vector<double> kl(static_cast<size_t>(rows));
    pool.parallel_for(rows, 4, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const auto at = static_cast<size_t>(i * vocab), size = static_cast<size_t>(vocab);
            const auto p = std::span(original).subspan(at, size), q = std::span(changed).subspan(at, size);
            kl[static_cast<size_t>(i)] = logits_divergence(p, q);
        }
    });
    double sum = 0;
    for (const double one : kl) sum += one;
    return std::max(0.0, sum / static_cast<double>(rows));
}

// The unit's matrices become f32 numbers that went through the candidate's type.
void change(const SensitivityUnit& unit, const SensitivityUnit::Candidate& candidate, Arena& arena, ThreadPool& pool) {
    for (Param* param : unit.matrices) {
        const Weight before = param->weight;
        const Tensor numbers = arena.allocate(DType::kF32, {param->rows, param->cols});
        pool.parallel_for(param->rows, 8, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) {
                float* row = numbers.as<float>() + i * param->cols;
                decode_row(row, before, i);
                candidate.through(row, param->cols);
            }
        });
        param->weight = numbers;
    }
}

std::vector<size_t> choose(std::span<const SensitivityUnit> units, const std::vector<std::vector<double>>& costs,
                           int64_t budget) {
    std::vector<std::vector<StorageChoice>> parts;
    int64_t least = 0;
    for (size_t u = 0; u < units.size(); ++u) {
        auto& choices = parts.emplace_back();
        for (size_t c = 0; c < units[u].candidates.size(); ++c) choices.push_back({units[u].candidates[c].bytes, costs[u][c]});
        least += std::ranges::min_element(choices, {}, &StorageChoice::bytes)->bytes;
    }
    std::vector<size_t> chosen = allocate_bytes(parts, budget);
    if (chosen.empty() && !units.empty())
        throw Error(ErrorKind::kUsage,
                    fmt::format("--budget leaves {} bytes for the matrices that can be made smaller, which need {} at "
                                "least",
                                budget, least));
    return chosen;
}

std::string layer_prefix(const std::string& name) {
    const size_t dot = name.find('.', std::string_view("model.layers.").size());
    return name.substr(0, dot + 1);
}

// Matrices that share a type: experts of a layer; what engines fuse into one product.
std::string unit_of(const std::string& name) {
    const std::string prefix = layer_prefix(name);
    if (name.find(".mlp.experts.") != std::string::npos) return prefix + "mlp.experts";
    if (name.find(".q_a_proj") != std::string::npos || name.find("kv_a_proj") != std::string::npos)
        return prefix + "self_attn.a";
    for (const std::string_view half : {"gate_proj.weight", "up_proj.weight"})
        if (name.ends_with(half)) return name.substr(0, name.size() - half.size()) + "gate_up";
    return name;
}

void through_groups(const GroupFormat& format, float* row, int64_t cols) {
    Arena arena("one row", Buffer::host, 1 << 14);
    const Weight to = allocate_groups(arena, 1, cols, format);
    encode_groups(to, 0, row);
    decode_row(row, to, 0);
}

void through_type(const GgufType& type, float* row, int64_t cols) {
    if (type.block == BlockType::kNone) {
        for (int64_t k = 0; k < cols; ++k)
            row[k] = type.dtype == DType::kF16    ? static_cast<float>(Float16(row[k]))
                     : type.dtype == DType::kBF16 ? static_cast<float>(BFloat16(row[k]))
                                                  : row[k];
        return;
    }
    const BlockTraits& traits = traits_of(type.block);
    std::vector<uint8_t> codes(static_cast<size_t>(cols / traits.elements * traits.bytes));
    encode_blocks(type.block, row, codes.data(), cols);
    decode_blocks(type.block, codes.data(), row, cols);
}

// kv_b_proj as its two halves, each in what `wanted` becomes for its columns.
int64_t bytes_of_halves(const ModelConfig& c, const GgufType& wanted) {
    const auto bytes = [&](int64_t rows, int64_t columns) {
        const GgufType type = gguf_type_for("", columns, wanted);
        return GgufSpec{"", {rows, columns}, type.dtype, type.block}.bytes();
    };
    return bytes(c.num_attention_heads * c.kv_lora_rank, c.qk_nope_head_dim) +
           bytes(c.num_attention_heads * c.v_head_dim, c.kv_lora_rank);
}

int64_t bytes_of(const std::vector<TensorSpec>& specs) {
    int64_t sum = 0;
    for (const TensorSpec& spec : specs) sum += spec.bytes();
    return sum;
}

}  // namespace

std::vector<std::vector<double>> measure_sensitivity(DeepSeek& model, Ops& ops, ThreadPool& pool,
                                                     std::span<const SensitivityUnit> units, std::span<const int32_t> tokens,
                                                     int64_t context, ProgressMode mode) {
    const std::vector<float> original = all_logits(model, ops, tokens, context);
    int64_t total = 0, done = 0;
    for (const SensitivityUnit& unit : units) total += std::ssize(unit.candidates);
    Progress progress("sensitivity", total, "passes", mode);
    std::vector<std::vector<double>> result;
    Arena arena("changed matrices", Buffer::host);
    for (const SensitivityUnit& unit : units) {
        auto& costs = result.emplace_back();
        std::vector<Weight> before;
        for (const Param* param : unit.matrices) before.push_back(param->weight);
        for (const auto& candidate : unit.candidates) {
            throw_if_interrupted();
            progress.update(++done, unit.name);
            if (!candidate.through) {
                costs.push_back(0);
                continue;
            }
            arena.clear();
            change(unit, candidate, arena, pool);
            costs.push_back(mean_kl(original, all_logits(model, ops, tokens, context), model.config().vocab_size, pool));
            for (size_t i = 0; i < before.size(); ++i) unit.matrices[i]->weight = before[i];
        }
    }
    progress.finish();
    return result;
}

int64_t parse_budget(const std::string& text, int64_t numbers) {
    size_t end = 0;
    double value = 0;
    try {
        value = std::stod(text, &end);
    } catch (const std::exception&) {
        end = 0;
    }
    const std::string unit = text.substr(end);
    const std::pair<std::string_view, double> units[] = {
        {"", 1}, {"K", 1024}, {"M", 1024.0 * 1024}, {"G", 1024.0 * 1024 * 1024}, {"bpw", static_cast<double>(numbers) / 8}};
    const auto* found = std::ranges::find(units, unit, &std::pair<std::string_view, double>::first);
    if (end == 0 || found == std::end(units) || !(value > 0) || value * found->second > 0x1p60)
        throw Error(ErrorKind::kUsage,
                    fmt::format("--budget {}: expected bytes such as 8M or 1.5G, or bits per weight such as 4.5bpw", text));
    return static_cast<int64_t>(value * found->second);
}

void fit_plan_to_budget(DeepSeek& model, Ops& ops, ThreadPool& pool, FolderPlan& plan, const Sensitivity& options) {
    std::map<std::string, SensitivityUnit> by_name;
    std::map<std::string, std::string> unit_of_parameter;
    int64_t left = options.budget;
    const StoredAs four = plan.parameters.begin()->second;  // plan_folder gives all the same
    StoredAs eight = four;
    eight.groups.bits = 8;
    eight.groups.symmetric = true;
    const std::vector<StoredAs> kinds{four, eight, {}};
    model.visit([&](const std::string& name, Param& param) {
        if (plan.of(name).scheme != Scheme::kGroups) {
            left -= bytes_of(specs_of_parameter(plan, name, param));
            return;
        }
        SensitivityUnit& unit = by_name[unit_of(name)];
        unit.name = unit_of(name);
        unit.matrices.push_back(&param);
        unit_of_parameter[name] = unit.name;
        unit.candidates.resize(kinds.size());
        for (size_t k = 0; k < kinds.size(); ++k) {
            FolderPlan one{plan.config, {{name, kinds[k]}}, {}};
            unit.candidates[k].type = kinds[k].name();
            unit.candidates[k].bytes += bytes_of(specs_of_parameter(one, name, param));
            if (kinds[k].scheme != Scheme::kGroups) continue;
            const GroupFormat format = kinds[k].groups;
            unit.candidates[k].through = [format](float* row, int64_t cols) { through_groups(format, row, cols); };
        }
    });
    std::vector<SensitivityUnit> units;
    for (auto& [name, unit] : by_name) units.push_back(std::move(unit));
    const auto costs = measure_sensitivity(model, ops, pool, units, options.tokens, options.context, options.progress);
    const std::vector<size_t> chosen = choose(units, costs, left);
    std::map<std::string, size_t> kind_of;
    for (size_t u = 0; u < units.size(); ++u) kind_of[units[u].name] = chosen[u];
    for (const auto& [name, unit] : unit_of_parameter) plan.parameters[name] = kinds[kind_of.at(unit)];
    describe_plan(model, plan);
}

std::map<std::string, GgufType> gguf_types_for_budget(DeepSeek& model, Ops& ops, ThreadPool& pool, const Sensitivity& options) {
    constexpr BlockType kTypes[] = {BlockType::kQ2K, BlockType::kQ3K, BlockType::kQ4K,
                                    BlockType::kQ5K, BlockType::kQ6K, BlockType::kQ80};
    std::map<std::string, SensitivityUnit> by_name;
    std::map<std::string, std::vector<GgufType>> types;
    int64_t left = options.budget;
    model.visit([&](const std::string& name, Param& param) {
        const auto place = gguf_place(name);
        if (!place) throw Error(ErrorKind::kInput, fmt::format("GGUF has no place for {}", name));
        const bool fixed =
            !param.is_matrix() || gguf_type_for(place->name, param.cols, {DType::kU8, BlockType::kQ4K}) == GgufType{};
        if (fixed) {
            left -= param.size() * 4;
            return;
        }
        SensitivityUnit& unit = by_name[place->name];
        unit.name = place->name;
        unit.matrices.push_back(&param);
        auto& kinds = types[place->name];
        const bool halves = name.ends_with("kv_b_proj.weight");
        if (kinds.empty()) {
            for (const BlockType type : kTypes) {
                const GgufType wanted{DType::kU8, type}, given = gguf_type_for(place->name, param.cols, wanted);
                if (std::ranges::find(kinds, given) == kinds.end()) kinds.push_back(halves ? wanted : given);
            }
            unit.candidates.resize(kinds.size());
        }
        for (size_t k = 0; k < kinds.size(); ++k) {
            const GgufType type = kinds[k];
            unit.candidates[k].type = type.name();
            unit.candidates[k].bytes += halves ? bytes_of_halves(model.config(), type)
                                               : GgufSpec{"", {param.rows, param.cols}, type.dtype, type.block}.bytes();
            unit.candidates[k].through = [type = gguf_type_for(place->name, param.cols, type)](float* row, int64_t cols) {
                through_type(type, row, cols);
            };
        }
    });
    std::vector<SensitivityUnit> units;
    for (auto& [name, unit] : by_name) units.push_back(std::move(unit));
    const auto costs = measure_sensitivity(model, ops, pool, units, options.tokens, options.context, options.progress);
    const std::vector<size_t> chosen = choose(units, costs, left);
    std::map<std::string, GgufType> result;
    for (size_t u = 0; u < units.size(); ++u) result[units[u].name] = types.at(units[u].name)[chosen[u]];
    return result;
}

}  // namespace fathom
