#include "app/calibrated_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <sstream>

#include "app/calibrating_ops.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "io/safetensors.h"
#include "quant/awq.h"
#include "quant/gptq.h"
#include "tensor/weight_row.h"

namespace fathom {
namespace {

constexpr double kDamping = 0.01;
constexpr int64_t kAwqRows = 1024;  // tried per set of matrices with one input

// "model.layers.3." of a parameter; nothing for those outside of layers.
std::optional<int64_t> layer_of(const std::string& name) {
    constexpr std::string_view kLayers = "model.layers.";
    if (!name.starts_with(kLayers)) return std::nullopt;
    return std::atoll(name.c_str() + kLayers.size());
}

bool is_router(const std::string& name) { return name.ends_with(".mlp.gate.weight"); }

std::string replaced(const std::string& name, std::string_view end, std::string_view by) {
    return name.substr(0, name.size() - end.size()) + std::string(by);
}

}  // namespace

class CalibratedSource::Layers {
public:
    Layers(DeepSeek& model, const FolderPlan& plan, const CalibrationOptions& options, ThreadPool& pool)
        : model_(model),
          plan_(plan),
          options_(options),
          pool_(pool),
          rounding_(model, plan, nullptr, pool),
          ops_(pool, model, [this](const ObservedMatrix& matrix, const Tensor& x) { return seen(matrix, x); }),
          progress_("calibrate", model.config().num_hidden_layers, "layers", options.progress) {
        model.visit([this](const std::string& name, Param& param) { parameters_.emplace(name, &param); });
        begin();
    }

    void produce(const std::string& name, const TensorSink& sink) {
        const auto layer = layer_of(name);
        if (!layer || *layer >= model_.config().num_hidden_layers) return rounding_.produce(name, sink);
        if (*layer < next_) restart();  // the state belongs to a later shard than is wanted
        while (next_ <= *layer) run_layer(sink);
    }

    void shard_finished(const std::string& name) {
        if (options_.state.empty() || name.empty()) return;
        const auto layer = layer_of(name);
        if (!layer || *layer >= model_.config().num_hidden_layers || *layer + 1 < next_ || *layer > next_) return;
        const Tensor& x = *layer == next_ ? x_ : before_;
        const NamedTensor tensors[] = {{"x", x}};
        write_safetensors(options_.state, tensors,
                          {{"job", options_.job},
                           {"layer", std::to_string(*layer)},
                           {"rounded", fmt::format("{}", fmt::join(rounded, "\n"))}});
    }

    std::set<std::string> rounded;

private:
    DeepSeek& model_;
    const FolderPlan& plan_;
    CalibrationOptions options_;
    ThreadPool& pool_;
    RoundingSource rounding_;
    CalibratingOps ops_;
    Progress progress_;
    std::map<std::string, const Param*> parameters_;
    Arena state_{"hidden states", Buffer::host}, scratch_{"scratch", Buffer::host}, saved_{"saved", Buffer::host};
    Arena layer_{"quantized layer", Buffer::host}, numbers_{"one matrix", Buffer::host};
    Batch batch_;
    Tensor x_, before_;  // [n, hidden]: the residual stream before layer next_, and before the one run last
    int64_t next_ = 0;
    // Of the layer that is run:
    std::map<std::string, Weight> integers_;
    std::map<std::string, std::vector<float>> column_scales_;  // AWQ: of the inputs' columns
    std::map<std::string, PackedTensor> rescaled_;             // norms and routers

    void begin() {
        Context cx{ops_, state_, saved_};
        std::vector<SequenceChunk> chunks;
        const auto total = static_cast<int64_t>(options_.tokens.size());
        for (int64_t at = 0; at < total; at += options_.context)
            chunks.push_back(
                {options_.tokens.subspan(static_cast<size_t>(at), static_cast<size_t>(std::min(options_.context, total - at))),
                 0,
                 AttentionForm::kExpanded,
                 {}});
        batch_ = model_.with_rope(cx, make_batch(cx, chunks, 0, false), false);
        x_ = cx.empty({total, model_.config().hidden_size});
        before_ = cx.empty({total, model_.config().hidden_size});
        if (!take_up_state()) restart();
    }

    void restart() {
        Context cx{ops_, scratch_, saved_};
        const ArenaScope scope(scratch_);
        ops_.copy(x_, model_.embed(cx, batch_.tokens, false));
        next_ = 0;
        rounded.clear();
    }

    bool take_up_state() {
        if (options_.state.empty() || !std::filesystem::exists(options_.state)) return false;
        const SafetensorsFile file(options_.state);
        const auto job = file.metadata().find("job"), layer = file.metadata().find("layer");
        const auto x = file.find("x");
        if (job == file.metadata().end() || job->second != options_.job || layer == file.metadata().end() || !x ||
            x->dtype != DType::kF32 || x->shape != x_.shape)
            return false;
        next_ = std::atoll(layer->second.c_str());
        if (const auto names = file.metadata().find("rounded"); names != file.metadata().end()) {
            std::istringstream lines(names->second);
            for (std::string name; std::getline(lines, name);) rounded.insert(name);
        }
        ops_.copy(x_, *x);
        return true;
    }

    void run_layer(const TensorSink& sink) {
        throw_if_interrupted();
        layer_.clear();
        integers_.clear();
        column_scales_.clear();
        rescaled_.clear();
        std::swap(x_, before_);
        Context cx{ops_, scratch_, saved_};
        model_.layer(next_).forward(cx, x_, before_, batch_, nullptr, nullptr);
        ++next_;
        progress_.update(next_);
        if (next_ == model_.config().num_hidden_layers) progress_.finish();
        for (const auto& [name, param] : parameters_) {
            if (layer_of(name) != next_ - 1) continue;
            if (const auto found = integers_.find(name); found != integers_.end()) {
                for (PackedTensor& part : packed_parameter(plan_, name, found->second)) sink(std::move(part));
            } else if (const auto other = rescaled_.find(name); other != rescaled_.end()) {
                sink(std::move(other->second));
            } else {
                rounding_.produce(name, sink);
            }
        }
    }

    // ---- what the ops tell ----

    Tensor seen(const ObservedMatrix& matrix, const Tensor& x) {
        if (options_.method == CalibratedMethod::kAwq && !column_scales_.contains(matrix.name)) scale_set(matrix.name, x);
        if (plan_.of(matrix.name).scheme != Scheme::kGroups) return {};
        if (!integers_.contains(matrix.name)) quantize(matrix, x);
        return decoded(matrix);
    }

    // f32 [out, in]: what the matrix has become, AWQ's scales taken off again, because its input still lacks them here.
    Tensor decoded(const ObservedMatrix& matrix) {
        numbers_.clear();
        const Weight& w = integers_.at(matrix.name);
        const int64_t rows = w.out_features(), columns = w.in_features();
        const Tensor y = numbers_.allocate(DType::kF32, {rows, columns});
        const auto scales = column_scales_.find(matrix.name);
        pool_.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) {
                float* row = y.as<float>() + i * columns;
                decode_row(row, w, i);
                if (scales == column_scales_.end() || scales->second.empty()) continue;
                for (int64_t k = 0; k < columns; ++k) row[k] /= scales->second[static_cast<size_t>(k)];
            }
        });
        return y;
    }

    // Sum of x^T x: [in, in] in numbers_.
    Tensor gram(const Tensor& x) {
        const Tensor g = numbers_.allocate(DType::kF32, {x.dim(1), x.dim(1)});
        ops_.fill(g, 0);
        if (x.dim(0) > 0) ops_.matmul_wgrad(g, x, x);
        return g;
    }

    void quantize(const ObservedMatrix& matrix, const Tensor& x) {
        numbers_.clear();
        const Param& param = *matrix.param;
        const Weight to = allocate_groups(layer_, param.rows, param.cols, plan_.of(matrix.name).groups);
        integers_.emplace(matrix.name, to);
        const bool few = x.dim(0) < kFewestTokens;
        if (few) rounded.insert(matrix.name);
        const auto found = column_scales_.find(matrix.name);
        const std::vector<float>* scales = found == column_scales_.end() || found->second.empty() ? nullptr : &found->second;
        if (options_.method == CalibratedMethod::kAwq || few) return round(param, to, scales, few ? Tensor() : gram(x));
        const Tensor g = gram(x);
        const GptqPlan plan = gptq_plan(g.as<float>(), param.cols, kDamping, pool_);
        const GroupCost cost{nullptr, g.as<float>(), param.cols};
        pool_.parallel_for(param.rows, 4, [&](int64_t begin, int64_t end, int) {
            std::vector<float> row(static_cast<size_t>(param.cols));
            for (int64_t i = begin; i < end; ++i) {
                decode_row(row.data(), param.weight, i);
                gptq_encode(to, i, row, plan, cost);
            }
        });
    }

    // To nearest, columns times `scales`, ranges chosen by the gram g of the inputs where there is one.
    void round(const Param& param, const Weight& to, const std::vector<float>* scales, const Tensor& g) {
        GroupCost cost;
        if (g) {
            if (scales != nullptr) {
                for (int64_t i = 0; i < param.cols; ++i)
                    for (int64_t k = 0; k < param.cols; ++k)
                        g.as<float>()[i * param.cols + k] /=
                            (*scales)[static_cast<size_t>(i)] * (*scales)[static_cast<size_t>(k)];
            }
            cost.gram = g.as<float>();
            cost.stride = param.cols;
        }
        pool_.parallel_for(param.rows, 4, [&](int64_t begin, int64_t end, int) {
            std::vector<float> row(static_cast<size_t>(param.cols));
            for (int64_t i = begin; i < end; ++i) {
                decode_row(row.data(), param.weight, i);
                for (size_t k = 0; scales != nullptr && k < row.size(); ++k) row[k] *= (*scales)[k];
                encode_groups(to, i, row.data(), cost);
            }
        });
    }

    // ---- AWQ ----

    // A set of matrices with one input, and what stands before it.
    struct Set {
        std::vector<std::string> matrices;
        std::string norm;  // or the rows of a matrix:
        std::string before;
        std::vector<int64_t> rows;  // row of `before` that makes column k; empty: row k
    };

    [[nodiscard]] Set set_of(const std::string& name) const {
        const std::string prefix = fmt::format("model.layers.{}.", next_);
        const std::string part = name.substr(prefix.size());
        const auto& c = model_.config();
        const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
        if (part == "self_attn.q_b_proj.weight") return {{name}, attention + "q_a_layernorm.weight", "", {}};
        if (part == "self_attn.kv_b_proj.weight") return {{name}, attention + "kv_a_layernorm.weight", "", {}};
        if (part == "self_attn.o_proj.weight") return value_set(name, attention);
        if (part.starts_with("self_attn.")) {
            Set set{{}, prefix + "input_layernorm.weight", "", {}};
            for (const char* one : {"q_proj", "q_a_proj", "kv_a_proj_with_mqa", "k_proj", "v_proj"})
                if (const std::string full = attention + one + ".weight"; parameters_.contains(full))
                    set.matrices.push_back(full);
            return set;
        }
        if (part.ends_with("down_proj.weight")) return {{name}, "", replaced(name, "down_proj.weight", "up_proj.weight"), {}};
        Set set{{}, prefix + "post_attention_layernorm.weight", "", {}};
        for (const auto& [full, param] : parameters_)
            if (full.starts_with(mlp) && param->is_matrix() && !full.ends_with("down_proj.weight"))
                set.matrices.push_back(full);
        (void)c;
        return set;
    }

    [[nodiscard]] Set value_set(const std::string& name, const std::string& attention) const {
        const auto& c = model_.config();
        if (!c.mla()) {  // V1: values are repeated where there are fewer of them than query heads
            if (c.num_key_value_heads != c.num_attention_heads) return {{name}, "", "", {}};
            return {{name}, "", attention + "v_proj.weight", {}};
        }
        Set set{{name}, "", attention + "kv_b_proj.weight", {}};
        for (int64_t j = 0; j < c.num_attention_heads; ++j)
            for (int64_t d = 0; d < c.v_head_dim; ++d)
                set.rows.push_back(j * (c.qk_nope_head_dim + c.v_head_dim) + c.qk_nope_head_dim + d);
        return set;
    }

    // Finds the scales of all matrices of the set that `name` is in, and takes them off what stands before.
    void scale_set(const std::string& name, const Tensor& x) {
        const Set set = set_of(name);
        for (const std::string& one : set.matrices) column_scales_[one] = {};
        const bool to_rows = !set.before.empty() && plan_.of(set.before).scheme == Scheme::kGroups;
        const GroupFormat* format = nullptr;
        AwqRows rows;
        std::vector<std::pair<const Param*, int64_t>> index;
        for (const std::string& one : set.matrices) {
            if (plan_.of(one).scheme == Scheme::kGroups) {
                format = &plan_.of(one).groups;
                for (int64_t i = 0; i < parameters_.at(one)->rows; ++i) index.emplace_back(parameters_.at(one), i);
            } else if (!is_router(one)) {
                return;  // a plain matrix that the same input goes to would have to be rounded
            }
        }
        if (format == nullptr || x.dim(0) < kFewestTokens || (set.norm.empty() && !to_rows)) return;
        rows.count = std::ssize(index);
        rows.columns = x.dim(1);
        rows.row = [&index](int64_t i, float* to) {
            const auto& [param, at] = index[static_cast<size_t>(i)];
            decode_row(to, param->weight, at);
        };
        numbers_.clear();
        std::vector<float> s =
            awq_scales(rows, mean_magnitudes(x), gram(x).as<float>(), *format, std::min(kAwqRows, rows.count), pool_);
        if (to_rows)
            scale_rows(set, s);
        else
            scale_norm(set.norm, s);
        for (const std::string& one : set.matrices) {
            column_scales_[one] = s;
            if (is_router(one)) scale_router(one, s);
        }
    }

    [[nodiscard]] static std::vector<float> mean_magnitudes(const Tensor& x) {
        std::vector<double> sums(static_cast<size_t>(x.dim(1)));
        for (int64_t i = 0; i < x.dim(0); ++i) {
            const float* row = x.as<float>() + i * x.stride[0];
            for (size_t k = 0; k < sums.size(); ++k) sums[k] += static_cast<double>(std::fabs(row[k]));
        }
        std::vector<float> means;
        for (const double sum : sums) means.push_back(static_cast<float>(sum / static_cast<double>(x.dim(0))));
        return means;
    }

    void scale_rows(const Set& set, const std::vector<float>& s) {
        const Weight& before = integers_.at(set.before);
        for (size_t k = 0; k < s.size(); ++k)
            scale_row(before, set.rows.empty() ? static_cast<int64_t>(k) : set.rows[k], 1 / s[k]);
    }

    // The norm's weights become w / s in their type, and s what then is exactly between them.
    void scale_norm(const std::string& name, std::vector<float>& s) {
        const Tensor& old = parameters_.at(name)->vector();
        PackedTensor fresh{{name, old.dtype, {old.dim(0)}}, Buffer::host(old.bytes())};
        const Tensor to = fresh.tensor();
        std::vector<float> w(s.size());
        decode_row(w.data(), Weight(old), 0);
        for (size_t k = 0; k < s.size(); ++k) {
            const Tensor one = to.slice(0, static_cast<int64_t>(k), static_cast<int64_t>(k) + 1);
            float quotient = w[k] / s[k];
            ops_.copy(one, Tensor(&quotient, DType::kF32, {1}));
            decode_row(&quotient, Weight(one), 0);
            s[k] = quotient != 0 ? w[k] / quotient : 1;
        }
        rescaled_.insert_or_assign(name, std::move(fresh));
    }

    void scale_router(const std::string& name, const std::vector<float>& s) {
        const Param& param = *parameters_.at(name);
        PackedTensor fresh{{name, DType::kF32, {param.rows, param.cols}}, Buffer::host(param.size() * 4)};
        auto* y = fresh.tensor().as<float>();
        for (int64_t i = 0; i < param.rows; ++i) {
            decode_row(y + i * param.cols, param.weight, i);
            for (int64_t k = 0; k < param.cols; ++k) y[i * param.cols + k] *= s[static_cast<size_t>(k)];
        }
        rescaled_.insert_or_assign(name, std::move(fresh));
    }
};

CalibratedSource::CalibratedSource(DeepSeek& model, const FolderPlan& plan, const CalibrationOptions& options, ThreadPool& pool)
    : layers_(std::make_unique<Layers>(model, plan, options, pool)) {}
CalibratedSource::~CalibratedSource() = default;

void CalibratedSource::prepare_plan(DeepSeek& model, CalibratedMethod method, FolderPlan& plan) {
    if (method != CalibratedMethod::kAwq) return;
    const int64_t layers = model.config().num_hidden_layers;
    model.visit([&](const std::string& name, Param&) {
        if (is_router(name) && layer_of(name) < layers) plan.parameters[name].f32 = true;
    });
}

void CalibratedSource::produce(const std::string& name, const TensorSink& sink) { layers_->produce(name, sink); }
void CalibratedSource::shard_finished(const std::string& name) { layers_->shard_finished(name); }
std::vector<std::string> CalibratedSource::rounded() const { return {layers_->rounded.begin(), layers_->rounded.end()}; }

}  // namespace fathom
