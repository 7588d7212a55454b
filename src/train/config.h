// What a training run is told: a TOML file, with `section.key=value` from the command line on top.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "ops/ops.h"
#include "train/toml_section.h"

namespace fathom {

enum class ScheduleKind : uint8_t {
    kConstant,
    kCosine,  // to min_ratio at the last step
    kWsd,     // constant, then linear to min_ratio over the last decay_fraction
    kStep,    // times decay_factor at each of decay_at (DeepSeekMoE, V2: 0.316 at 80 % and 90 %)
    kV3,      // constant to 67.6 %, cosine to a tenth at 96.6 %, a tenth to 98.9 %, then a thirtieth (V3 4.2)
};

// All after a linear warm-up from 0. Fractions are of training.steps.
struct ScheduleConfig {
    ScheduleKind kind = ScheduleKind::kV3;
    int64_t warmup_steps = 0;
    double min_ratio = 0.1;
    double decay_fraction = 0.2;
    double decay_factor = 0.316;
    std::vector<double> decay_at{0.8, 0.9};
};

// Factor on the peak learning rate at `step` (0-based) of `steps`.
[[nodiscard]] double schedule_factor(const ScheduleConfig& schedule, int64_t step, int64_t steps);

struct TrainConfig {
    struct {
        std::filesystem::path dir;  // the run folder
        uint64_t seed = 0;
    } job;
    struct {
        ModelConfig config;               // from model.config (a file) with every other key of [model] on top
        std::filesystem::path tokenizer;  // folder or file; copied into checkpoints, needed to prepare text
        std::filesystem::path init_from;  // a checkpoint to start from; empty: random
        double init_std = 0.006;          // of every matrix (V2 3.1.2, V3 4.2)
    } model;
    struct {
        std::vector<std::filesystem::path> train, valid;  // a folder of token shards, or text and JSONL files
        int64_t sequence_length = 1024;
    } data;
    struct {
        double lr = 4.2e-4, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1;
        DType moments = DType::kF32;  // or kBF16 (V3 3.3.3)
    } optimizer;
    ScheduleConfig lr_scheduler;
    struct {
        int64_t steps = 0;
        int64_t rows_per_batch = 8;         // sequences in one forward
        int64_t gradient_accumulation = 1;  // forwards per optimizer step
        double clip = 1.0;                  // global gradient norm; 0 = off
        DType dtype = DType::kBF16;         // of the parameters; masters are f32
        bool recompute = false;             // activations of whole layers
        double mtp_lambda = 0.3;            // weight of the prediction modules' losses ...
        double mtp_lambda_final = 0.1;      // ... and from this fraction of the steps on
        double mtp_lambda_switch = 0.676;
    } training;
    struct {
        double bias_update_speed = 0.001;  // gamma (V3 2.1.2), for models with a correction bias
        double bias_update_until = 1.0;    // fraction of the steps after which gamma is 0
        std::vector<BalanceLoss> losses;
    } balance;
    struct {
        int64_t every = 0;  // steps; 0: only at the end
        int64_t keep = 3;
    } checkpoint;
    struct {
        int64_t every = 1;          // steps between lines of metrics.jsonl
        int64_t valid_every = 0;    // steps; 0: only at the end
        int64_t valid_batches = 0;  // 0: the whole set
        int64_t expert_load_every = 10;
    } metrics;

    std::string text;  // the effective configuration as TOML, with every default and absolute paths: the run's config.toml

    // Of one forward.
    [[nodiscard]] int64_t batch_tokens() const { return training.rows_per_batch * data.sequence_length; }

    // Reads a file; relative paths in it are relative to the file, job.dir to the working directory. Overrides are
    // "section.key=value". Throws Error{kInput} naming the key for what is unknown, of a wrong type or out of range.
    // `more`: sections of one kind of training.
    [[nodiscard]] static TrainConfig load(const std::filesystem::path& file, std::span<const std::string> overrides,
                                          const SectionReaders& more = {});
    // The same from text, for relative paths below `base`.
    [[nodiscard]] static TrainConfig parse(std::string_view toml, std::span<const std::string> overrides,
                                           const std::filesystem::path& base, const SectionReaders& more = {});
};

}  // namespace fathom
