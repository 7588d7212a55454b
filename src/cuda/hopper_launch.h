// What every Hopper launcher needs on the host: tensor maps for the bulk copy engine, errors as fathom::Error, the device's
// size.
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
    bool swizzle = true;  // else box_x is free
};
[[nodiscard]] CUtensorMap encode(const TensorMap3& t);

// Whether the current device has Hopper's instructions. FATHOM_CUDA_PORTABLE=1 in the environment says no, so that the portable
// kernels can be tested on a Hopper card; read once.
[[nodiscard]] bool available();

[[nodiscard]] int multiprocessors();  // of the device, which a process does not change

// Lets `kernel` use `bytes` of shared memory; the driver is asked once.
void allow_shared_memory(const void* kernel, int bytes);

// Launches `kernel` so that its blocks may start while the kernel before it in the stream ends (programmatic dependent launch):
// the kernel must call wait_for_earlier_launch() before it touches memory, or, if it needs nothing of the kernel before it and
// that one was not launched early, before it ends. Saves about a microsecond between small kernels.
template <typename... Parameters, typename... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, cudaStream_t stream,
                  const Arguments&... arguments) {
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = 1;
    require(cudaLaunchKernelEx(&config, kernel, arguments...), "cudaLaunchKernelEx");
}

}  // namespace fathom::hopper
