// The model that fathom bench decodes with, and how many bytes of it a step reads.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "app/bench_runs.h"
#include "checkpoint/checkpoint.h"
#include "infer/engine.h"

namespace fathom {

class BenchModel {
public:
    // A checkpoint, or a configuration with random weights (random_weights.h). Error{kUsage} for a checkpoint in codes that it
    // does not have.
    BenchModel(const BenchOptions& options, Ops& ops);

    [[nodiscard]] const DeepSeek& model() const { return *loaded_.model; }
    // Where experts come from with `ram`, beside a cache of so many tokens; nothing without.
    [[nodiscard]] PagedExperts* page_experts(const BenchOptions& options, Ops& ops, int64_t cache_tokens);
    [[nodiscard]] const ModelConfig& config() const { return loaded_.model->config(); }
    [[nodiscard]] std::string dtype() const;
    [[nodiscard]] int64_t parameters() const { return parameters_; }
    // Bytes of all matrices that every forward reads, the head among them, the embedding table not.
    [[nodiscard]] int64_t dense_bytes() const { return dense_bytes_; }
    // Of one routed expert of any layer.
    [[nodiscard]] int64_t expert_bytes() const { return expert_bytes_; }

private:
    LoadedModel loaded_;
    std::unique_ptr<PagedExperts> paged_;  // goes before the model
    int64_t parameters_ = 0, dense_bytes_ = 0, expert_bytes_ = 0;

    void make_modules_agree(double share, Ops& ops);
    void count_bytes();
};

// Counts the distinct experts that the batches of an engine use: each is read once per batch.
class ExpertCounter {
public:
    explicit ExpertCounter(Ops& ops) : ops_(ops) {}
    void operator()(std::span<const Routing> routing);
    // Experts read since the last call, all layers together.
    [[nodiscard]] int64_t take() { return std::exchange(distinct_, 0); }

private:
    Ops& ops_;
    int64_t distinct_ = 0;
};

// Ids drawn evenly from the vocabulary.
[[nodiscard]] std::vector<int32_t> random_tokens(std::mt19937_64& random, int64_t count, int64_t vocab_size);

}  // namespace fathom
