#include "train/learner.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <numeric>

namespace fathom {
namespace {

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

Learner::Learner(const TrainConfig& config, DeepSeek& model, Ops& ops, bool deterministic)
    : config_(config),
      model_(model),
      ops_(ops),
      optimizer_(model, ops, config.training.dtype, config.optimizer.moments),
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

// Every segment of the batch is one sequence: attention never leaves it.
Batch Learner::to_batch(Context& cx, const TokenBatch& tokens, bool keep, const Routes& routes,
                        std::vector<Routing>& record) const {
    const AttentionForm form = deterministic_ && model_.config().mla() ? AttentionForm::kAbsorbed : AttentionForm::kExpanded;
    std::vector<SequenceChunk> chunks;
    for (size_t i = 0; i + 1 < tokens.cu_seqlens.size(); ++i) {
        const auto begin = static_cast<size_t>(tokens.cu_seqlens[i]), end = static_cast<size_t>(tokens.cu_seqlens[i + 1]);
        chunks.push_back({std::span(tokens.tokens).subspan(begin, end - begin), 0, form, {}});
    }
    Batch batch = make_batch(cx, chunks, 0, keep);
    if (routes.record != nullptr) batch.record = &record;
    if (routes.replay == nullptr) return batch;
    batch.replay.resize(routes.replay->size());
    for (size_t layer = 0; layer < routes.replay->size(); ++layer) {
        const std::vector<int32_t>& experts = (*routes.replay)[layer];
        if (!experts.empty()) batch.replay[layer] = cx.ints(experts, true).view({batch.rows, std::ssize(experts) / batch.rows});
    }
    return batch;
}

void Learner::read_routes(const Routes& routes, const std::vector<Routing>& record) {
    if (routes.record == nullptr) return;
    routes.record->assign(record.size(), {});
    for (size_t layer = 0; layer < record.size(); ++layer) {
        const Tensor& indices = record[layer].indices;
        if (!indices) continue;
        (*routes.record)[layer].resize(static_cast<size_t>(indices.size()));
        ops_.read_back((*routes.record)[layer].data(), indices);
    }
}

void Learner::accumulate(const TokenBatch& tokens, const HeadLoss& loss, const Routes& routes) {
    scratch_.clear();
    saved_.clear();
    Context cx = context();
    std::vector<Routing> record(static_cast<size_t>(model_.config().num_hidden_layers));
    const Batch batch = to_batch(cx, tokens, true, routes, record);
    DeepSeek::Saved saved;
    const Tensor hidden = model_.forward(cx, batch, nullptr, &saved);
    read_routes(routes, record);
    saved.batch.record = nullptr;  // a block that is recomputed need not tell again
    const Tensor dhidden = cx.empty({batch.rows, hidden.dim(1)}, true);
    loss(cx, hidden, dhidden, saved);
    model_.backward(cx, dhidden, saved);
}

void Learner::forward(const TokenBatch& tokens, const std::function<void(Context& cx, const Tensor& hidden)>& use,
                      const Routes& routes) {
    forward_model(model_, tokens, use, routes);
}

void Learner::forward_model(const DeepSeek& model, const TokenBatch& tokens,
                            const std::function<void(Context& cx, const Tensor& hidden)>& use, const Routes& routes) {
    scratch_.clear();
    saved_.clear();
    Context cx = context();
    std::vector<Routing> record(static_cast<size_t>(model.config().num_hidden_layers));
    const Batch batch = to_batch(cx, tokens, false, routes, record);
    const Tensor hidden = model.forward(cx, batch, nullptr, nullptr);
    read_routes(routes, record);
    use(cx, hidden);
}

StepMetrics Learner::update(int64_t consumed_tokens) {
    const double norm = optimizer_.gradient_norm();
    if (!std::isfinite(norm)) {
        throw Error(ErrorKind::kInput,
                    fmt::format("step {}: the gradient is not finite; nothing was updated. Lower optimizer.lr, lengthen "
                                "lr_scheduler.warmup_steps, or check the data",
                                step_ + 1));
    }
    const auto& training = config_.training;
    const double clip = training.clip > 0 ? std::min(1.0, training.clip / (norm + 1e-6)) : 1.0;
    const double lr = config_.optimizer.lr * schedule_factor(config_.lr_scheduler, step_, training.steps);
    const auto& o = config_.optimizer;
    optimizer_.step({lr, o.beta1, o.beta2, o.epsilon, o.weight_decay, clip, step_ + 1});
    optimizer_.zero_gradients();
    ++step_;
    tokens_ += consumed_tokens;

    StepMetrics metrics;
    metrics.step = step_;
    metrics.tokens = tokens_;
    metrics.lr = lr;
    metrics.grad_norm = norm;
    balance(metrics);
    return metrics;
}

std::vector<float> Learner::to_host(const Tensor& tensor) {
    std::vector<float> values(static_cast<size_t>(tensor.size()));
    ops_.read_back(values.data(), tensor);
    return values;
}

// Reads and clears the layers' counters; moves the router biases (V3 2.1.2).
void Learner::balance(StepMetrics& metrics) {
    const double gamma = progress() <= config_.balance.bias_update_until ? config_.balance.bias_update_speed : 0;
    double balance_loss = 0;
    for (const auto& [layer, moe] : moe_layers_) {
        const MoeStatistics& statistics = moe->statistics;
        std::vector<int64_t> load(static_cast<size_t>(statistics.expert_load.size()));
        ops_.read_back(load.data(), statistics.expert_load);
        metrics.moe_layers.push_back(layer);
        describe_load(metrics, load);
        if (metrics.step % config_.metrics.expert_load_every == 0) metrics.expert_load.push_back(load);
        Param* bias = moe->router().correction_bias();
        if (bias != nullptr && gamma > 0) ops_.update_router_bias(bias->vector(), statistics.expert_load, gamma);
        balance_loss += static_cast<double>(to_host(statistics.balance_loss)[0]);
        ops_.fill(statistics.expert_load, 0);
        ops_.fill(statistics.balance_loss, 0);
    }
    if (!config_.balance.losses.empty()) metrics.balance_loss = balance_loss;
}

}  // namespace fathom
