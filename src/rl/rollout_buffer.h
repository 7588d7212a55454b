// A generation on disk: what a resumed run needs to go on with the same answers, to the bit.
#pragma once

#include <filesystem>

#include "rl/grpo.h"

namespace fathom {

// `folder`/rollouts.safetensors, with a checksum.
void save_rollouts(const std::filesystem::path& folder, const RolloutBuffer& buffer);
// Throws Error{kInput} where the file is missing, damaged, or names prompts the run does not have.
[[nodiscard]] RolloutBuffer load_rollouts(const std::filesystem::path& folder, int64_t prompts);

}  // namespace fathom
