#include "app/device.h"

#include <fmt/format.h>
#include <string>

#include "base/error.h"
#include "cpu/cpu_ops.h"

namespace fathom {

void check_device(const Globals& globals) {
    const std::string& device = globals.device;
    if (device == "auto" || device == "cpu") return;
    if (device == "cuda" || device.starts_with("cuda:")) {
        throw Error(ErrorKind::kDevice, fmt::format("--device {}: this build has no CUDA plug-in; use --device cpu", device));
    }
    throw Error(ErrorKind::kUsage, fmt::format("--device {}: expected auto, cpu or cuda[:n]", device));
}

Device::Device(const Globals& globals) : threads_(globals.threads) {
    check_device(globals);
    ops_ = std::make_unique<CpuOps>(threads_);
}

}  // namespace fathom
