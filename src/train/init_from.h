// The weights that training begins with.
#pragma once

#include <optional>

#include "checkpoint/checkpoint.h"
#include "train/config.h"
#include "train/optimizer.h"

namespace fathom {

// Points the parameters of `model` to the checkpoint model.init_from, whose memory the result owns until an Optimizer has
// copied it. A classifier that starts from a language model has no score.weight yet: it stays unbound, and an Optimizer makes
// it 0. Nothing when init_from is empty: then initialize. Throws Error{kInput} for a checkpoint of another shape.
[[nodiscard]] std::optional<LoadedModel> bind_initial_weights(const TrainConfig& config, DeepSeek& model, Ops& ops);

}  // namespace fathom
