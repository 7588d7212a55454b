#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <optional>
#include <utility>

namespace fathom {
namespace {

int64_t count_targets(std::span<const int32_t> targets) {
    return std::ranges::count_if(targets, [](int32_t target) { return target != kNoTarget; });
}

}  // namespace

Trainer::Trainer(const TrainConfig& config, DeepSeek& model, Ops& ops, std::unique_ptr<BatchSource> loader, bool deterministic)
    : learner_(config, model, ops, deterministic),
      loader_(std::move(loader)) {}

StepMetrics Trainer::step() {
    const auto start = std::chrono::steady_clock::now();
    const auto& training = learner_.config().training;
    const double lambda = learner_.progress() < training.mtp_lambda_switch ? training.mtp_lambda : training.mtp_lambda_final;
    const std::vector<TokenBatch> batches = next_batches();
    Losses losses;
    int64_t consumed = 0;
    for (const TokenBatch& tokens : batches) {
        losses.count += count_targets(tokens.targets);
        losses.mtp_count += count_targets(shifted_targets(tokens, 2));
        consumed += std::ssize(tokens.tokens);
    }
    for (const TokenBatch& tokens : batches) accumulate(losses, tokens, lambda);
    StepMetrics metrics = learner_.update(consumed);
    metrics.loss = losses.sum / static_cast<double>(std::max<int64_t>(losses.count, 1));
    const int64_t depths = learner_.model().config().num_nextn_predict_layers;
    if (depths > 0) metrics.mtp_loss = losses.mtp_sum / static_cast<double>(depths * std::max<int64_t>(losses.mtp_count, 1));
    metrics.tokens_per_second =
        static_cast<double>(consumed) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return metrics;
}

std::vector<TokenBatch> Trainer::next_batches() {
    std::vector<TokenBatch> batches;
    for (int64_t i = 0; i < learner_.config().training.gradient_accumulation; ++i) {
        std::optional<TokenBatch> tokens = loader_->next();
        check(tokens.has_value(), "Trainer: a training loader never ends");
        batches.push_back(*std::move(tokens));
    }
    return batches;
}

// Adds the batch's part of the gradient of the step's mean loss.
void Trainer::accumulate(Losses& losses, const TokenBatch& tokens, double mtp_lambda) {
    const auto head_loss = [&](Context& cx, const Tensor& hidden, const Tensor& dhidden, DeepSeek::Saved& saved) {
        const Tensor loss = cx.empty_precise({hidden.dim(0)}, true), targets = cx.ints(tokens.targets, true);
        learner_.model().head().loss_and_gradient(cx, loss, dhidden, hidden, targets,
                                                  1 / static_cast<double>(std::max<int64_t>(losses.count, 1)));
        losses.sum += sum_of(loss);
        accumulate_mtp(cx, losses, tokens, dhidden, mtp_lambda, saved);
    };
    learner_.accumulate(tokens, head_loss);
}

// V3 2.2: L_MTP = lambda / D * sum over depths of their losses, all divided by the targets of the first depth.
void Trainer::accumulate_mtp(Context& cx, Losses& losses, const TokenBatch& tokens, const Tensor& dhidden, double lambda,
                             DeepSeek::Saved& saved) {
    const int64_t depths = learner_.model().config().num_nextn_predict_layers, n = dhidden.dim(0);
    if (depths == 0) return;
    std::vector<Tensor> ahead, targets;
    for (int64_t k = 1; k <= depths; ++k) {
        std::vector<int32_t> seen = shifted_tokens(tokens, k);
        std::ranges::replace(seen, kNoTarget, 0);  // these rows have no target either
        ahead.push_back(cx.ints(seen, true));
        targets.push_back(cx.ints(shifted_targets(tokens, k + 1), true));
    }
    const Tensor loss = cx.empty_precise({depths, n}, true);
    const double scale = lambda / static_cast<double>(depths * std::max<int64_t>(losses.mtp_count, 1));
    learner_.model().mtp_loss_and_gradient(cx, loss, dhidden, ahead, targets, scale, saved);
    losses.mtp_sum += sum_of(loss.view({depths * n}));
}

double Trainer::sum_of(const Tensor& losses) {
    const std::vector<float> values = learner_.to_host(losses);
    return std::accumulate(values.begin(), values.end(), 0.0);
}

std::vector<float> Trainer::token_losses(const TokenBatch& tokens) {
    std::vector<float> losses;
    learner_.forward(tokens, [&](Context& cx, const Tensor& hidden) {
        const Tensor loss = cx.empty_precise({hidden.dim(0)});
        learner_.model().head().loss(cx, loss, hidden, cx.ints(tokens.targets));
        losses = learner_.to_host(loss);
    });
    return losses;
}

double Trainer::evaluate(BatchSource& loader, int64_t limit) {
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
    learner_.restore(state.step, state.tokens);
    loader_->restore(state.loader);
}

}  // namespace fathom
