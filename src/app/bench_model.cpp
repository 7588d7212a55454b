#include "app/bench_model.h"

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/rng.h"

namespace fathom {
namespace {

constexpr int64_t kTable = int64_t{1} << 20;  // normal numbers that weights are cut from
constexpr double kStd = 0.02;

template <class T>
std::vector<T> normal_table() {
    std::vector<T> table(2 * kTable);
    const Philox philox{1, 0};
    for (int64_t i = 0; i < kTable; ++i) {
        table[static_cast<size_t>(i)] = table[static_cast<size_t>(i + kTable)] =
            static_cast<T>(static_cast<float>(kStd * philox.normal(static_cast<uint64_t>(i))));
    }
    return table;
}

// Fills a matrix by rows, a stretch of the table at a time, each from another place.
template <class T>
void fill_from_table(Ops& ops, const Tensor& matrix, const std::vector<T>& table, Rng& places) {
    const int64_t step = std::max<int64_t>(1, kTable / matrix.dim(1));
    for (int64_t row = 0; row < matrix.dim(0); row += step) {
        ops.write(matrix.slice(0, row, std::min(row + step, matrix.dim(0))), &table[places.below(kTable)]);
    }
}

}  // namespace

BenchModel::BenchModel(const BenchOptions& options, Ops& ops) {
    const std::optional<DType> dtype = options.dtype == "auto"  ? std::nullopt
                                       : options.dtype == "f32" ? std::optional(DType::kF32)
                                                                : std::optional(DType::kBF16);
    if (options.random_config.empty()) {
        loaded_ = load_model(options.model, ops, {.dtype = dtype, .with_mtp = options.with_mtp, .pack_plain = true});
    } else {
        loaded_.config = read_config_file(options.random_config).model;
        if (!options.with_mtp) loaded_.config.num_nextn_predict_layers = 0;
        loaded_.model = std::make_unique<DeepSeek>(loaded_.config);
        draw_weights(ops, dtype.value_or(DType::kBF16));
        if (options.agreeing) make_modules_agree(ops);
    }
    count_bytes();
}

void BenchModel::draw_weights(Ops& ops, DType dtype) {
    constexpr int64_t kUsual = int64_t{64} << 20, kAlignment = 64;
    int64_t bytes = 0;  // on a device in one piece, as a model that was loaded
    loaded_.model->visit([&](const std::string&, Param& param) {
        bytes += param.size() * size_of(param.trained() ? dtype : DType::kF32) + kAlignment;
    });
    loaded_.weights = std::make_unique<Arena>(
        "weights", [&ops](int64_t size) { return ops.allocate(size); }, ops.sees_host_memory() ? kUsual : bytes);
    const std::vector<float> f32 = normal_table<float>();
    const std::vector<BFloat16> bf16 = normal_table<BFloat16>();
    Rng places(2);
    loaded_.model->visit([&](const std::string&, Param& param) {
        const Tensor value = param.allocate(*loaded_.weights, param.trained() ? dtype : DType::kF32);
        param.weight = value;
        if (!param.is_matrix()) {
            ops.fill(value, param.kind == ParamKind::kNorm ? 1 : 0);
        } else if (dtype == DType::kF32) {
            fill_from_table(ops, value, f32, places);
        } else {
            fill_from_table(ops, value, bf16, places);
        }
    });
}

// Nothing is added to the residual stream, and a module's input is the embedding of the token ahead: the model says what
// follows from its last token alone, and the module says the same of its own. What follows is one of the first quarter of the
// ids, among which modules guess. All that is computed otherwise still is.
void BenchModel::make_modules_agree(Ops& ops) {
    loaded_.model->visit([&](const std::string& name, Param& param) {
        const Tensor& matrix = param.weight.codes;
        if (name.ends_with(".o_proj.weight") || name.ends_with(".down_proj.weight")) ops.fill(matrix, 0);
        if (name == "lm_head.weight") ops.fill(matrix.slice(0, matrix.dim(0) / 4, matrix.dim(0)), 0);
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
        name = param.weight.block == BlockType::kNone ? name_of(param.weight.codes.dtype) : traits_of(param.weight.block).name;
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
