// What every verb of the fathom binary shares. A verb is one file, src/app/<verb>.cpp, with one function add_<verb> that
// declares its options on a CLI11 subcommand and sets a callback; main.cpp lists them and turns Errors into messages and exit
// codes.
//
// Conventions: the verb's examples are its footer ("Examples:\n  fathom ..."), which --help prints first; options may be
// gathered under a title with ->group("Sampling"); values get a ->type_name("N"); defaults are shown without being written
// down again.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "base/progress.h"

namespace fathom {

// Options that mean the same for every verb.
struct Globals {
    int threads = 0;              // --threads N; 0 = all
    bool json = false;            // --json: tables and results as JSON on stdout, nothing else there
    bool quiet = false;           // --quiet: no progress
    bool deterministic = false;   // --deterministic: batch-invariant arithmetic (docs/decisions/001)
    std::string device = "auto";  // --device auto|cpu|cuda[:n]
    std::string compute = "f32";  // --compute f32|bf16: type of activations on a GPU

    [[nodiscard]] ProgressMode progress() const { return quiet ? ProgressMode::kQuiet : ProgressMode::kAuto; }
};

void add_tokenize(CLI::App& app, Globals& globals);
void add_tokenizer(CLI::App& app, Globals& globals);
void add_data(CLI::App& app, Globals& globals);
void add_data_countdown(CLI::App& data);  // a verb of `fathom data`
void add_dump(CLI::App& app, Globals& globals);
void add_generate(CLI::App& app, Globals& globals);
void add_chat(CLI::App& app, Globals& globals);
void add_serve(CLI::App& app, Globals& globals);
void add_batch(CLI::App& app, Globals& globals);
void add_eval(CLI::App& app, Globals& globals);
void add_train(CLI::App& app, Globals& globals);
void add_sft(CLI::App& app, Globals& globals);
void add_grpo(CLI::App& app, Globals& globals);
void add_reward(CLI::App& app, Globals& globals);
void add_distill(CLI::App& app, Globals& globals);
void add_rejection_sample(CLI::App& app, Globals& globals);
void add_compare_samples(CLI::App& app, Globals& globals);
void add_convert(CLI::App& app, Globals& globals);
void add_quantize(CLI::App& app, Globals& globals);
void add_bench(CLI::App& app, Globals& globals);
void add_inspect(CLI::App& app, Globals& globals);
void add_plan(CLI::App& app, Globals& globals);
void add_plot(CLI::App& app, Globals& globals);
void add_doctor(CLI::App& app, Globals& globals);
void add_completion(CLI::App& app, Globals& globals);

}  // namespace fathom
