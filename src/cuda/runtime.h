// The host's side of CUDA: errors, streams, memory. No kernel is launched from here.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "tensor/tensor.h"

namespace fathom::cuda {

[[nodiscard]] constexpr int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Throws Error{kMemory} when memory ran out, else Error{kDevice} naming what was attempted.
void check_cuda(cudaError_t status, const char* attempt);
// After a launch: what was wrong with it, or with earlier work on the device.
void check_launch(const char* op);

// Whether kernels may be launched before the one ahead of them has ended (Hopper and later).
[[nodiscard]] bool launches_early();

// Device memory, owned. Throws Error{kMemory} saying how much is free and what helps.
[[nodiscard]] Buffer device_memory(int64_t bytes);
// Of the host, which the device copies from and to by itself.
[[nodiscard]] Buffer pinned_memory(int64_t bytes);

// A stream of its own.
class Stream {
public:
    Stream();
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    [[nodiscard]] operator cudaStream_t() const { return stream_; }  // NOLINT(google-explicit-constructor)
    void wait() const;
    // What is queued here from now on begins after what has been queued on `other` so far.
    void follow(const Stream& other);

private:
    cudaStream_t stream_ = nullptr;
    cudaEvent_t reached_ = nullptr;  // by the stream that was followed last
};

// Memory for one op's intermediate results. All ops run on one stream, so the next op may have the same bytes.
class Workspace {
public:
    explicit Workspace(const Stream& stream) : stream_(stream) {}
    // 256-byte aligned parts of one op: begin() and then take() each; grows when an op needs more than any before.
    template <class T>
    [[nodiscard]] T* take(int64_t count) {
        return static_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
    }
    // Frees what was taken; `bytes` is all that the op will take.
    void begin(int64_t bytes);
    // Grows whenever the memory moves.
    [[nodiscard]] int64_t generation() const { return generation_; }

private:
    const Stream& stream_;
    Buffer memory_;
    int64_t used_ = 0, generation_ = 0;
    [[nodiscard]] void* take_bytes(int64_t bytes);
};

// A queue of ops, and memory for what each of them needs meanwhile.
struct Lane {
    Stream stream;
    Workspace workspace{stream};
    Workspace numbers{stream};  // weights in another form, for one product of `workspace`
    int multiprocessors = 0;    // that its large products may take; 0: all
    // Grows whenever memory moves.
    [[nodiscard]] int64_t generation() const { return workspace.generation() + numbers.generation(); }
};

// Where kernels report what they cannot throw: an index out of range. Host memory that the device writes to.
class FaultFlag {
public:
    FaultFlag();
    ~FaultFlag();
    FaultFlag(const FaultFlag&) = delete;
    FaultFlag& operator=(const FaultFlag&) = delete;
    // Written by kernels: one of Fault.
    [[nodiscard]] int* device() const { return flag_; }
    // LogicError if a kernel reported something. Only after the stream was waited for.
    void check_and_clear();

private:
    int* flag_ = nullptr;
};

enum Fault : int { kNoFault, kRowIndex, kExpertIndex, kTarget };

}  // namespace fathom::cuda
