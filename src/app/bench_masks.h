// fathom bench masks: what structured output costs per token.
#pragma once

#include <CLI/CLI.hpp>

#include "app/verb.h"

namespace fathom {

void add_bench_masks(CLI::App& bench, Globals& globals);

}  // namespace fathom
