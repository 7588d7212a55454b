#include "app/bench_model.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "app/random_weights.h"
#include "base/error.h"
#include "model/memory_plan.h"

namespace fathom {
namespace {

std::optional<DType> plain_type(const std::string& name) {
    if (name == "f32") return DType::kF32;
    return name == "bf16" ? std::optional(DType::kBF16) : std::nullopt;
}

}  // namespace

BenchModel::BenchModel(const BenchOptions& options, Ops& ops) {
    const std::optional<DType> dtype = plain_type(options.dtype);
    if (options.random_config.empty()) {
        if (!dtype && options.dtype != "auto")
            throw Error(ErrorKind::kUsage, "--dtype " + options.dtype +
                                               " draws codes for --random-config; a model has those of its files, and " +
                                               "fathom quantize makes a folder of them");
        if (dtype && options.ram > 0)
            throw Error(ErrorKind::kUsage, "--ram computes with the weights as they are stored: leave --dtype out");
        loaded_ =
            load_model(options.model, ops,
                       {.dtype = dtype, .with_mtp = options.with_mtp, .page_experts = options.ram > 0, .pack_plain = true});
    } else {
        if (options.ram > 0) throw Error(ErrorKind::kUsage, "--ram reads experts from a file: --random-config has none");
        loaded_.config = read_config_file(options.random_config).model;
        if (!options.with_mtp) loaded_.config.num_nextn_predict_layers = 0;
        loaded_.model = std::make_unique<DeepSeek>(loaded_.config);
        draw_weights(loaded_, options.dtype == "auto" ? "bf16" : options.dtype, ops);
        if (options.agreeing > 0) make_modules_agree(options.agreeing, ops);
        pack_plain(loaded_, ops);
    }
    count_bytes();
}

PagedExperts* BenchModel::page_experts(const BenchOptions& options, Ops& ops, int64_t cache_tokens) {
    if (options.ram == 0) return nullptr;
    const int64_t cache = cache_tokens * cache_bytes_per_token(config(), *cache_type_from_name(options.cache_type));
    paged_ = std::make_unique<PagedExperts>(loaded_, ops, options.ram, cache);
    return paged_.get();
}

// Nothing is added to the residual stream, and a module's input is the embedding of the token ahead: the model says what
// follows from its last token alone, and the module says the same of its own. All that is computed otherwise still is. What
// follows is one of the first quarter of the ids, among which modules guess, or one of so many further ones that the quarter
// has the wanted share of them: all are equally probable.
void BenchModel::make_modules_agree(double share, Ops& ops) {
    loaded_.model->visit([&](const std::string& name, Param& param) {
        const Tensor& matrix = param.weight.codes;
        if (name.ends_with(".o_proj.weight") || name.ends_with(".down_proj.weight")) ops.fill(matrix, 0);
        if (name == "lm_head.weight") {
            const int64_t guessed = matrix.dim(0) / 4, said = std::llround(static_cast<double>(guessed) / share);
            if (said < matrix.dim(0)) ops.fill(matrix.slice(0, said, matrix.dim(0)), 0);
        }
        if (!name.ends_with(".eh_proj.weight")) return;
        ops.fill(matrix, 0);
        const float one = 1;
        const BFloat16 short_one{one};
        for (int64_t i = 0; i < matrix.dim(0); ++i) {
            const Tensor diagonal = matrix.slice(0, i, i + 1).slice(1, i, i + 1);
            if (matrix.dtype == DType::kF32) {
                ops.write(diagonal, &one);
            } else {
                ops.write(diagonal, &short_one);
            }
        }
    });
}

void BenchModel::count_bytes() {
    std::string first;  // expert of the first layer that has some
    loaded_.model->visit([&](const std::string& name, Param& param) {
        parameters_ += param.size();
        const size_t expert = name.find(".experts.");
        if (expert == std::string::npos) {
            const bool table_only = name == "model.embed_tokens.weight" && !config().tie_word_embeddings;
            if (!table_only) dense_bytes_ += param.weight.bytes();
            return;
        }
        const std::string prefix = name.substr(0, name.find('.', expert + std::string_view(".experts.").size()));
        if (first.empty()) first = prefix;
        if (prefix == first) expert_bytes_ += param.weight.bytes();
    });
}

std::string BenchModel::dtype() const {
    // The experts' type where there are some: the bulk of the model.
    std::string name;
    bool expert = false;
    loaded_.model->visit([&](const std::string& parameter, Param& param) {
        if (!param.is_matrix() || expert) return;
        expert = parameter.find(".experts.") != std::string::npos;
        const Weight& w = param.weight;
        if (w.scheme == Scheme::kGroups)
            name = w.codes.dtype == DType::kU8 ? "int4" : "int8";
        else
            name = w.block == BlockType::kNone ? name_of(w.codes.dtype) : traits_of(w.block).name;
    });
    return name;
}

void ExpertCounter::operator()(std::span<const Routing> routing) {
    for (const Routing& layer : routing) {
        if (!layer.indices) continue;
        std::vector<int32_t> chosen(static_cast<size_t>(layer.indices.size()));
        ops_.read_back(chosen.data(), layer.indices);
        distinct_ += std::ssize(std::set<int32_t>(chosen.begin(), chosen.end()));
    }
}

std::vector<int32_t> random_tokens(std::mt19937_64& random, int64_t count, int64_t vocab_size) {
    std::uniform_int_distribution<int32_t> id(0, static_cast<int32_t>(vocab_size - 1));
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    std::ranges::generate(tokens, [&] { return id(random); });
    return tokens;
}

}  // namespace fathom
