// The back ends that the op tests run on: every test of this folder is written once and holds for each of them.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace fathom {

struct Backend {
    std::string name;
    std::function<std::shared_ptr<Ops>(int threads)> make;
};

// What googletest prints for it.
inline void PrintTo(const Backend& backend, std::ostream* out) { *out << backend.name; }

// Those linked in that this machine can run.
[[nodiscard]] std::vector<Backend> backends();

}  // namespace fathom
