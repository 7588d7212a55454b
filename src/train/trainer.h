// One optimizer step of pre-training: forward, losses, backward, clipping, AdamW, router bias.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "io/packed_loader.h"
#include "train/config.h"
#include "train/metrics.h"
#include "train/optimizer.h"

namespace fathom {

// Everything that a resumed run must continue from, besides masters, moments and router biases.
struct TrainerState {
    int64_t step = 0;    // optimizer steps done
    int64_t tokens = 0;  // consumed
    PackedLoader::State loader;
};

class Trainer {
public:
    // Trains `model` in place; `deterministic`: the arithmetic of docs/decisions/001, point 5.
    Trainer(const TrainConfig& config, DeepSeek& model, Ops& ops, PackedLoader loader, bool deterministic);

    // Consumes gradient_accumulation batches and makes one update.
    StepMetrics step();
    // -log p of every row's target, 0 without one: [n]. The training state stays as it is.
    [[nodiscard]] std::vector<float> token_losses(const TokenBatch& tokens);
    // Their mean over the batches of `loader` from its beginning, at most `limit` (0 = all).
    [[nodiscard]] double evaluate(PackedLoader& loader, int64_t limit);

    [[nodiscard]] Optimizer& optimizer() { return optimizer_; }
    [[nodiscard]] TrainerState state() const { return {step_, tokens_, loader_.state()}; }
    void restore(const TrainerState& state);

private:
    // Targets of all batches of a step, and sums of -log p over them.
    struct Losses {
        int64_t count = 0, mtp_count = 0;  // mtp_count: of one module at the first depth
        double sum = 0, mtp_sum = 0;
    };

    const TrainConfig& config_;
    DeepSeek& model_;
    Ops& ops_;
    Optimizer optimizer_;
    PackedLoader loader_;
    bool deterministic_;
    Arena scratch_, saved_, statistics_;
    std::vector<std::pair<int64_t, Moe*>> moe_layers_;
    int64_t step_ = 0, tokens_ = 0;

    [[nodiscard]] Context context() { return {ops_, scratch_, saved_, config_.training.dtype, deterministic_}; }
    [[nodiscard]] Batch to_batch(Context& cx, const TokenBatch& tokens, bool keep) const;
    [[nodiscard]] std::vector<TokenBatch> next_batches();
    void accumulate(Losses& losses, const TokenBatch& tokens, double mtp_lambda);
    void accumulate_mtp(Context& cx, Losses& losses, const TokenBatch& tokens, const Tensor& dhidden, double lambda,
                        DeepSeek::Saved& saved);
    [[nodiscard]] std::vector<float> to_host(const Tensor& losses);
    [[nodiscard]] double sum_of(const Tensor& losses);
    void balance(StepMetrics& metrics);
};

}  // namespace fathom
