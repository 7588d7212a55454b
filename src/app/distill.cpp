#include "rl/distill.h"

#include <memory>

#include "app/device.h"
#include "app/training_verb.h"
#include "app/verb.h"

namespace fathom {
namespace {

void distill(const TrainingOptions& options, const Globals& globals) {
    const DistillConfig config = DistillConfig::load(options.config, options.overrides);
    if (options.only_shows(config.train, globals)) return;
    Device device(globals, true);
    report_training(run_distill(config, device.ops(), {options.resume, globals.deterministic, globals.progress()}), globals);
}

}  // namespace

void add_distill(CLI::App& app, Globals& globals) {
    auto options = std::make_shared<TrainingOptions>();
    CLI::App* verb = app.add_subcommand("distill", "Teach a smaller model by a larger one's probabilities, on its own answers");
    verb->footer(
        "Examples:\n"
        "  fathom distill distill.toml distill.teacher=runs/grpo/checkpoints/step-00000300\n"
        "  fathom distill distill.toml distill.kl=forward distill.on_policy=0.5\n"
        "Learning from a teacher's texts is `fathom rejection-sample` and `fathom sft`.");
    options->declare(*verb, "distill.md");
    verb->callback([options, &globals] { distill(*options, globals); });
}

}  // namespace fathom
