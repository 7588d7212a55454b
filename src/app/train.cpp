#include <memory>

#include "app/device.h"
#include "app/training_verb.h"
#include "app/verb.h"

namespace fathom {
namespace {

void train(const TrainingOptions& options, const Globals& globals) {
    const TrainConfig config = TrainConfig::load(options.config, options.overrides);
    if (options.only_shows(config, globals)) return;
    Device device(globals, true);
    report_training(
        run_training(config, device.ops(), device.threads(), {options.resume, globals.deterministic, globals.progress()}),
        globals);
}

}  // namespace

void add_train(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<TrainingOptions>();
    CLI::App* verb = app.add_subcommand("train", "Pre-train a model on text or token shards");
    verb->footer(
        "Examples:\n"
        "  fathom train run.toml\n"
        "  fathom train run.toml training.steps=2000 optimizer.lr=1e-3 job.dir=runs/b\n"
        "  fathom train run.toml --resume auto      go on after a stop or a crash, to the bit\n"
        "  fathom train run.toml --dry-run          sizes, before anything is allocated\n");
    options->declare(*verb, "train.md");
    verb->callback([options, &globals] { train(*options, globals); });
}

}  // namespace fathom
