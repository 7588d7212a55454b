#include <fmt/format.h>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/device.h"
#include "app/table.h"
#include "app/verb.h"
#include "model/parameter_count.h"
#include "train/run.h"

namespace fathom {
namespace {

struct TrainOptions {
    std::string config;
    std::vector<std::string> overrides;
    std::string resume;
    bool print_config = false, dry_run = false;
};

// What the run amounts to, from the configuration alone.
void print_plan(const TrainConfig& config, const Globals& globals) {
    const ParameterCount count = count_parameters(config.model.config);
    const int64_t parameters = count.total() + count.mtp;
    const auto& t = config.training;
    const int64_t step_tokens = config.data.sequence_length * t.rows_per_batch * t.gradient_accumulation;
    // Two moments and a gradient in f32, and the parameter: f32, or bf16 beside an f32 master.
    const int64_t state_bytes = parameters * (t.dtype == DType::kBF16 ? 18 : 16);
    const auto number = [](int64_t value) { return Cell(value, human_count(static_cast<double>(value))); };
    Table table({{"", "name"}, {"", "value", true}});
    table.add({"parameters", number(count.total())});
    table.add({"active parameters", number(count.active())});
    table.add({"MTP parameters", number(count.mtp)});
    table.add({"tokens per step", number(step_tokens)});
    table.add({"steps", Cell(t.steps)});
    table.add({"tokens", number(step_tokens * t.steps)});
    table.add({"memory of weights, gradients and optimizer", Cell(state_bytes, human_bytes(static_cast<double>(state_bytes)))});
    table.print(globals.json);
}

void report(const RunSummary& summary, const Globals& globals) {
    if (globals.json) {
        nlohmann::ordered_json json{{"steps", summary.steps}, {"first_step", summary.first_step}, {"tokens", summary.tokens}};
        if (summary.loss) json["loss"] = *summary.loss;
        if (summary.valid_loss) json["val_loss"] = *summary.valid_loss;
        json["checkpoint"] = summary.checkpoint.string();
        json["interrupted"] = summary.interrupted;
        std::cout << json.dump() << "\n";
        return;
    }
    fmt::print("{} step {}, {} tokens{}{}\ncheckpoint {}\n", summary.interrupted ? "stopped at" : "finished", summary.steps,
               human_count(static_cast<double>(summary.tokens)),
               summary.loss ? fmt::format(", loss {:.4f}", *summary.loss) : "",
               summary.valid_loss ? fmt::format(", validation {:.4f}", *summary.valid_loss) : "", summary.checkpoint.string());
}

void train(const TrainOptions& options, const Globals& globals) {
    const TrainConfig config = TrainConfig::load(options.config, options.overrides);
    if (options.print_config) {
        fmt::print("{}", config.text);
        return;
    }
    if (options.dry_run) return print_plan(config, globals);
    Device device(globals);
    const RunSummary summary =
        run_training(config, device.ops(), device.threads(), {options.resume, globals.deterministic, globals.progress()});
    report(summary, globals);
    if (summary.interrupted) throw Error(ErrorKind::kInterrupted, "interrupted: saved; continue with --resume auto");
}

}  // namespace

void add_train(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<TrainOptions>();
    CLI::App* verb = app.add_subcommand("train", "Pre-train a model on text or token shards");
    verb->footer(
        "Examples:\n"
        "  fathom train run.toml\n"
        "  fathom train run.toml training.steps=2000 optimizer.lr=1e-3 job.dir=runs/b\n"
        "  fathom train run.toml --resume auto      go on after a stop or a crash, to the bit\n"
        "  fathom train run.toml --dry-run          sizes, before anything is allocated\n");
    verb->add_option("config", options->config, "TOML file (docs/verbs/train.md lists the keys)")
        ->required()
        ->type_name("FILE");
    verb->add_option("overrides", options->overrides, "section.key=value, on top of the file");
    verb->add_option("--resume", options->resume,
                     "auto: continue if job.dir holds a checkpoint, else start; latest; or a checkpoint folder")
        ->type_name("auto|latest|PATH");
    verb->add_flag("--print-config", options->print_config, "print the effective configuration, defaults included, and stop");
    verb->add_flag("--dry-run", options->dry_run, "print parameters, tokens and the memory of weights and optimizer, and stop");
    verb->callback([options, &globals] { train(*options, globals); });
}

}  // namespace fathom
