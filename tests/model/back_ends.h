// The back ends that the model tests run on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace fathom {

// "reference" (f64, plain loops) and the others linked in.
[[nodiscard]] std::vector<std::string> back_ends();
[[nodiscard]] std::unique_ptr<Ops> make_ops(const std::string& back_end);

}  // namespace fathom
