// A model in training: forward, a loss at its head, backward, clipping, AdamW, router biases. Knows neither data nor losses:
// pre-training, fine-tuning and reinforcement learning bring theirs.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "io/packed_loader.h"
#include "train/config.h"
#include "train/metrics.h"
#include "train/optimizer.h"

namespace fathom {

// Experts of every token of a batch, one list [n K] per layer of the model, empty for dense layers.
using ExpertChoices = std::vector<std::vector<int32_t>>;

// Routing that is forced on a batch (replay), and where the routing it used is told (record); null: neither.
struct Routes {
    const ExpertChoices* replay = nullptr;
    ExpertChoices* record = nullptr;
};

class Learner {
public:
    // Trains `model` in place; `deterministic`: the arithmetic of docs/decisions/001, point 5.
    Learner(const TrainConfig& config, DeepSeek& model, Ops& ops, bool deterministic);

    // Writes dhidden [n, hidden_size], the gradient by `hidden`, the state after the final norm, and accumulates the head's
    // own.
    using HeadLoss = std::function<void(Context& cx, const Tensor& hidden, const Tensor& dhidden, DeepSeek::Saved& saved)>;
    // Forward and backward of one batch: adds to the gradients.
    void accumulate(const TokenBatch& tokens, const HeadLoss& loss, const Routes& routes = {});
    // Forward alone; `use` reads hidden [n, hidden_size]. The training state stays as it is.
    void forward(const TokenBatch& tokens, const std::function<void(Context& cx, const Tensor& hidden)>& use,
                 const Routes& routes = {});
    // The same through another model, such as a reference policy.
    void forward_model(const DeepSeek& model, const TokenBatch& tokens,
                       const std::function<void(Context& cx, const Tensor& hidden)>& use, const Routes& routes = {});
    // One update from the accumulated gradients, which are cleared: step, tokens, lr, grad_norm and balance of the metrics.
    // Throws Error{kInput}, and changes nothing, where the gradient is not finite.
    [[nodiscard]] StepMetrics update(int64_t consumed_tokens);

    [[nodiscard]] std::vector<float> to_host(const Tensor& values);  // f32, contiguous
    [[nodiscard]] Optimizer& optimizer() { return optimizer_; }
    [[nodiscard]] DeepSeek& model() { return model_; }
    [[nodiscard]] Ops& ops() { return ops_; }
    [[nodiscard]] const TrainConfig& config() const { return config_; }
    [[nodiscard]] int64_t step() const { return step_; }      // updates made
    [[nodiscard]] int64_t tokens() const { return tokens_; }  // consumed
    [[nodiscard]] double progress() const { return static_cast<double>(step_) / static_cast<double>(config_.training.steps); }
    void restore(int64_t step, int64_t tokens) { step_ = step, tokens_ = tokens; }

private:
    const TrainConfig& config_;
    DeepSeek& model_;
    Ops& ops_;
    Optimizer optimizer_;
    bool deterministic_;
    Arena scratch_, saved_, statistics_;
    std::vector<std::pair<int64_t, Moe*>> moe_layers_;
    int64_t step_ = 0, tokens_ = 0;

    [[nodiscard]] Context context() { return {ops_, scratch_, saved_, config_.training.dtype, deterministic_}; }
    [[nodiscard]] Batch to_batch(Context& cx, const TokenBatch& tokens, bool keep, const Routes& routes,
                                 std::vector<Routing>& record) const;
    void read_routes(const Routes& routes, const std::vector<Routing>& record);
    void balance(StepMetrics& metrics);
};

}  // namespace fathom
