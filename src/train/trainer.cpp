#include "train/trainer.h"

#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

namespace fathom {
namespace {

int64_t count_targets(std::span<const int32_t> targets) {
    return std::ranges::count_if(targets, [](int32_t target) { return target != kNoTarget; });
}

// MaxVio, deviation and dead experts of one layer's load (loss-free balancing, Wang et al. 2024).
void describe_load(StepMetrics& metrics, const std::vector<int64_t>& load) {
    const auto experts = static_cast<double>(load.size());
    const double mean = std::max(1e-9, static_cast<double>(std::accumulate(load.begin(), load.end(), int64_t{0})) / experts);
    double square = 0;
    for (const int64_t tokens : load)
        square += (static_cast<double>(tokens) / mean - 1) * (static_cast<double>(tokens) / mean - 1);
    metrics.max_vio.push_back(static_cast<double>(*std::ranges::max_element(load)) / mean - 1);
    metrics.load_std.push_back(std::sqrt(square / experts));
    metrics.dead_experts.push_back(std::ranges::count(load, 0));
}

}  // namespace

Trainer::Trainer(const TrainConfig& config, DeepSeek& model, Ops& ops, PackedLoader loader, bool deterministic)
    : config_(config),
      model_(model),
      ops_(ops),
      optimizer_(model, ops, config.training.dtype),
      loader_(std::move(loader)),
      deterministic_(deterministic),
      scratch_("scratch", [&ops](int64_t bytes) { return ops.allocate(bytes); }),
      saved_("activations", [&ops](int64_t bytes) { return ops.allocate(bytes); }),
      statistics_(
          "statistics", [&ops](int64_t bytes) { return ops.allocate(bytes); }, 1 << 20),
      moe_layers_(model.moe_layers()) {
    model_.set_recompute(config.training.recompute);
    for (const auto& [layer, moe] : moe_layers_) {
        moe->router().balance = config.balance.losses;
        // Of each batch; a step has the mean over its batches.
        for (BalanceLoss& loss : moe->router().balance)
            loss.alpha /= static_cast<double>(config.training.gradient_accumulation);
        moe->statistics = {statistics_.allocate(DType::kI64, {moe->router().config().n_routed_experts}),
                           statistics_.allocate(ops.precise_dtype(), {1})};
        ops.fill(moe->statistics.expert_load, 0);
        ops.fill(moe->statistics.balance_loss, 0);
    }
}

StepMetrics Trainer::step() {
    const auto start = std::chrono::steady_clock::now();
    const auto& training = config_.training;
    const double progress = static_cast<double>(step_) / static_cast<double>(training.steps);
    const double lambda = progress < training.mtp_lambda_switch ? training.mtp_lambda : training.mtp_lambda_final;
    const std::vector<TokenBatch> batches = next_batches();
    Losses losses;
    int64_t consumed = 0;
    for (const TokenBatch& tokens : batches) {
        losses.count += count_targets(tokens.targets);
        losses.mtp_count += count_targets(shifted_targets(tokens, 2));
        consumed += std::ssize(tokens.tokens);
    }
    for (const TokenBatch& tokens : batches) accumulate(losses, tokens, lambda);
    const double norm = optimizer_.gradient_norm();
    if (!std::isfinite(norm)) {
        throw Error(ErrorKind::kInput,
                    fmt::format("step {}: the gradient is not finite; nothing was updated. Lower optimizer.lr, lengthen "
                                "lr_scheduler.warmup_steps, or check the data",
                                step_ + 1));
    }
    const double clip = training.clip > 0 ? std::min(1.0, training.clip / (norm + 1e-6)) : 1.0;
    const double lr = config_.optimizer.lr * schedule_factor(config_.lr_scheduler, step_, training.steps);
    const auto& o = config_.optimizer;
    optimizer_.step({lr, o.beta1, o.beta2, o.epsilon, o.weight_decay, clip, step_ + 1});
    optimizer_.zero_gradients();
    ++step_;
    tokens_ += consumed;

    StepMetrics metrics;
    metrics.step = step_;
    metrics.tokens = tokens_;
    metrics.loss = losses.sum / static_cast<double>(std::max<int64_t>(losses.count, 1));
    const int64_t depths = model_.config().num_nextn_predict_layers;
    if (depths > 0) metrics.mtp_loss = losses.mtp_sum / static_cast<double>(depths * std::max<int64_t>(losses.mtp_count, 1));
    metrics.lr = lr;
    metrics.grad_norm = norm;
    balance(metrics);
    metrics.tokens_per_second =
        static_cast<double>(consumed) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return metrics;
}

// Every segment of the batch is one sequence: attention never leaves it.
Batch Trainer::to_batch(Context& cx, const TokenBatch& tokens, bool keep) const {
    const AttentionForm form = deterministic_ && model_.config().mla() ? AttentionForm::kAbsorbed : AttentionForm::kExpanded;
    std::vector<SequenceChunk> chunks;
    for (size_t i = 0; i + 1 < tokens.cu_seqlens.size(); ++i) {
        const auto begin = static_cast<size_t>(tokens.cu_seqlens[i]), end = static_cast<size_t>(tokens.cu_seqlens[i + 1]);
        chunks.push_back({std::span(tokens.tokens).subspan(begin, end - begin), 0, form, {}});
    }
    return make_batch(cx, chunks, 0, keep);
}

std::vector<TokenBatch> Trainer::next_batches() {
    std::vector<TokenBatch> batches;
    for (int64_t i = 0; i < config_.training.gradient_accumulation; ++i) {
        std::optional<TokenBatch> tokens = loader_.next();
        check(tokens.has_value(), "Trainer: a training loader never ends");
        batches.push_back(*std::move(tokens));
    }
    return batches;
}

// Forward and backward of one batch: adds its part of the gradient of the step's mean loss.
void Trainer::accumulate(Losses& losses, const TokenBatch& tokens, double mtp_lambda) {
    scratch_.clear();
    saved_.clear();
    Context cx = context();
    const Batch batch = to_batch(cx, tokens, true);
    const Tensor targets = cx.ints(tokens.targets, true);
    DeepSeek::Saved saved;
    const Tensor hidden = model_.forward(cx, batch, nullptr, &saved);
    const Tensor loss = cx.empty_precise({batch.rows}, true), dhidden = cx.empty({batch.rows, hidden.dim(1)}, true);
    model_.head().loss_and_gradient(cx, loss, dhidden, hidden, targets,
                                    1 / static_cast<double>(std::max<int64_t>(losses.count, 1)));
    losses.sum += sum_of(loss);
    accumulate_mtp(cx, losses, tokens, dhidden, mtp_lambda, saved);
    model_.backward(cx, dhidden, saved);
}

// V3 2.2: L_MTP = lambda / D * sum over depths of their losses, all divided by the targets of the first depth.
void Trainer::accumulate_mtp(Context& cx, Losses& losses, const TokenBatch& tokens, const Tensor& dhidden, double lambda,
                             DeepSeek::Saved& saved) {
    const int64_t depths = model_.config().num_nextn_predict_layers, n = dhidden.dim(0);
    if (depths == 0) return;
    std::vector<Tensor> ahead, targets;
    for (int64_t k = 1; k <= depths; ++k) {
        std::vector<int32_t> seen = shifted_targets(tokens, k);
        std::ranges::replace(seen, kNoTarget, 0);  // these rows have no target either
        ahead.push_back(cx.ints(seen, true));
        targets.push_back(cx.ints(shifted_targets(tokens, k + 1), true));
    }
    const Tensor loss = cx.empty_precise({depths, n}, true);
    const double scale = lambda / static_cast<double>(depths * std::max<int64_t>(losses.mtp_count, 1));
    model_.mtp_loss_and_gradient(cx, loss, dhidden, ahead, targets, scale, saved);
    losses.mtp_sum += sum_of(loss.view({depths * n}));
}

std::vector<float> Trainer::to_host(const Tensor& losses) {
    std::vector<float> values(static_cast<size_t>(losses.size()));
    ops_.read_back(values.data(), losses);
    return values;
}

double Trainer::sum_of(const Tensor& losses) {
    const std::vector<float> values = to_host(losses);
    return std::accumulate(values.begin(), values.end(), 0.0);
}

// Reads and clears the layers' counters; moves the router biases (V3 2.1.2).
void Trainer::balance(StepMetrics& metrics) {
    const double progress = static_cast<double>(step_) / static_cast<double>(config_.training.steps);
    const double gamma = progress <= config_.balance.bias_update_until ? config_.balance.bias_update_speed : 0;
    double balance_loss = 0;
    for (const auto& [layer, moe] : moe_layers_) {
        const MoeStatistics& statistics = moe->statistics;
        std::vector<int64_t> load(static_cast<size_t>(statistics.expert_load.size()));
        ops_.read_back(load.data(), statistics.expert_load);
        describe_load(metrics, load);
        if (metrics.step % config_.metrics.expert_load_every == 0) metrics.expert_load.push_back(load);
        Param* bias = moe->router().correction_bias();
        if (bias != nullptr && gamma > 0) ops_.update_router_bias(bias->vector(), statistics.expert_load, gamma);
        balance_loss += sum_of(statistics.balance_loss);
        ops_.fill(statistics.expert_load, 0);
        ops_.fill(statistics.balance_loss, 0);
    }
    if (!config_.balance.losses.empty()) metrics.balance_loss = balance_loss;
}

std::vector<float> Trainer::token_losses(const TokenBatch& tokens) {
    scratch_.clear();
    Context cx = context();
    const Batch batch = to_batch(cx, tokens, false);
    const Tensor hidden = model_.forward(cx, batch, nullptr, nullptr), loss = cx.empty_precise({batch.rows});
    model_.head().loss(cx, loss, hidden, cx.ints(tokens.targets));
    return to_host(loss);
}

double Trainer::evaluate(PackedLoader& loader, int64_t limit) {
    loader.restore({});
    double sum = 0;
    int64_t count = 0;
    for (int64_t i = 0; limit == 0 || i < limit; ++i) {
        const std::optional<TokenBatch> tokens = loader.next();
        if (!tokens) break;
        const std::vector<float> losses = token_losses(*tokens);
        sum += std::accumulate(losses.begin(), losses.end(), 0.0);
        count += count_targets(tokens->targets);
    }
    if (count == 0) throw Error(ErrorKind::kInput, "data.valid: no token to predict");
    return sum / static_cast<double>(count);
}

void Trainer::restore(const TrainerState& state) {
    step_ = state.step;
    tokens_ = state.tokens;
    loader_.restore(state.loader);
}

}  // namespace fathom
