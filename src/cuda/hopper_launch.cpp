#include "cuda/hopper_launch.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/error.h"

namespace fathom::hopper {

namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// libcuda belongs to the driver: it is reached through the runtime, so that nothing links against it.
EncodeTiled find_encode() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    require(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
            "cudaGetDriverEntryPointByVersion");
    if (result != cudaDriverEntryPointSuccess)
        throw Error(ErrorKind::kDevice, "the CUDA driver is too old for Hopper kernels (cuTensorMapEncodeTiled is missing)");
    return reinterpret_cast<EncodeTiled>(found);
}

}  // namespace

void require(cudaError_t status, const char* what) {
    if (status != cudaSuccess)
        throw Error(ErrorKind::kDevice,
                    std::string(what) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
}

CUtensorMap encode(const TensorMap3& t) {
    static const EncodeTiled encode_tiled = find_encode();
    check(reinterpret_cast<uintptr_t>(t.base) % 16 == 0, "tensor map: the address is not a multiple of 16 bytes");
    check(t.stride_y * t.element_bytes % 16 == 0 && t.stride_z * t.element_bytes % 16 == 0,
          "tensor map: rows must lie multiples of 16 bytes apart");
    check(t.size_x > 0 && t.size_y > 0 && t.size_z > 0, "tensor map: empty tensor");
    // A dimension of size one may carry any stride; the encoder wants a positive one.
    const auto stride = [&](int64_t elements) {
        return static_cast<cuuint64_t>(std::max<int64_t>(elements * t.element_bytes, 16));
    };
    const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(t.size_x), static_cast<cuuint64_t>(t.size_y),
                                 static_cast<cuuint64_t>(t.size_z)};
    const cuuint64_t strides[2] = {stride(t.stride_y), stride(t.stride_z)};
    const cuuint32_t box[3] = {static_cast<cuuint32_t>(t.box_x), static_cast<cuuint32_t>(t.box_y), 1};
    const cuuint32_t steps[3] = {1, 1, 1};
    CUtensorMap map{};
    const CUresult result =
        encode_tiled(&map, t.type, 3, const_cast<void*>(t.base), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     t.swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        throw Error(ErrorKind::kDevice, "cuTensorMapEncodeTiled refused a tensor map (error " + std::to_string(result) + ")");
    return map;
}

bool available() {
    static const bool result = [] {
        const char* const portable = std::getenv("FATHOM_CUDA_PORTABLE");  // NOLINT(concurrency-mt-unsafe): nobody sets it
        if (portable != nullptr && std::string_view(portable) == "1") return false;
        int device = 0, major = 0;
        require(cudaGetDevice(&device), "cudaGetDevice");
        require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
        return major == 9;
    }();
    return result;
}

int multiprocessors() {
    static const int result = [] {
        int device = 0, count = 0;
        require(cudaGetDevice(&device), "cudaGetDevice");
        require(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
        return count;
    }();
    return result;
}

void allow_shared_memory(const void* kernel, int bytes) {
    thread_local std::unordered_map<const void*, int> allowed;
    if (std::exchange(allowed[kernel], bytes) == bytes) return;
    require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "cudaFuncSetAttribute");
}

}  // namespace fathom::hopper
