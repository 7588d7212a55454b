// What fathom bench measures: decoding, prefilling and training, each a few equal repetitions between which roofs are measured.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "app/config_file.h"
#include "app/device.h"
#include "app/paged_experts.h"

namespace fathom {

struct BenchOptions {
    std::string run;            // decode, prefill or train
    std::string model;          // a model folder, or empty
    std::string random_config;  // a configuration; weights are drawn at random
    bool with_mtp = false;      // load, or draw, the MTP modules too
    double agreeing = 0;        // random weights: of a kind that makes this share of a module's guesses come true; 0: as drawn
    std::string dtype = "auto";
    std::string cache_type = "f32";
    int64_t batch = 0;           // sequences; 0: 1, for training what the configuration says
    int64_t prompt_tokens = 0;   // prefill: tokens measured per sequence
    int64_t depth = 0;           // tokens in the cache before the measured ones
    int64_t max_new_tokens = 0;  // decode: steps per repetition
    int64_t reading = 0;         // decode: tokens of a new prompt that every step reads as well
    int64_t steps = 0;           // train: steps per repetition
    int64_t sequence_length = 0;
    bool recompute = false;
    std::string moments = "auto";
    int64_t repetitions = 5;
    int64_t ram = 0;  // decode, prefill: bytes; 0: the whole model in memory
};

struct Measurement {
    int64_t tokens = 0;                   // per repetition
    std::vector<double> seconds;          // of the repetitions
    std::vector<double> cpu_seconds;      // of the process in them, all threads: little disturbed by other work on the machine
    double bytes_per_token = 0;           // decode, prefill: weights and cache; train: everything that the list of ops touches
    double flops_per_token = 0;           // count_flops
    std::string dtype;                    // of the weights
    int64_t parameters = 0;               // in memory
    std::optional<PagingFigures> paging;  // with `ram`: in the repetitions
};

// Times one repetition, from its construction on.
class Stopwatch {
public:
    Stopwatch();
    // Adds the repetition to `to`.
    void stop(Measurement& to) const;

private:
    double start_, cpu_start_;
};

// Called before each repetition.
using Between = std::function<void()>;

// Greedy decoding of `batch` sequences that are `depth` tokens long, through the engine; beside them, as in a busy server,
// every step may read the prompt of another, whose tokens are not counted.
[[nodiscard]] Measurement bench_decode(const BenchOptions& options, Device& device, const Between& between);
// `batch` prompts of `prompt_tokens` random tokens behind `depth` cached ones, until each has its first new token.
[[nodiscard]] Measurement bench_prefill(const BenchOptions& options, Device& device, const Between& between);
// Whole optimizer steps on random tokens; from a model folder only the configuration is used.
[[nodiscard]] Measurement bench_train(const BenchOptions& options, Device& device, const Between& between);

}  // namespace fathom
