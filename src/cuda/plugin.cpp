// What the plug-in gives to app/device.cpp, which opens it at run time.
#include "cuda/plugin.h"

#include <cstdio>

#include "base/error.h"
#include "cuda/cuda_ops.h"

extern "C" {

const char* fathom_cuda_version() { return FATHOM_VERSION; }

fathom::Ops* fathom_cuda_open(int device, bool bf16, bool deterministic, char* message, int64_t size) {
    try {
        return new fathom::CudaOps(device, bf16 ? fathom::DType::kBF16 : fathom::DType::kF32, deterministic);
    } catch (const std::exception& error) {
        (void)std::snprintf(message, static_cast<size_t>(size), "%s", error.what());
        return nullptr;
    }
}
}
