#include <memory>

#include "app/device.h"
#include "app/training_verb.h"
#include "app/verb.h"
#include "rl/grpo_run.h"

namespace fathom {
namespace {

struct GrpoOptions : TrainingOptions {
    bool fast = false;
};

void grpo(const GrpoOptions& options, const Globals& globals) {
    const GrpoConfig config = GrpoConfig::load(options.config, options.overrides);
    if (options.only_shows(config.train, globals)) return;
    Globals how = globals;
    how.deterministic = !options.fast;  // the device's kernels, too: on a GPU a batch's last few rows took others
    Device device(how, true);
    report_training(run_grpo(config, device.ops(), {options.resume, how.deterministic, globals.progress()}), globals);
}

}  // namespace

void add_grpo(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<GrpoOptions>();
    CLI::App* verb =
        app.add_subcommand("grpo", "Reinforcement learning: rewards for sampled answers (GRPO and its corrections)");
    verb->footer(
        "Examples:\n"
        "  fathom grpo grpo.toml\n"
        "  fathom grpo grpo.toml grpo.beta=0.001 grpo.loss_type=dr_grpo job.dir=runs/b\n"
        "  fathom grpo grpo.toml --resume auto      go on after a stop or a crash, to the bit\n");
    options->declare(*verb, "grpo.md");
    verb->add_flag("--fast", options->fast,
                   "without --deterministic, which is the default here: sampler and trainer may round differently");
    verb->callback([options, &globals] { grpo(*options, globals); });
}

}  // namespace fathom
