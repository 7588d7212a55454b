#include "cuda/recorder.h"

#include <cstring>

namespace fathom::cuda {

Recorder::~Recorder() { forget(); }

void Recorder::forget() {
    for (auto& [key, recording] : recordings_)
        if (recording.graph != nullptr) (void)cudaGraphExecDestroy(recording.graph);
    recordings_.clear();
}

// For one more of those that are recorded, or are only counted yet.
void Recorder::make_room(bool recorded, int64_t most) {
    auto oldest = recordings_.end();
    int64_t count = 0;
    for (auto it = recordings_.begin(); it != recordings_.end(); ++it) {
        if ((it->second.graph != nullptr) != recorded) continue;
        ++count;
        if (oldest == recordings_.end() || it->second.used < oldest->second.used) oldest = it;
    }
    if (count < most) return;
    if (recorded) {
        stream_.wait();  // it may still run, and read what was kept for it
        (void)cudaGraphExecDestroy(oldest->second.graph);
    }
    recordings_.erase(oldest);
}

void Recorder::repeat(std::span<const int64_t> key, int64_t after, int64_t workspace_generation,
                      const std::function<void()>& ops) {
    check(current_ == nullptr, "repeat: within itself");
    const int64_t memory = frees_->load() + workspace_generation;  // both only grow
    const std::vector<int64_t> name(key.begin(), key.end());
    auto found = recordings_.find(name);
    if (found != recordings_.end() && found->second.memory == memory) {
        Recording& recording = found->second;
        recording.used = ++clock_;
        if (recording.graph == nullptr && recording.calls < after) {
            ++recording.calls;
            return ops();
        }
        if (recording.graph == nullptr) {
            make_room(true, kMostRecorded);
            if (!record(recording, ops)) return ops();
        }
        return check_cuda(cudaGraphLaunch(recording.graph, stream_), "running a recorded step");
    }
    if (found != recordings_.end()) {
        stream_.wait();  // a graph may still run, and read what was kept for it
        forget();
    }
    ops();
    make_room(false, kMostCounted);
    recordings_[name] = {.memory = memory, .calls = 1, .used = ++clock_};
}

// False, with nothing done, where the ops cannot be recorded.
bool Recorder::record(Recording& recording, const std::function<void()>& ops) {
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "recording a step");
    current_ = &recording;
    cudaGraph_t graph = nullptr;
    try {
        ops();
    } catch (...) {
        current_ = nullptr;
        if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess) (void)cudaGraphDestroy(graph);
        (void)cudaGetLastError();
        throw;
    }
    current_ = nullptr;
    const bool whole = cudaStreamEndCapture(stream_, &graph) == cudaSuccess && graph != nullptr;
    const bool ready = whole && cudaGraphInstantiate(&recording.graph, graph, 0) == cudaSuccess;
    if (whole) (void)cudaGraphDestroy(graph);
    if (!ready) {
        (void)cudaGetLastError();
        recording.graph = nullptr;
    }
    return ready;
}

const void* Recorder::keep(const void* host, int64_t bytes) {
    if (current_ == nullptr) return nullptr;
    void* const pinned = current_->host.emplace_back(pinned_memory(bytes)).data();
    std::memcpy(pinned, host, static_cast<size_t>(bytes));
    return pinned;
}

}  // namespace fathom::cuda
