#include "model/back_ends.h"

#include "base/threads.h"
#include "cpu/cpu_ops.h"
#include "reference/reference_ops.h"

namespace fathom {

std::vector<std::string> back_ends() { return {"reference", "cpu"}; }

std::unique_ptr<Ops> make_ops(const std::string& back_end) {
    static ThreadPool pool(2);
    if (back_end == "reference") return std::make_unique<ReferenceOps<double>>();
    return std::make_unique<CpuOps>(pool);
}

}  // namespace fathom
