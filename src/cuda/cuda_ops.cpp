#include "cuda/cuda_ops.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "cuda/hopper_launch.h"

namespace fathom {
namespace {

// Compute capability 8.0 (Ampere) is the oldest that runs the PTX in the plug-in.
constexpr int kOldestMajor = 8;

// Makes GPU `device` the current one, or says why that cannot be.
void use_device(int device) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorInsufficientDriver) {
        int driver = 0, runtime = 0;
        (void)cudaDriverGetVersion(&driver);
        (void)cudaRuntimeGetVersion(&runtime);
        if (driver == 0) throw Error(ErrorKind::kDevice, "this machine has no NVIDIA driver; use --device cpu");
        throw Error(ErrorKind::kDevice,
                    fmt::format("the NVIDIA driver supports CUDA {}.{}, this build needs {}.{}: update the driver or use "
                                "--device cpu",
                                driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10));
    }
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
        throw Error(ErrorKind::kDevice, "this machine has no NVIDIA GPU that CUDA can see; use --device cpu");
    cuda::check_cuda(status, "looking for GPUs");
    if (device >= count)
        throw Error(ErrorKind::kDevice, fmt::format("there is no GPU {}: this machine has {}, counted from 0", device, count));
    cudaDeviceProp properties{};
    cuda::check_cuda(cudaGetDeviceProperties(&properties, device), "asking for the GPU's properties");
    if (properties.major < kOldestMajor) {
        throw Error(ErrorKind::kDevice,
                    fmt::format("{} has compute capability {}.{}, fathom needs 8.0 (Ampere) or newer; use --device cpu",
                                properties.name, properties.major, properties.minor));
    }
    cuda::check_cuda(cudaSetDevice(device), "choosing the GPU");
}

constexpr int64_t kLittle = 64 << 10;  // bytes: a token for each of 16384 sequences

int used(int device) {
    use_device(device);
    return device;
}

}  // namespace

CudaOps::CudaOps(int device, DType compute, bool deterministic, bool fp8)
    : device_(used(device)),
      compute_(compute),
      deterministic_(deterministic),
      fp8_(fp8),
      answer_(cuda::pinned_memory(kLittle)) {
    if (fp8 && !hopper::available())
        throw Error(ErrorKind::kDevice, "products in FP8 need a Hopper card (H100, H200); use --compute bf16");
    check(compute == DType::kF32 || compute == DType::kBF16, "CudaOps: activations are F32 or BF16");
}

Buffer CudaOps::allocate(int64_t bytes) {
    auto owner = std::make_shared<Buffer>(cuda::device_memory(bytes));
    void* const address = owner->data();
    return {address, bytes, [owner = std::move(owner), frees = recorder_.frees()](void*) mutable {
                ++*frees;
                owner.reset();
            }};
}

void CudaOps::repeat(std::span<const int64_t> key, int64_t after, const std::function<void()>& ops) {
    recorder_.repeat(key, after, main_.generation() + side_.generation(), ops);
}

void CudaOps::side_by_side(const std::function<void()>& first, const std::function<void()>& second, double share) {
    if (lane_ == &side_) return Ops::side_by_side(first, second, share);
    fork(share);
    try {
        first();
        lane_ = &side_;
        second();
    } catch (...) {
        join();
        throw;
    }
    join();
}

// Each lane has its part of the device until they meet again.
void CudaOps::fork(double share) {
    if (share < 1) {
        const int all = hopper::multiprocessors(), second = std::clamp(static_cast<int>(std::lround(share * all)), 1, all - 1);
        main_.multiprocessors = all - second;
        side_.multiprocessors = second;
    }
    side_.stream.follow(main_.stream);
}

void CudaOps::join() {
    lane_ = &main_;
    main_.multiprocessors = side_.multiprocessors = 0;
    main_.stream.follow(side_.stream);
}

// From pageable memory the call returns when the bytes have been staged, so that `host` may be reused at once.
void CudaOps::write(const Tensor& device, const void* host) {
    check(device.contiguous(), "write: the tensor must be contiguous");
    if (device.size() == 0) return;
    if (const void* const kept = recorder_.keep(host, device.bytes())) host = kept;
    cuda::check_cuda(
        cudaMemcpyAsync(device.data, host, static_cast<size_t>(device.bytes()), cudaMemcpyHostToDevice, lane_->stream),
        "copying to the GPU");
}

// A step's tokens come by pinned memory: pageable memory would be staged by the driver.
void CudaOps::read_back(void* host, const Tensor& device) {
    check(device.contiguous(), "read_back: the tensor must be contiguous");
    const auto bytes = static_cast<size_t>(device.bytes());
    const bool few = device.bytes() <= answer_.bytes();
    if (bytes > 0) {
        cuda::check_cuda(
            cudaMemcpyAsync(few ? answer_.data() : host, device.data, bytes, cudaMemcpyDeviceToHost, lane_->stream),
            "copying from the GPU");
    }
    lane_->stream.wait();
    if (few && bytes > 0) std::memcpy(host, answer_.data(), bytes);
    fault_.check_and_clear();
}

}  // namespace fathom
