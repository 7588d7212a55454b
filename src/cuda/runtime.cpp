#include "cuda/runtime.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/progress.h"

namespace fathom::cuda {
namespace {

constexpr int64_t kWorkspaceAlignment = 256, kWorkspaceMinimum = int64_t{1} << 24;

int64_t aligned(int64_t bytes) { return ceil_div(bytes, kWorkspaceAlignment) * kWorkspaceAlignment; }

}  // namespace

void check_cuda(cudaError_t status, const char* attempt) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // what can be forgotten is forgotten
    const auto kind = status == cudaErrorMemoryAllocation ? ErrorKind::kMemory : ErrorKind::kDevice;
    throw Error(kind, fmt::format("CUDA: {}: {} ({})", attempt, cudaGetErrorString(status), cudaGetErrorName(status)));
}

void check_launch(const char* op) { check_cuda(cudaGetLastError(), op); }

bool launches_early() {
    static const bool result = [] {
        int device = 0, major = 0;
        check_cuda(cudaGetDevice(&device), "asking for the GPU");
        check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the GPU's kind");
        return major >= 9;
    }();
    return result;
}

Buffer device_memory(int64_t bytes) {
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
    if (status == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        size_t free = 0, total = 0;
        check_cuda(cudaMemGetInfo(&free, &total), "asking for free memory");
        throw Error(ErrorKind::kMemory,
                    fmt::format("the GPU has {} free of {}, {} more are needed: use fewer rows per batch, a shorter context, "
                                "training.recompute=true or --device cpu (fathom plan shows what a model needs)",
                                human_bytes(static_cast<double>(free)), human_bytes(static_cast<double>(total)),
                                human_bytes(static_cast<double>(bytes))));
    }
    check_cuda(status, "allocating memory");
    return {memory, bytes, [](void* address) { (void)cudaFree(address); }};
}

Buffer pinned_memory(int64_t bytes) {
    void* memory = nullptr;
    check_cuda(cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault), "allocating pinned memory");
    return {memory, bytes, [](void* address) { (void)cudaFreeHost(address); }};
}

Stream::Stream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
    check_cuda(cudaEventCreateWithFlags(&reached_, cudaEventDisableTiming), "creating an event");
}

Stream::~Stream() {
    (void)cudaEventDestroy(reached_);
    (void)cudaStreamDestroy(stream_);
}

void Stream::follow(const Stream& other) {
    check_cuda(cudaEventRecord(reached_, other), "joining streams");
    check_cuda(cudaStreamWaitEvent(stream_, reached_, 0), "joining streams");
}

void Stream::wait() const { check_cuda(cudaStreamSynchronize(stream_), "waiting for the GPU"); }

void Workspace::begin(int64_t bytes) {
    used_ = 0;
    const int64_t needed = bytes + 16 * kWorkspaceAlignment;  // up to 16 parts, each rounded up
    if (needed <= memory_.bytes()) return;
    stream_.wait();  // earlier ops may still use what goes
    memory_ = Buffer();
    ++generation_;
    memory_ = device_memory(std::max(needed + needed / 4, kWorkspaceMinimum));
}

void* Workspace::take_bytes(int64_t bytes) {
    void* part = static_cast<std::byte*>(memory_.data()) + used_;
    used_ += aligned(bytes);
    check(used_ <= memory_.bytes(), "Workspace: an op takes more than it announced");
    return part;
}

FaultFlag::FaultFlag() {
    check_cuda(cudaHostAlloc(reinterpret_cast<void**>(&flag_), sizeof(int), cudaHostAllocMapped), "allocating pinned memory");
    *flag_ = kNoFault;
}

FaultFlag::~FaultFlag() { (void)cudaFreeHost(flag_); }

void FaultFlag::check_and_clear() {
    const int fault = *static_cast<volatile int*>(flag_);
    if (fault == kNoFault) return;
    *flag_ = kNoFault;
    check(fault != kRowIndex, "gather or scatter: a row index is out of range");
    check(fault != kExpertIndex, "an expert index is out of range");
    check(false, "cross_entropy: a target is not below the vocabulary's size");
}

}  // namespace fathom::cuda
