// Random weights of any configuration, where a benchmark has no checkpoint.
#pragma once

#include <string>

#include "checkpoint/checkpoint.h"

namespace fathom {

// Draws the weights of loaded.model in memory of `ops`, as a loaded model has them: norms 1, biases 0, matrices of numbers of a
// table, cut differently for every matrix: enough to route tokens to all experts, and drawn in seconds. `type`: f32, bf16, or
// of the linear layers fp8 (blocks of 128 x 128), int8 or int4 (groups of 128 columns; of 64 or 32 where a matrix has no
// whole ones of 128), the others bf16.
void draw_weights(LoadedModel& loaded, const std::string& type, Ops& ops);

}  // namespace fathom
