#include "app/training_verb.h"

#include <fmt/format.h>
#include <iostream>
#include <nlohmann/json.hpp>

#include "app/table.h"
#include "model/memory_plan.h"
#include "model/parameter_count.h"

namespace fathom {
namespace {

// What the run amounts to, from the configuration alone.
void print_plan(const TrainConfig& config, const Globals& globals) {
    const ParameterCount count = count_parameters(config.model.config);
    const auto& t = config.training;
    const int64_t step_tokens = config.data.sequence_length * t.rows_per_batch * t.gradient_accumulation;
    const int64_t state_bytes = plan_training_state(config.model.config, t.dtype, config.optimizer.moments).total();
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

}  // namespace

void report_training(const RunSummary& summary, const Globals& globals) {
    if (globals.json) {
        nlohmann::ordered_json json{{"steps", summary.steps}, {"first_step", summary.first_step}, {"tokens", summary.tokens}};
        if (summary.loss) json["loss"] = *summary.loss;
        if (summary.valid_loss) json["val_loss"] = *summary.valid_loss;
        json["checkpoint"] = summary.checkpoint.string();
        json["interrupted"] = summary.interrupted;
        std::cout << json.dump() << "\n";
    } else {
        fmt::print(
            "{} step {}, {} tokens{}{}\ncheckpoint {}\n", summary.interrupted ? "stopped at" : "finished", summary.steps,
            human_count(static_cast<double>(summary.tokens)), summary.loss ? fmt::format(", loss {:.4f}", *summary.loss) : "",
            summary.valid_loss ? fmt::format(", validation {:.4f}", *summary.valid_loss) : "", summary.checkpoint.string());
    }
    if (summary.interrupted) throw Error(ErrorKind::kInterrupted, "interrupted: saved; continue with --resume auto");
}

void TrainingOptions::declare(CLI::App& verb, const std::string& page) {
    verb.add_option("config", config, "TOML file (docs/verbs/" + page + " lists the keys)")->required()->type_name("FILE");
    verb.add_option("overrides", overrides, "section.key=value, on top of the file");
    verb.add_option("--resume", resume,
                    "auto: continue if job.dir holds a checkpoint, else start; latest; or a checkpoint folder")
        ->type_name("auto|latest|PATH");
    verb.add_flag("--print-config", print_config, "print the effective configuration, defaults included, and stop");
    verb.add_flag("--dry-run", dry_run, "print parameters, tokens and the memory of weights and optimizer, and stop");
}

bool TrainingOptions::only_shows(const TrainConfig& train, const Globals& globals) const {
    if (print_config)
        fmt::print("{}", train.text);
    else if (dry_run)
        print_plan(train, globals);
    return print_config || dry_run;
}

}  // namespace fathom
