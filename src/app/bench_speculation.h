// fathom bench speculation: what guessing tokens ahead with the model's MTP modules is worth.
#pragma once

#include <CLI/CLI.hpp>

#include "app/verb.h"

namespace fathom {

void add_bench_speculation(CLI::App& bench, Globals& globals);

}  // namespace fathom
