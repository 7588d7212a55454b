// The two functions that libfathom_cuda.so exports. Whoever opens it must have been built with it: they share C++ classes.
#pragma once

#include <cstdint>

#include "ops/ops.h"

extern "C" {

// Must equal the opener's own version.
__attribute__((visibility("default"))) const char* fathom_cuda_version();

// A back end on GPU `device` (0, 1, ...); the caller deletes it. `compute`: "f32" or "bf16", the type of activations, or "fp8":
// bf16 with the products of linear layers in FP8 (CudaOps). `deterministic`: a row's bits do not depend on its batch in bf16
// either (in f32 they never do). Null, with one sentence in `message` of `size` bytes, when it cannot be had.
__attribute__((visibility("default"))) fathom::Ops* fathom_cuda_open(int device, const char* compute, bool deterministic,
                                                                     char* message, int64_t size);
}
