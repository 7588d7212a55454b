// metrics.jsonl: what a training run reports, one JSON object per step. It is the source; TensorBoard and the plots follow it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace fathom {

// One line. Losses are means over tokens in nats; absent values are not written. Per-layer lists have one entry per MoE layer.
struct StepMetrics {
    int64_t step = 0;    // optimizer steps done, from 1
    int64_t tokens = 0;  // consumed since the beginning of the run
    std::optional<double> loss, val_loss, mtp_loss, balance_loss;
    std::optional<double> lr, grad_norm;               // grad_norm: before clipping
    std::optional<double> tokens_per_second, elapsed;  // elapsed: seconds since the beginning, over all restarts
    std::vector<int64_t> moe_layers;                   // the model's numbers of these layers; MTP modules come last
    std::vector<double> max_vio;                       // per layer: max load / mean load - 1
    std::vector<double> load_std;                      // per layer: standard deviation of load / mean load
    std::vector<int64_t> dead_experts;                 // per layer: experts without a token
    std::vector<std::vector<int64_t>> expert_load;     // [layers][experts] tokens; every few steps
    std::vector<std::pair<std::string, double>>
        more;  // scalars of one kind of training, e.g. "reward", "completions/mean_length"

    [[nodiscard]] bool operator==(const StepMetrics&) const = default;
};

// The object without a line break. NaN and infinity become null, JSON having neither.
[[nodiscard]] std::string to_json(const StepMetrics& metrics);

// Every number as a curve with a name: "loss", "lr", ..., lists as "max_vio/layer_3" and their "max_vio/max" or "/mean".
[[nodiscard]] std::vector<std::pair<std::string, double>> scalars(const StepMetrics& metrics);

// The model's number of MoE layer `i`; `i` itself where the run did not say.
[[nodiscard]] int64_t layer_number(const StepMetrics& metrics, size_t i);

// Reads a metrics.jsonl; a torn last line (a killed run) is left out, null is NaN. Throws Error{kInput} naming file and line.
[[nodiscard]] std::vector<StepMetrics> read_metrics(const std::filesystem::path& path);

// Appends lines; each reaches the operating system at once, so that a kill -9 loses at most the line being written.
class MetricsWriter {
public:
    // Keeps the lines of steps <= `last_step` and drops what a killed run wrote after its last checkpoint. 0: starts afresh.
    MetricsWriter(const std::filesystem::path& path, int64_t last_step);

    void append(const StepMetrics& metrics);  // throws Error{kIo}

private:
    struct Close {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };
    std::filesystem::path path_;
    std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace fathom
