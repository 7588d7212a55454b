// What every Hopper launcher needs on the host: tensor maps for the bulk copy engine, errors as fathom::Error, the device's size.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fathom::hopper {

// Throws Error(kDevice) with the name of the call when it failed.
void require(cudaError_t status, const char* what);

// A tensor of three dimensions, the first contiguous, read in boxes of [1, box_y, box_x] elements into shared memory rows of
// box_x elements that are 128-byte swizzled (box_x * element size = 128). Outside the tensor zeros are read. Strides in
// elements; base and strides must be multiples of 16 bytes.
struct TensorMap3 {
    const void* base = nullptr;
    CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    int64_t element_bytes = 2;
    int64_t size_x = 0, size_y = 0, size_z = 1;
    int64_t stride_y = 0, stride_z = 0;
    int box_x = 64, box_y = 64;
};
[[nodiscard]] CUtensorMap encode(const TensorMap3& t);

[[nodiscard]] int multiprocessors();  // of the current device

// Lets `kernel` use `bytes` of shared memory.
void allow_shared_memory(const void* kernel, int bytes);

}  // namespace fathom::hopper
