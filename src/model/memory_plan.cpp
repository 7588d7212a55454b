#include "model/memory_plan.h"

#include <string>
#include <string_view>
#include <vector>

#include "model/deepseek.h"

namespace fathom {
namespace {

ModelConfig without_mtp(ModelConfig config) {
    config.num_nextn_predict_layers = 0;
    return config;
}

// The matrices that DeepSeek stores in FP8: every projection but the one that joins the two inputs of an MTP module.
bool stored_in_fp8(std::string_view name, const Param& param) {
    return param.is_matrix() && name.find("_proj") != std::string_view::npos && name.find("eh_proj") == std::string_view::npos;
}

int64_t blocks(int64_t size) { return (size + kFp8Block - 1) / kFp8Block; }

// A model whose parameters have shapes and types, and no memory.
class DryModel {
public:
    DryModel(const ModelConfig& config, DType dtype, DType moments = DType::kF32)
        : model_(config),
          state_("state", grow()),
          scratch_("scratch", grow()),
          saved_("saved", grow()) {
        model_.visit([&](const std::string&, Param& param) {
            const bool converted = param.trained() && dtype != DType::kF32;
            param.weight = param.allocate(state_, param.trained() ? dtype : DType::kF32);
            if (!param.trained()) return;
            param.grad = param.allocate(state_, DType::kF32);
            const Tensor master = converted ? param.allocate(state_, DType::kF32) : param.weight.codes;
            trained_.push_back({&param, master, param.allocate(state_, moments), param.allocate(state_, moments)});
        });
        ops_.clear();
    }

    DryRun forward(int64_t batch, int64_t length) {
        Context cx{ops_, scratch_, saved_};
        const Batch rows = make_rows(cx, batch, length);
        const Tensor hidden = model_.forward(cx, rows, nullptr, nullptr);
        model_.head().loss(cx, cx.empty_precise({rows.rows}), hidden, rows.tokens);
        return result(rows.rows);
    }

    DryRun train(int64_t batch, int64_t length, bool recompute) {
        model_.set_recompute(recompute);
        Context cx{ops_, scratch_, saved_};
        const Batch rows = make_rows(cx, batch, length);
        DeepSeek::Saved saved;
        const Tensor hidden = model_.forward(cx, rows, nullptr, &saved);
        const Tensor loss = cx.empty_precise({rows.rows}, true), dhidden = cx.empty({rows.rows, hidden.dim(1)}, true);
        model_.head().loss_and_gradient(cx, loss, dhidden, hidden, rows.tokens, 1);
        if (const int64_t depths = model_.config().num_nextn_predict_layers; depths > 0) {
            const std::vector<Tensor> ahead(static_cast<size_t>(depths), rows.tokens);  // only shapes matter
            model_.mtp_loss_and_gradient(cx, cx.empty_precise({depths, rows.rows}, true), dhidden, ahead, ahead, 1, saved);
        }
        model_.backward(cx, dhidden, saved);
        for (const Trained& t : trained_) {
            ops_.square_norm(loss, t.param->grad);
            ops_.adamw(t.param->weight.codes, t.master, t.m, t.v, t.param->grad, {});
            ops_.fill(t.param->grad, 0);
        }
        return result(rows.rows);
    }

private:
    struct Trained {
        Param* param = nullptr;
        Tensor master, m, v;
    };

    PlanOps ops_;
    DeepSeek model_;
    Arena state_, scratch_, saved_;
    std::vector<Trained> trained_;

    Arena::Grow grow() {
        return [this](int64_t bytes) { return ops_.allocate(bytes); };
    }
    Batch make_rows(Context& cx, int64_t batch, int64_t length) {
        const std::vector<int32_t> tokens(static_cast<size_t>(length));
        return make_batch(cx, std::vector<SequenceChunk>(static_cast<size_t>(batch), {tokens, 0, {}, {}}), 0, true);
    }
    [[nodiscard]] DryRun result(int64_t tokens) const { return {tokens, ops_.total(), saved_.peak(), scratch_.peak()}; }
};

}  // namespace

WeightBytes plan_weights(const ModelConfig& config) {
    WeightBytes bytes;
    DeepSeek model(without_mtp(config));
    model.visit([&](const std::string& name, Param& param) {
        const int64_t bf16 = param.size() * (param.trained() ? 2 : 4);  // router biases are always f32
        bytes.f32 += 4 * param.size();
        bytes.bf16 += bf16;
        bytes.fp8 += stored_in_fp8(name, param) ? param.size() + 4 * blocks(param.rows) * blocks(param.cols) : bf16;
    });
    return bytes;
}

TrainingState plan_training_state(const ModelConfig& config, DType dtype, DType moments) {
    TrainingState state;
    DeepSeek model(config);
    model.visit([&](const std::string&, Param& param) {
        const int64_t f32 = 4 * param.size();
        state.weights += param.trained() ? param.size() * size_of(dtype) : f32;
        if (!param.trained()) return;
        if (dtype != DType::kF32) state.masters += f32;
        state.gradients += f32;
        state.moments += 2 * param.size() * size_of(moments);
    });
    return state;
}

int64_t cache_bytes_per_token(const ModelConfig& config, const CacheType& type) {
    int64_t bytes = 0;
    const DeepSeek model(without_mtp(config));
    for (const auto& layer : model.cache_states()) {
        for (const CacheState& state : layer) bytes += cache_row_bytes(type, state.width);
    }
    return bytes;
}

DryRun dry_run_forward(const ModelConfig& config, int64_t batch, int64_t length, DType dtype) {
    return DryModel(without_mtp(config), dtype).forward(batch, length);
}

DryRun dry_run_training(const ModelConfig& config, int64_t batch, int64_t length, DType dtype, bool recompute, DType moments) {
    return DryModel(config, dtype, moments).train(batch, length, recompute);
}

}  // namespace fathom
