// Whole optimizer steps, on a data set of random tokens in a temporary folder.
#include <fmt/format.h>
#include <unistd.h>
#include <algorithm>
#include <filesystem>
#include <string>

#include "app/bench_model.h"
#include "app/bench_runs.h"
#include "base/error.h"
#include "base/file.h"
#include "io/token_shards_prepare.h"
#include "model/flop_count.h"
#include "model/memory_plan.h"
#include "train/trainer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

// Documents of exactly one row, so that attention costs what the formula says.
class RandomData {
public:
    RandomData(int64_t documents, int64_t length, int64_t vocab_size, ThreadPool& threads)
        : folder_(fs::temp_directory_path() / fmt::format("fathom-bench-{}", ::getpid())) {
        fs::create_directories(folder_);
        std::string lines;
        for (int64_t i = 0; i < documents; ++i) lines += fmt::format("{{\"text\": \"{}\"}}\n", i);
        write_text_atomically(folder_ / "seeds.jsonl", lines);
        PrepareOptions options;
        options.inputs = {{folder_ / "seeds.jsonl", {}}};
        options.vocab_size = vocab_size;
        options.out = folder_;
        const auto encode = [=](std::string_view text) {
            std::mt19937_64 random(std::stoull(std::string(text)));
            return random_tokens(random, length - 1, vocab_size);
        };
        (void)prepare_tokens(options, encode, threads, ProgressMode::kQuiet);
    }
    ~RandomData() {
        std::error_code ignored;
        fs::remove_all(folder_, ignored);
    }
    RandomData(const RandomData&) = delete;
    RandomData& operator=(const RandomData&) = delete;

    [[nodiscard]] TokenDataset open() const { return TokenDataset(folder_); }

private:
    fs::path folder_;
};

TrainConfig configure(const BenchOptions& options) {
    const ConfigFile file = read_config_file(options.random_config.empty() ? options.model : options.random_config);
    TrainConfig config = file.training.value_or(TrainConfig());
    config.model.config = file.model;
    config.lr_scheduler = {.kind = ScheduleKind::kConstant};
    config.optimizer.lr = 1e-4;  // random tokens teach nothing; stay where the gradient is finite
    config.training.gradient_accumulation = 1;
    config.training.steps = int64_t{1} << 20;
    if (options.batch > 0) config.training.rows_per_batch = options.batch;
    if (options.sequence_length > 0) config.data.sequence_length = options.sequence_length;
    if (options.dtype != "auto" && options.dtype != "f32" && options.dtype != "bf16")
        throw Error(ErrorKind::kUsage,
                    "training keeps weights in f32 or bf16: --dtype " + options.dtype + " is for decode and prefill");
    if (options.dtype != "auto") config.training.dtype = options.dtype == "f32" ? DType::kF32 : DType::kBF16;
    if (options.moments != "auto") config.optimizer.moments = options.moments == "f32" ? DType::kF32 : DType::kBF16;
    if (options.recompute) config.training.recompute = true;
    return config;
}

}  // namespace

Measurement bench_train(const BenchOptions& options, Device& device, const Between& between) {
    const TrainConfig config = configure(options);
    const ModelConfig& shape = config.model.config;
    const int64_t rows = config.training.rows_per_batch, length = config.data.sequence_length,
                  steps = std::max<int64_t>(options.steps, 1);
    const RandomData data(8 * rows, length, shape.vocab_size, device.threads());
    DeepSeek model(shape);
    Trainer trainer(config, model, device.ops(),
                    std::make_unique<PackedLoader>(data.open(), PackedLoaderOptions{length, rows, 1, true}), false);
    trainer.optimizer().initialize(1, config.model.init_std);
    (void)trainer.step();  // allocates

    Measurement result;
    result.tokens = steps * rows * length;
    for (int64_t i = 0; i < options.repetitions; ++i) {
        between();
        const Stopwatch watch;
        for (int64_t step = 0; step < steps; ++step) (void)trainer.step();
        watch.stop(result);
    }
    const DryRun run =
        dry_run_training(shape, rows, length, config.training.dtype, config.training.recompute, config.optimizer.moments);
    result.bytes_per_token =
        (run.cost.weight_bytes + run.cost.read_bytes + run.cost.written_bytes) / static_cast<double>(run.tokens);
    result.flops_per_token = count_flops(shape, mean_keys(length)).training();
    result.dtype = name_of(config.training.dtype);
    for (const Optimizer::State& state : trainer.optimizer().states()) result.parameters += state.param->size();
    return result;
}

}  // namespace fathom
