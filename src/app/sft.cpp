#include <memory>

#include "app/device.h"
#include "app/training_verb.h"
#include "app/verb.h"
#include "train/sft.h"
namespace fathom {
namespace {

void sft(const TrainingOptions& options, const Globals& globals) {
    const SftConfig config = SftConfig::load(options.config, options.overrides);
    if (options.only_shows(config.train, globals)) return;
    Device device(globals, true);
    report_training(
        run_sft(config, device.ops(), device.threads(), {options.resume, globals.deterministic, globals.progress()}), globals);
}

}  // namespace

void add_sft(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<TrainingOptions>();
    CLI::App* verb = app.add_subcommand("sft", "Fine-tune a model on conversations: only the assistant's words are learned");
    verb->footer(
        "Examples:\n"
        "  fathom sft sft.toml\n"
        "  fathom sft sft.toml model.init_from=runs/base/checkpoints/step-00002000 job.dir=runs/sft\n"
        "  fathom sft sft.toml --resume auto        go on after a stop or a crash, to the bit\n");
    options->declare(*verb, "sft.md");
    verb->callback([options, &globals] { sft(*options, globals); });
}

}  // namespace fathom
