// fathom bench: how fast this machine decodes, prefills and trains, and what part of what it could.
#include <fmt/format.h>
#include <sys/resource.h>
#include <time.h>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "app/bench_masks.h"
#include "app/bench_roofs.h"
#include "app/bench_runs.h"
#include "app/bench_serve.h"
#include "app/bench_speculation.h"
#include "app/generate_model.h"
#include "app/verb.h"
#include "base/error.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

// Rates in units per second, fractions of the roofs measured in between.
struct Report {
    double tokens = 0, slowest = 0, fastest = 0;  // median of the repetitions, and the extremes
    double read_bytes = 0, read_roof = 0;
    double flops = 0, fma_roof = 0;
    std::optional<double> onednn_roof;

    Report(const Measurement& m, const Roofs& roofs)
        : tokens(rate(m, median(m.seconds))),
          slowest(rate(m, *std::ranges::max_element(m.seconds))),
          fastest(rate(m, *std::ranges::min_element(m.seconds))),
          read_bytes(tokens * m.bytes_per_token),
          read_roof(roofs.read_bytes()),
          flops(tokens * m.flops_per_token),
          fma_roof(roofs.fma_flops()),
          onednn_roof(roofs.onednn_flops()) {}

    [[nodiscard]] double bandwidth_fraction() const { return read_bytes / read_roof; }
    [[nodiscard]] double matrix_roof() const { return onednn_roof.value_or(fma_roof); }
    [[nodiscard]] double matrix_fraction() const { return flops / matrix_roof(); }
    [[nodiscard]] const char* matrix_roof_name() const {
        return onednn_roof ? "oneDNN sgemm 2048^3" : "fused multiply-adds from registers (no oneDNN on this machine)";
    }

private:
    [[nodiscard]] static double rate(const Measurement& m, double seconds) { return static_cast<double>(m.tokens) / seconds; }
};

double seconds_of(clockid_t clock) {
    timespec time{};
    ::clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Bytes of the process so far, pages of mapped files included.
int64_t peak_memory() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return int64_t{usage.ru_maxrss} * 1024;
}

void print_json(const BenchOptions& options, const Measurement& m, const Report& r, int threads, int64_t memory) {
    Json json{{"run", options.run},
              {"model", options.random_config.empty() ? options.model : options.random_config},
              {"parameters", m.parameters},
              {"dtype", m.dtype},
              {"threads", threads},
              {"repetitions", options.repetitions},
              {"tokens_per_repetition", m.tokens},
              {"tokens_per_second", r.tokens},
              {"tokens_per_second_min", r.slowest},
              {"tokens_per_second_max", r.fastest},
              {"cpu_seconds_per_token", median(m.cpu_seconds) / static_cast<double>(m.tokens)},
              {"peak_memory_bytes", memory},
              {"bytes_per_token", m.bytes_per_token},
              {"read_gb_per_s", r.read_bytes / 1e9},
              {"machine_read_gb_per_s", r.read_roof / 1e9},
              {"bandwidth_fraction", r.bandwidth_fraction()},
              {"flops_per_token", m.flops_per_token},
              {"f32_gflops", r.flops / 1e9},
              {"onednn_gflops", r.onednn_roof ? Json(*r.onednn_roof / 1e9) : Json()},
              {"fma_gflops", r.fma_roof / 1e9},
              {"matrix_roof", r.matrix_roof_name()},
              {"matrix_fraction", r.matrix_fraction()}};
    if (m.paging) json["experts"] = m.paging->json();
    fmt::print("{}\n", json.dump(2));
}

void print_text(const BenchOptions& options, const Measurement& m, const Report& r, int threads, int64_t memory) {
    fmt::print("{:<10} {} tokens/s (median of {}; {:.4g} to {:.4g}), {} parameters in {}, {} threads\n", options.run,
               human_count(r.tokens), options.repetitions, r.slowest, r.fastest, human_count(static_cast<double>(m.parameters)),
               m.dtype, threads);
    fmt::print("{:<10} {} a token, {:.3g} GB/s = {:.1f} % of the {:.3g} GB/s that this machine reads; {} in all\n", "memory",
               human_bytes(m.bytes_per_token), r.read_bytes / 1e9, 100 * r.bandwidth_fraction(), r.read_roof / 1e9,
               human_bytes(static_cast<double>(memory)));
    fmt::print("{:<10} {}FLOP a token, {:.3g} GFLOP/s = {:.1f} % of {:.3g}: {}\n", "compute", human_count(m.flops_per_token),
               r.flops / 1e9, 100 * r.matrix_fraction(), r.matrix_roof() / 1e9, r.matrix_roof_name());
    if (m.paging) fmt::print("{}\n", m.paging->summary());
}

void bench(const BenchOptions& options, const Globals& globals) {
    if (options.model.empty() == options.random_config.empty()) {
        throw Error(ErrorKind::kUsage, "give either a MODEL folder or --random-config FILE");
    }
    if (options.ram > 0 && options.run == "train")
        throw Error(ErrorKind::kUsage, "--ram is for decode and prefill: training holds the whole model");
    Device device(globals, options.run == "train");
    Roofs roofs(device.threads());
    Progress progress("bench " + options.run, options.repetitions, "rounds", globals.progress());
    int64_t round = 0, memory = 0;
    const auto between = [&] {
        if (round == 0) memory = peak_memory();  // without the roofs' own buffers
        roofs.measure();
        progress.update(++round);
    };
    const auto run = options.run == "decode" ? bench_decode : options.run == "prefill" ? bench_prefill : bench_train;
    const Measurement measurement = run(options, device, between);
    progress.finish();
    (globals.json ? print_json : print_text)(options, measurement, Report(measurement, roofs), device.threads().size(), memory);
}

void declare(CLI::App& verb, BenchOptions& o) {
    constexpr int64_t kMost = 1 << 30;
    const auto number = [&](const char* name, int64_t& value, const char* text, const char* group) {
        verb.add_option(name, value, text)->type_name("N")->check(CLI::Range(int64_t{0}, kMost))->group(group);
    };
    verb.add_option("run", o.run, "decode, prefill or train")
        ->type_name("RUN")
        ->check(CLI::IsMember({"decode", "prefill", "train"}));
    verb.add_option("model", o.model, "a Hugging Face model folder, or a GGUF file")->type_name("MODEL");
    verb.add_option("--random-config", o.random_config,
                    "instead of MODEL: config.json or a training configuration; weights are drawn at random")
        ->type_name("FILE");
    verb.add_option("--dtype", o.dtype,
                    "hold the weights as f32 or bf16, or draw codes of fp8, int8 or int4; auto: as stored, else bf16")
        ->type_name("TYPE")
        ->check(CLI::IsMember({"auto", "f32", "bf16", "fp8", "int8", "int4"}));
    verb.add_option("--repetitions", o.repetitions, "of the measurement; the roofs are measured before each")
        ->type_name("N")
        ->check(CLI::Range(int64_t{1}, kMost));
    verb.add_option("--batch,--rows", o.batch, "sequences at a time; 0: 1, or what the training configuration says")
        ->type_name("N")
        ->check(CLI::Range(int64_t{0}, kMost));
    const char* text = "Decode and prefill";
    number("--depth", o.depth, "tokens in the cache before the measured ones", text);
    number("--prompt-tokens", o.prompt_tokens, "prefill: new tokens of each prompt (0: 512); decode: added to --depth", text);
    number("--max-new-tokens", o.max_new_tokens, "decode: tokens per sequence and repetition; 0: 32", text);
    number("--reading", o.reading, "decode: tokens of a new prompt that every step reads beside the answers", text);
    add_cache_type(verb, o.cache_type)->group(text);
    verb.add_option("--ram", o.ram,
                    "memory to use, as in 8G: routed experts that do not fit are read from the file when needed (CPU)")
        ->type_name("SIZE")
        ->transform(CLI::AsSizeValue(false))
        ->group(text);
    number("--steps", o.steps, "optimizer steps per repetition; 0: 1", "Train");
    number("--sequence-length", o.sequence_length, "0: 1024, or what the training configuration says", "Train");
    verb.add_flag("--recompute", o.recompute, "recompute whole layers in the backward")->group("Train");
    verb.add_option("--moments", o.moments, "of AdamW; auto: f32, or what the training configuration says")
        ->type_name("TYPE")
        ->check(CLI::IsMember({"auto", "f32", "bf16"}))
        ->group("Train");
}

}  // namespace

Stopwatch::Stopwatch() : start_(seconds_of(CLOCK_MONOTONIC)), cpu_start_(seconds_of(CLOCK_PROCESS_CPUTIME_ID)) {}

void Stopwatch::stop(Measurement& to) const {
    to.seconds.push_back(seconds_of(CLOCK_MONOTONIC) - start_);
    to.cpu_seconds.push_back(seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_start_);
}

void add_bench(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<BenchOptions>();
    CLI::App* verb = app.add_subcommand("bench", "measure decoding, prefilling and training against this machine's roofs");
    verb->footer(
        "Examples:\n"
        "  fathom bench decode models/stories --batch 4 --depth 256\n"
        "  fathom bench prefill models/stories --prompt-tokens 512 --json\n"
        "  fathom bench train --random-config run.toml --steps 2\n"
        "  fathom bench serve --num-prompts 200 --max-concurrency 32\n");
    declare(*verb, *options);
    add_bench_serve(*verb, globals);
    add_bench_masks(*verb, globals);
    add_bench_speculation(*verb, globals);
    verb->callback([verb, options, &globals] {
        if (!verb->get_subcommands().empty()) return;
        if (options->run.empty())
            throw Error(ErrorKind::kUsage,
                        "bench what? decode, prefill, train, serve, masks or speculation (see fathom bench --help)");
        bench(*options, globals);
    });
}

}  // namespace fathom
