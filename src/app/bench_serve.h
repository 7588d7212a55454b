// fathom bench serve: how fast a server answers, with vLLM's options and result keys.
#pragma once

#include <CLI/CLI.hpp>

#include "app/verb.h"

namespace fathom {

// Adds the subcommand "serve" to the verb bench.
void add_bench_serve(CLI::App& bench, Globals& globals);

}  // namespace fathom
