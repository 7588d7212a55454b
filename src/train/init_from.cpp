#include "train/init_from.h"

#include <fmt/format.h>
#include <map>

namespace fathom {
namespace {

constexpr std::string_view kScore = "score.weight";

// Points the parameters of `model` to those of `source`, which must hold all of them but a classifier's head.
void bind_parameters(DeepSeek& model, DeepSeek& source, const std::filesystem::path& where) {
    std::map<std::string, Weight> weights;
    source.visit([&](const std::string& name, Param& param) { weights.emplace(name, param.weight); });
    model.visit([&](const std::string& name, Param& param) {
        const auto found = weights.find(name);
        if (found == weights.end() && name == kScore) return;
        const bool fits = found != weights.end() && found->second.codes.dim(0) == param.rows &&
                          (!param.is_matrix() || found->second.codes.dim(1) == param.cols);
        if (!fits) {
            throw Error(ErrorKind::kInput,
                        fmt::format("{}: {} is {}: the keys of [model] must describe the model of init_from (if it has no MTP "
                                    "modules, model.num_nextn_predict_layers=0)",
                                    where.string(), name, found == weights.end() ? "missing" : found->second.codes.describe()));
        }
        param.weight = found->second;
    });
}

}  // namespace

std::optional<LoadedModel> bind_initial_weights(const TrainConfig& config, DeepSeek& model, Ops& ops) {
    const std::filesystem::path& from = config.model.init_from;
    if (from.empty()) return std::nullopt;
    const bool quantized = ModelConfig::load(from).quantization_config.has_value();
    std::optional<LoadedModel> source =
        load_model(from, ops,
                   {.dtype = quantized ? std::optional(DType::kF32) : std::nullopt,
                    .head = config.model.config.num_labels > 0 ? HeadKind::kAny : HeadKind::kVocabulary,
                    .with_mtp = config.model.config.num_nextn_predict_layers > 0,
                    .pack = false});
    bind_parameters(model, *source->model, from);
    return source;
}

}  // namespace fathom
