#include "checkpoint/quantized_folder.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/checkpoint.h"
#include "quant/encode.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

constexpr float kLargestFp8 = 448;

int64_t blocks(int64_t size) { return (size + kFp8Block - 1) / kFp8Block; }

// Stored by the layouts of checkpoint/integer_layouts.h.
bool in_groups(const StoredAs& stored) { return stored.scheme == Scheme::kGroups || stored.scheme == Scheme::kBlocks; }

std::string module_of(const std::string& name) { return name.substr(0, name.rfind('.')); }

PackedTensor allocate(TensorSpec spec) {
    const int64_t bytes = spec.bytes();
    return {std::move(spec), Buffer::host(bytes)};
}

// Memory that somebody else owns.
PackedTensor borrow(TensorSpec spec, const Tensor& tensor) {
    return {std::move(spec), Buffer(tensor.data, tensor.bytes(), [](void*) {})};
}

TensorSpec plain_spec(const std::string& name, const Tensor& codes, bool f32) {
    return {name, f32 ? DType::kF32 : codes.dtype, {codes.shape.begin(), codes.shape.begin() + codes.rank}};
}

std::vector<TensorSpec> plain_specs(const StoredAs& stored, const std::string& name, const Param& param) {
    const Weight& w = param.weight;
    if (w.scheme == Scheme::kPlain) return {plain_spec(name, w.codes, stored.f32)};
    return {{name, stored.f32 ? DType::kF32 : DType::kBF16, {param.rows, param.cols}}};
}

std::vector<PackedTensor> plain_tensors(const StoredAs& stored, const std::string& name, const Param& param, ThreadPool& pool) {
    TensorSpec spec = plain_specs(stored, name, param).at(0);
    const Weight& w = param.weight;
    std::vector<PackedTensor> result;
    if (w.scheme == Scheme::kPlain && w.codes.dtype == spec.dtype) {
        result.push_back(borrow(std::move(spec), w.codes));
        return result;
    }
    result.push_back(allocate(std::move(spec)));
    const Tensor to = result[0].tensor();
    const int64_t columns = to.dim(-1);
    pool.parallel_for(to.size() / columns, 16, [&](int64_t begin, int64_t end, int) {
        std::vector<float> row(static_cast<size_t>(columns));
        for (int64_t i = begin; i < end; ++i) {
            decode_row(row.data(), w, i);
            for (int64_t k = 0; k < columns; ++k) {
                if (to.dtype == DType::kF32)
                    to.as<float>()[i * columns + k] = row[static_cast<size_t>(k)];
                else
                    to.as<BFloat16>()[i * columns + k] = BFloat16(row[static_cast<size_t>(k)]);
            }
        }
    });
    return result;
}

std::vector<TensorSpec> fp8_specs(const std::string& name, const Param& param) {
    return {{name, DType::kF8E4M3, {param.rows, param.cols}},
            {name + "_scale_inv", DType::kF32, {blocks(param.rows), blocks(param.cols)}}};
}

// Per block of 128x128: scale = max |x| / 448, code = x / scale (architecture reference 8.2).
std::vector<PackedTensor> fp8_tensors(const std::string& name, const Param& param, ThreadPool& pool) {
    std::vector<PackedTensor> result;
    for (TensorSpec& spec : fp8_specs(name, param)) result.push_back(allocate(std::move(spec)));
    auto* codes = result[0].tensor().as<Float8E4M3>();
    auto* scales = result[1].tensor().as<float>();
    const int64_t columns = param.cols;
    pool.parallel_for(blocks(param.rows), 1, [&](int64_t first, int64_t last, int) {
        std::vector<float> band(static_cast<size_t>(kFp8Block * columns));
        for (int64_t b = first; b < last; ++b) {
            const int64_t begin = b * kFp8Block, rows = std::min(kFp8Block, param.rows - begin);
            for (int64_t i = 0; i < rows; ++i) decode_row(band.data() + i * columns, param.weight, begin + i);
            for (int64_t at = 0; at < columns; at += kFp8Block) {
                const int64_t width = std::min(kFp8Block, columns - at);
                float largest = 0;
                for (int64_t i = 0; i < rows; ++i)
                    for (int64_t k = at; k < at + width; ++k)
                        largest = std::max(largest, std::fabs(band[static_cast<size_t>(i * columns + k)]));
                const float scale = largest > 0 ? largest / kLargestFp8 : 1;
                scales[b * blocks(columns) + at / kFp8Block] = scale;
                for (int64_t i = 0; i < rows; ++i)
                    for (int64_t k = at; k < at + width; ++k)
                        codes[(begin + i) * columns + k] = Float8E4M3(band[static_cast<size_t>(i * columns + k)] / scale);
            }
        }
    });
    return result;
}

}  // namespace

bool is_quantizable(const std::string& name, const Param& param) {
    return param.is_matrix() && name.starts_with("model.layers.") && !name.ends_with(".mlp.gate.weight") &&
           !name.ends_with(".eh_proj.weight");
}

std::string StoredAs::name() const {
    if (scheme == Scheme::kFp8Block) return "fp8";
    if (scheme == Scheme::kBlocks) return "mxfp4";
    if (scheme == Scheme::kPlain) return "plain";
    const std::string size = groups.group_size > 0 ? fmt::format(" g{}", groups.group_size) : "";
    return fmt::format("int{}{}{}", groups.bits, size, groups.symmetric ? "" : " asymmetric");
}

const StoredAs& FolderPlan::of(const std::string& name) const {
    static const StoredAs kAsItIs;
    const auto found = parameters.find(name);
    return found == parameters.end() ? kAsItIs : found->second;
}

FolderPlan plan_folder(DeepSeek& model, const StoredAs& wanted, const std::string& method) {
    FolderPlan plan;
    const bool integers = wanted.scheme == Scheme::kGroups, mxfp4 = wanted.scheme == Scheme::kBlocks;
    StoredAs stored = wanted;
    if (mxfp4) {
        plan.config.quant_method = "compressed-tensors";
        plan.config.format = "mxfp4-pack-quantized";
        stored.groups = {4, traits_of(BlockType::kMxfp4).elements, true};
    }
    if (integers) {
        plan.config.quant_method = method;
        plan.config.format = method == "awq"    ? "gemm"
                             : method == "gptq" ? wanted.groups.symmetric ? "gptq" : "gptq_v2"
                             : wanted.groups.bits == 8 && wanted.groups.group_size == 0 ? "int-quantized"
                                                                                        : "pack-quantized";
        stored.groups.scales = scales_dtype(integer_layout(plan.config), wanted.groups.scales);
    }
    model.visit([&](const std::string& name, Param& param) {
        if (!is_quantizable(name, param)) return;
        const bool whole_rows = mxfp4 || method == "compressed-tensors" || param.rows % 8 == 0;
        if ((integers || mxfp4) && !(stored.groups.fits(param.cols) && whole_rows))
            plan.left_alone.push_back(name);
        else
            plan.parameters.emplace(name, stored);
    });
    describe_plan(model, plan);
    return plan;
}

void describe_plan(DeepSeek& model, FolderPlan& plan) {
    if (!plan.config.integers()) return;
    plan.config.groups.clear();
    plan.config.ignore.clear();
    std::vector<std::pair<StoredAs, std::vector<std::string>>> kinds;
    model.visit([&](const std::string& name, Param& param) {
        if (!param.is_matrix() || name == "model.embed_tokens.weight") return;
        const StoredAs& stored = plan.of(name);
        if (!in_groups(stored)) {
            plan.config.ignore.push_back(module_of(name));
            return;
        }
        const auto found = std::ranges::find(kinds, stored, &std::pair<StoredAs, std::vector<std::string>>::first);
        auto& modules = found == kinds.end() ? kinds.emplace_back(stored, std::vector<std::string>{}).second : found->second;
        modules.push_back(module_of(name));
    });
    if (kinds.empty())
        throw Error(ErrorKind::kInput,
                    "no matrix of this model has columns that are whole groups: choose a smaller --group-size");
    if (kinds.size() == 1) kinds[0].second = {"Linear"};
    const bool named = plan.config.quant_method == "compressed-tensors";
    for (auto& [stored, modules] : kinds)
        plan.config.groups.push_back({stored.groups.bits, stored.groups.group_size, stored.groups.symmetric,
                                      named ? std::move(modules) : std::vector<std::string>{}});
}

std::vector<TensorSpec> specs_of_parameter(const FolderPlan& plan, const std::string& name, const Param& param) {
    const StoredAs& stored = plan.of(name);
    if (stored.scheme == Scheme::kFp8Block) return fp8_specs(name, param);
    if (in_groups(stored)) return integer_specs(integer_layout(plan.config), name, param.rows, param.cols, stored.groups);
    return plain_specs(stored, name, param);
}

std::vector<PackedTensor> round_parameter(const FolderPlan& plan, const std::string& name, const Param& param,
                                          const GroupCost& cost, ThreadPool& pool) {
    const StoredAs& stored = plan.of(name);
    if (stored.scheme == Scheme::kFp8Block) return fp8_tensors(name, param, pool);
    if (!in_groups(stored)) return plain_tensors(stored, name, param, pool);
    Arena arena("quantized matrix", Buffer::host, 1 << 16);
    const BlockTraits& mxfp4 = traits_of(BlockType::kMxfp4);
    const Weight to =
        stored.scheme == Scheme::kGroups
            ? allocate_groups(arena, param.rows, param.cols, stored.groups)
            : Weight(arena.allocate(DType::kU8, {param.rows, param.cols / mxfp4.elements * mxfp4.bytes}), BlockType::kMxfp4);
    pool.parallel_for(param.rows, 8, [&](int64_t begin, int64_t end, int) {
        std::vector<float> row(static_cast<size_t>(param.cols));
        for (int64_t i = begin; i < end; ++i) {
            decode_row(row.data(), param.weight, i);
            if (to.scheme == Scheme::kGroups)
                encode_groups(to, i, row.data(), cost);
            else
                encode_blocks(to.block, row.data(), to.rows(i, i + 1).codes.data, param.cols, nullptr);
        }
    });
    return packed_parameter(plan, name, to);
}

std::vector<PackedTensor> packed_parameter(const FolderPlan& plan, const std::string& name, const Weight& integers) {
    return pack_integers(integer_layout(plan.config), name, integers);
}

RoundingSource::RoundingSource(DeepSeek& model, const FolderPlan& plan, const Importance* importance, ThreadPool& pool)
    : plan_(plan),
      importance_(importance),
      pool_(pool) {
    model.visit([this](const std::string& name, Param& param) { parameters_.emplace(name, &param); });
}

void RoundingSource::produce(const std::string& name, const TensorSink& sink) {
    const Param& param = *parameters_.at(name);
    GroupCost cost;
    if (importance_ != nullptr) {
        const auto found = importance_->find(name);
        if (found != importance_->end() && std::ssize(found->second) == param.cols) cost.diagonal = found->second.data();
    }
    for (PackedTensor& part : round_parameter(plan_, name, param, cost, pool_)) sink(std::move(part));
}

void save_quantized_folder(const std::filesystem::path& directory, DeepSeek& model, const FolderPlan& plan,
                           FolderSource& source, const FolderSaveOptions& options) {
    std::vector<TensorSpec> specs;
    std::unordered_map<std::string, std::string> parameter_of;
    int64_t total = 0, done = 0;
    model.visit([&](const std::string& name, Param& param) {
        for (TensorSpec& spec : specs_of_parameter(plan, name, param)) {
            parameter_of.emplace(spec.name, name);
            specs.push_back(std::move(spec));
        }
    });
    ShardedWriter writer(directory, specs, {{"format", "pt"}}, options.max_shard_bytes, options.job);
    for (const TensorSpec& spec : specs) total += spec.bytes();
    const std::span<const TensorSpec> order = writer.order();
    for (size_t i = 0; i < writer.first(); ++i) done += order[i].bytes();
    std::unordered_set<std::string> unwritten;  // what a source produces again after an interruption may be on disk already
    for (size_t i = writer.first(); i < order.size(); ++i) unwritten.insert(order[i].name);
    std::unordered_map<std::string, PackedTensor> waiting;
    for (size_t i = writer.first(); i < order.size(); ++i) {
        const std::string& parameter = parameter_of.at(order[i].name);
        if (!waiting.contains(order[i].name)) {
            source.produce(parameter, [&](PackedTensor part) {
                std::string name = part.spec.name;
                if (unwritten.contains(name)) waiting.insert_or_assign(std::move(name), std::move(part));
            });
        }
        const auto found = waiting.find(order[i].name);
        check(found != waiting.end(), "save_quantized_folder: a tensor was not produced: " + order[i].name);
        writer.write(found->second.tensor());
        waiting.erase(found);
        unwritten.erase(order[i].name);
        done += order[i].bytes();
        if (options.progress) options.progress(parameter, done, total);
        if (i + 1 == writer.shard_end(i)) source.shard_finished(i + 1 < order.size() ? parameter_of.at(order[i + 1].name) : "");
    }
    // Before the shards get their names: until they have them the folder is no model, and the job can be taken up again.
    ModelConfig config = model.config();
    config.quantization_config = plan.config;
    write_text_atomically(directory / "config.json", config.to_json());
    copy_tokenizer(options.tokenizer, directory);
    writer.commit();
}

}  // namespace fathom
