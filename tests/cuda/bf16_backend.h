// The back end with bf16 activations, for tests on a GPU.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "cuda/plugin.h"
#include "ops/backends.h"

namespace fathom {

// None where there is no GPU: the tests are then not instantiated.
template <bool kDeterministic>
[[nodiscard]] std::vector<Backend> bf16_backend(const char* name) {
    std::array<char, 512> message{};
    static const std::shared_ptr<Ops> ops(fathom_cuda_open(0, "bf16", kDeterministic, message.data(), message.size()));
    if (ops == nullptr) return {};
    return {{name, [](int /*threads*/) { return ops; }}};
}

}  // namespace fathom
