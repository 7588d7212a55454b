// The model tests of tests/model on a GPU.
#include <array>

#include "base/error.h"
#include "cuda/plugin.h"
#include "model/back_ends.h"

namespace fathom {

std::vector<std::string> back_ends() { return {"cuda"}; }

std::unique_ptr<Ops> make_ops(const std::string& /*back_end*/) {
    std::array<char, 512> message{};
    std::unique_ptr<Ops> ops(fathom_cuda_open(0, "f32", false, message.data(), message.size()));
    if (ops == nullptr) throw Error(ErrorKind::kDevice, message.data());
    return ops;
}

}  // namespace fathom
