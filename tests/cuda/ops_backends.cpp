// The op tests of tests/ops on a GPU: they are written once for all back ends.
#include <array>

#include "cuda/plugin.h"
#include "ops/backends.h"

namespace fathom {

// None where there is no GPU: the tests of this program are then not instantiated. One back end for all "numbers of threads":
// two of them have a stream each, and do not wait for one another.
std::vector<Backend> backends() {
    std::array<char, 512> message{};
    static const std::shared_ptr<Ops> ops(fathom_cuda_open(0, "f32", false, message.data(), message.size()));
    if (ops == nullptr) return {};
    return {{"Cuda", [](int /*threads*/) { return ops; }}};
}

}  // namespace fathom
