// What the verbs that train share: their options, what a run amounts to, and what they say at its end.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "app/verb.h"
#include "train/run.h"

namespace fathom {

struct TrainingOptions {
    std::string config;
    std::vector<std::string> overrides;
    std::string resume;
    bool print_config = false, dry_run = false;

    // CONFIG, section.key=value ..., --resume, --print-config, --dry-run; `page` is the verb's in docs/verbs.
    void declare(CLI::App& verb, const std::string& page);
    // Prints the configuration or the plan where that was asked for; then there is nothing to run.
    [[nodiscard]] bool only_shows(const TrainConfig& config, const Globals& globals) const;
};

// Prints the summary. Throws Error{kInterrupted} where the run was stopped.
void report_training(const RunSummary& summary, const Globals& globals);

}  // namespace fathom
