// One optimizer step of pre-training or supervised fine-tuning: cross-entropy on the targets of a source of batches.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "train/learner.h"

namespace fathom {

// Everything that a resumed run must continue from, besides masters, moments and router biases.
struct TrainerState {
    int64_t step = 0;    // optimizer steps done
    int64_t tokens = 0;  // consumed
    BatchSource::State loader;
};

class Trainer {
public:
    // Trains `model` in place; `deterministic`: the arithmetic of docs/decisions/001, point 5.
    Trainer(const TrainConfig& config, DeepSeek& model, Ops& ops, std::unique_ptr<BatchSource> loader, bool deterministic);

    // Consumes gradient_accumulation batches and makes one update.
    StepMetrics step();
    // -log p of every row's target, 0 without one: [n]. The training state stays as it is.
    [[nodiscard]] std::vector<float> token_losses(const TokenBatch& tokens);
    // Their mean over the batches of `loader` from its beginning, at most `limit` (0 = all).
    [[nodiscard]] double evaluate(BatchSource& loader, int64_t limit);

    [[nodiscard]] Optimizer& optimizer() { return learner_.optimizer(); }
    [[nodiscard]] TrainerState state() const { return {learner_.step(), learner_.tokens(), loader_->state()}; }
    void restore(const TrainerState& state);

private:
    // Targets of all batches of a step, and sums of -log p over them.
    struct Losses {
        int64_t count = 0, mtp_count = 0;  // mtp_count: of one module at the first depth
        double sum = 0, mtp_sum = 0;
    };

    Learner learner_;
    std::unique_ptr<BatchSource> loader_;

    [[nodiscard]] std::vector<TokenBatch> next_batches();
    void accumulate(Losses& losses, const TokenBatch& tokens, double mtp_lambda);
    void accumulate_mtp(Context& cx, Losses& losses, const TokenBatch& tokens, const Tensor& dhidden, double lambda,
                        DeepSeek::Saved& saved);
    [[nodiscard]] double sum_of(const Tensor& losses);
};

}  // namespace fathom
