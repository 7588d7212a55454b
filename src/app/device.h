// The hardware that a verb computes on, from --device and --threads.
#pragma once

#include <memory>

#include "app/verb.h"
#include "base/threads.h"
#include "ops/ops.h"

namespace fathom {

// Threads and a back end. Stays where it was built: the back end holds on to the threads.
class Device {
public:
    // auto is cpu. `keeps_f32`: the CPU rounds no activation to bf16 (docs/decisions/014), --deterministic or not: for
    // training, what is compared with it, and models in f32. Throws what check_device throws.
    explicit Device(const Globals& globals, bool keeps_f32 = false);
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    [[nodiscard]] ThreadPool& threads() { return threads_; }
    [[nodiscard]] Ops& ops() { return *ops_; }

private:
    ThreadPool threads_;
    std::unique_ptr<Ops> ops_;
};

// Throws Error{kDevice} for a device that this build cannot use, Error{kUsage} for what is none.
void check_device(const Globals& globals);

}  // namespace fathom
