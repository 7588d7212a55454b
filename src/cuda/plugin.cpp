// What the plug-in gives to app/device.cpp, which opens it at run time.
#include "cuda/plugin.h"

#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "cuda/cuda_ops.h"

extern "C" {

const char* fathom_cuda_version() { return FATHOM_VERSION; }

fathom::Ops* fathom_cuda_open(int device, const char* compute, bool deterministic, char* message, int64_t size) {
    const bool fp8 = std::strcmp(compute, "fp8") == 0, bf16 = fp8 || std::strcmp(compute, "bf16") == 0;
    try {
        return new fathom::CudaOps(device, bf16 ? fathom::DType::kBF16 : fathom::DType::kF32, deterministic, fp8);
    } catch (const std::exception& error) {
        (void)std::snprintf(message, static_cast<size_t>(size), "%s", error.what());
        return nullptr;
    }
}
}
